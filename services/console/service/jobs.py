"""Jobs as people make them: checked and resolved here, owned by the planner from then on."""

from __future__ import annotations

import asyncio
import hashlib
import math
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

import structlog

from brix.planner.v1 import jobs_pb2
from brix.type.v1 import job_pb2
from services.console.domain import DeploymentTemplate, Model, NewJob
from services.console.service import checks, specs
from services.console.service.models import found
from services.console.service.planner import Planner
from services.console.service.templates import resolved
from services.console.store import requests, templates
from services.kit import clock
from services.kit.errors import AlreadyExists, Conflict, IllegalTransition, InvalidArgument, NotFound, QuotaExceeded
from services.kit.ids import new_id
from services.kit.settings import Settings
from services.kit.spec.catalog import some
from services.kit.spec.endpoints import ENDPOINT_PATHS
from services.kit.spec.template import TemplateSpec
from services.kit.spec.window import parse_window
from services.kit.together import Together
from services.kit.transactions import Transactions, Tx

Job = job_pb2.Job
DEFAULT_WINDOW = "24h"
PRIORITIES = {"high": 10, "normal": 0, "low": -10}
LONGEST_NAME = 255
LARGEST_BUDGET_USD = 1e9
MOST_MODELS_SHOWN = 20
# For so long a job's maker waits for somebody who deletes its template; then the template stays.
DELETION_S = 5.0
LOOK_S = 0.05
DEFAULT_TEMPLATE = "DEFAULT_BATCH_MODEL_DEPLOYMENT_TEMPLATE"
NAME, VERSION = "model_template_name", "model_template_version"

STATUSES = {name.lower(): number for name, number in Job.State.items() if number != Job.STATE_UNSPECIFIED}
ENDED = frozenset({Job.COMPLETED, Job.FAILED, Job.EXPIRED, Job.CANCELLED, Job.RESOURCE_FAILED, Job.SUBMIT_FAILED})
# What a retry takes over: everything that its user and the template decided.
KEPT = {
    "project_id",
    "name",
    "input_dataset",
    "endpoint",
    "completion_window",
    "model_id",
    "model",
    "model_template_name",
    "model_template_version",
    "model_template_spec_json",
    "client_json",
    "resource_request_json",
    "metadata_json",
    "priority",
    "budget_usd",
}

log = structlog.get_logger(__name__)


class Quotas(Protocol):
    async def check_quota(self, project_id: str, *, gpus: int) -> None:
        """Whether the project may have one more job that takes `gpus` GPUs. Error: QuotaExceeded."""
        ...


@dataclass(frozen=True)
class Once:
    """Under which key the planner is asked."""

    project_id: str
    key: str
    request_hash: str
    is_users: bool
    """Its user may send it again, also to another replica; otherwise it is for lost answers only."""

    @classmethod
    def of(cls, project_id: str, key: str | None, request_hash: str, call_id: str | None) -> Once:
        """`call_id`: of the call, which may be repeated on its way here. Only what has a user's key is written down."""
        given = key if key is not None else call_id
        checks.idempotency(given, request_hash)
        return cls(project_id, given or new_id("once_"), request_hash or new_id(""), key is not None)


class JobService:
    def __init__(self, transactions: Transactions, planner: Planner, quotas: Quotas, settings: Settings) -> None:
        self.transactions = transactions
        self.planner = planner
        self.quotas = quotas
        name, _, version = settings.default_template.partition("@")
        self.default_template = (name.strip(), version.strip() or None)
        self._claim: Together[tuple[Once, requests.Claim], requests.Claim] = Together(self._claim_all)

    async def create_job(self, new: NewJob) -> Job:
        """Errors: InvalidArgument, NotFound (model, template), Conflict (no active version), QuotaExceeded, AlreadyExists (the
        idempotency key was used with another body)."""
        name, version = self._template_reference(new)
        check_new(new)
        once = Once.of(new.project_id, new.idempotency_key, new.request_hash, new.call_id)

        async def work(tx: Tx) -> bytes | tuple[Model, DeploymentTemplate]:
            if earlier := await claimed_before(tx, once):
                return earlier
            model_id = new.model_id or await only_model(tx, new.project_id, name)
            model = await found(tx, new.project_id, model_id, "model_id")
            return model, await resolved(tx, new.project_id, model_id, name, version, (NAME, VERSION))

        try:
            looked = await self.transactions.read(work)
        except (NotFound, Conflict) as error:
            if not new.model_template_name and error.context.get("param") in (NAME, VERSION):
                message = f"{error.message} It is the default template of this server ({DEFAULT_TEMPLATE})."
                raise type(error)(message, **error.context) from error
            raise
        if isinstance(looked, bytes):
            return await self._enqueue(once, looked)
        model, template = looked
        job = as_job(new, model, template)
        await self._check_quota(job)
        if template.status == "deprecated":
            log.warning("a job uses a deprecated template", template=template.label)
        made = await self._enqueue(once, await self._claimed(once, job))
        if not await self._stays(template.id):
            await self._undo(once, made, template)
        return made

    async def retry_job(
        self,
        project_id: str,
        id: str,
        created_by: str,
        idempotency_key: str | None,
        request_hash: str,
        call_id: str | None,
    ) -> Job:
        """A new job from one that ended badly, with the template that that one had.

        Errors: NotFound, IllegalTransition (it has not ended, or completed), QuotaExceeded, AlreadyExists.
        """
        # The body of every retry is the same: the key stands for this job's.
        said = hashlib.sha256(f"retry {id} {request_hash}".encode()).hexdigest() if request_hash else ""
        once = Once.of(project_id, idempotency_key, said, call_id)

        async def work(tx: Tx) -> bytes | None:
            return await claimed_before(tx, once)

        if earlier := await self.transactions.read(work):
            return await self._enqueue(once, earlier)
        old = await self.get_job(project_id, id)
        if old.status not in ENDED or old.status == Job.COMPLETED:
            status = Job.State.Name(old.status).lower()
            raise IllegalTransition(
                f"Cannot retry a job with status '{status}': only one that ended without success.", param="id"
            )
        job = Job(created_by=created_by, retry_of=old.id)
        for field, value in old.ListFields():
            if field.name in KEPT:
                setattr(job, field.name, value)
        await self._check_quota(job)
        return await self._enqueue(once, await self._claimed(once, job))

    async def get_job(self, project_id: str, id: str) -> Job:
        """Error: NotFound."""
        check_id(id)
        return await self.planner.get(project_id, id)

    async def list_jobs(
        self,
        project_id: str,
        limit: int | None,
        after: str | None,
        statuses: list[str],
        model_id: str | None,
        model_template_name: str | None,
    ) -> tuple[list[Job], bool]:
        """One page, newest first, and whether there is more behind it. Error: InvalidArgument."""
        size = checks.page_size(limit)
        checks.no_nul(after=after, model_id=model_id, model_template_name=model_template_name)
        for status in statuses:
            checks.one_of("status", status, list(STATUSES))
        page = await self.planner.list(
            jobs_pb2.ListJobsRequest(
                project_id=project_id,
                page_size=size,
                after=after,
                statuses=sorted({STATUSES[status] for status in statuses}),
                model_id=model_id or None,
                model_template_name=model_template_name or None,
            )
        )
        return list(page.jobs), page.has_more

    async def cancel_job(self, project_id: str, id: str) -> Job:
        """Errors: NotFound, IllegalTransition (it has ended)."""
        check_id(id)
        return await self.planner.cancel(project_id, id)

    def watch_job(self, project_id: str, id: str, after_revision: int) -> AsyncIterator[Job]:
        """The job now, and again whenever it changes, until it has ended. Errors: NotFound, Unavailable."""
        check_id(id)
        return self.planner.watch(project_id, id, max(0, after_revision))

    def _template_reference(self, new: NewJob) -> tuple[str, str | None]:
        if new.model_template_name:
            return new.model_template_name, new.model_template_version or None
        if new.model_template_version:
            raise checks.missing_parameter(NAME, " A version is that of a named template.")
        name, version = self.default_template
        if not name:
            more = f" This server has no default template ({DEFAULT_TEMPLATE})."
            raise checks.missing_parameter(NAME, more)
        return name, version

    async def _check_quota(self, job: Job) -> None:
        await self.quotas.check_quota(job.project_id, gpus=gpu_count(job))

    async def _claimed(self, once: Once, job: Job) -> bytes:
        """What the planner is to be asked, written down before it is: the same key asks for the same again."""
        message = jobs_pb2.EnqueueJobRequest(job=job, idempotency_key=once.key, request_hash=once.request_hash)
        mine = requests.Claim(once.request_hash, message.SerializeToString())
        if not once.is_users:
            return mine.request
        claim = await self._claim((once, mine))
        checks.same_request(once.key, claim.request_hash, once.request_hash)
        return claim.request

    async def _claim_all(self, asked: Sequence[tuple[Once, requests.Claim]]) -> Sequence[requests.Claim]:
        async def work(tx: Tx) -> list[requests.Claim]:
            await requests.forget_old(tx)
            return [await requests.claim(tx, once.project_id, once.key, mine) for once, mine in asked]

        return await self.transactions.write(work)

    async def _enqueue(self, once: Once, request: bytes) -> Job:
        try:
            job = await self.planner.enqueue(jobs_pb2.EnqueueJobRequest.FromString(request))
        except (InvalidArgument, NotFound, AlreadyExists, Conflict, QuotaExceeded):
            # Refused for good: its user may send something better under the same key.
            if once.is_users:
                await self._forget(once)
            raise
        log.info("job enqueued", job_id=job.id, project_id=job.project_id, model_id=job.model_id)
        return job

    async def _stays(self, template_id: str) -> bool:
        """Whether a template is still there, now that the planner has the job.

        Who deletes it announces that first, and asks the planner for jobs after that: either the job is found there, or the
        announcement is found here.
        """
        until = clock.monotonic() + DELETION_S
        while True:
            fate = await self.transactions.look(templates.fate(template_id))
            if fate is None or not fate["is_there"]:
                return False
            if fate["deletion_id"] is None:
                return True
            if clock.monotonic() < until:
                await asyncio.sleep(LOOK_S)
            else:
                # Whoever announced it may be dead.
                await self._call_off(template_id, fate["deletion_id"])

    async def _call_off(self, template_id: str, deletion_id: str) -> None:
        async def work(tx: Tx) -> None:
            await templates.call_off(tx, template_id, deletion_id)

        await self.transactions.write(work)

    async def _undo(self, once: Once, job: Job, template: DeploymentTemplate) -> None:
        """Cancel a job whose template was deleted while it was made. Error: NotFound, always."""
        with suppress(IllegalTransition):  # it has ended by itself
            await self.planner.cancel(job.project_id, job.id)
        if once.is_users:
            await self._forget(once)
        log.warning("a job was cancelled: its template was deleted", job_id=job.id, template=template.label)
        message = f"Template {template.label} was deleted while the job was made. Job {job.id} is cancelled."
        raise NotFound(message, param=NAME)

    async def _forget(self, once: Once) -> None:
        async def work(tx: Tx) -> None:
            await requests.forget(tx, once.project_id, once.key)

        await self.transactions.write(work)


async def claimed_before(tx: Tx, once: Once) -> bytes | None:
    """What the key stands for already. Whether a template or a quota changed since does not matter then.

    Error: AlreadyExists (it was used for something else).
    """
    claim = await requests.find(tx, once.project_id, once.key) if once.is_users else None
    if claim is None:
        return None
    checks.same_request(once.key, claim.request_hash, once.request_hash)
    return claim.request


async def only_model(tx: Tx, project_id: str, template_name: str) -> str:
    """The one model of the project that has such a template. Errors: NotFound, InvalidArgument (several have, param model_id)."""
    known = checks.findable(template_name)
    ids = await templates.list_model_ids(tx, project_id, template_name, MOST_MODELS_SHOWN + 1) if known else []
    if not ids:
        raise NotFound(f"No model of this project has a template '{checks.shown(template_name)}'.", param=NAME)
    if len(ids) > 1:
        listed = some(f"'{id}'" for id in ids[:MOST_MODELS_SHOWN])
        name = checks.shown(template_name)
        raise checks.missing_parameter("model_id", f" Several models have a template '{name}': {listed}.")
    return ids[0]


def check_new(new: NewJob) -> None:
    """What is wrong with a create by itself. Error: InvalidArgument with the field's path."""
    checks.required(project_id=new.project_id, input_dataset=new.input_dataset, endpoint=new.endpoint)
    checks.prose("created_by", new.created_by, LONGEST_NAME)
    checks.plain("name", new.name, LONGEST_NAME)
    checks.plain("input_dataset", new.input_dataset, checks.LONGEST_ID)
    checks.one_of("endpoint", new.endpoint, ENDPOINT_PATHS)
    parse_window(new.completion_window or DEFAULT_WINDOW)
    if new.priority:
        checks.one_of("priority", new.priority, list(PRIORITIES))
    budget = new.budget_usd
    if budget is not None and not (math.isfinite(budget) and 0 < budget <= LARGEST_BUDGET_USD):
        raise checks.invalid("budget_usd", "it must be a number of US dollars above 0")
    if new.client_json is not None:
        specs.read_client(new.client_json)
    if new.resource_request_json is not None:
        specs.read_resource_request(new.resource_request_json)
    if new.metadata_json is not None:
        specs.check_metadata(new.metadata_json)


def as_job(new: NewJob, model: Model, template: DeploymentTemplate) -> Job:
    """What the planner is asked to do. Error: InvalidArgument, for an endpoint that the template does not support."""
    spec = TemplateSpec.model_validate_json(template.spec_json)
    if new.endpoint not in spec.supported_endpoints:
        listed = ", ".join(f"'{path}'" for path in spec.supported_endpoints)
        raise checks.invalid(
            "endpoint", f"template {template.label} does not support '{new.endpoint}'; it supports: {listed}"
        )
    return Job(
        project_id=new.project_id,
        name=new.name,
        created_by=new.created_by,
        input_dataset=new.input_dataset,
        endpoint=new.endpoint,
        completion_window=new.completion_window or DEFAULT_WINDOW,
        model_id=model.id,
        model=model.serving_name or spec.model_source.uri,
        model_template_name=template.name,
        model_template_version=template.version,
        model_template_spec_json=template.spec_json,
        client_json=new.client_json,
        resource_request_json=new.resource_request_json and specs.kept(new.resource_request_json),
        metadata_json=new.metadata_json,
        priority=PRIORITIES[new.priority or "normal"],
        budget_usd=new.budget_usd,
    )


def gpu_count(job: Job) -> int:
    """How many GPUs a job takes; none if nobody says what it runs."""
    if not job.model_template_spec_json:
        return 0
    spec = TemplateSpec.model_validate_json(job.model_template_spec_json)
    if not spec.needs_gpu():
        return 0
    asked = specs.read_resource_request(job.resource_request_json) if job.HasField("resource_request_json") else None
    return spec.accelerator.count * ((asked.replicas if asked else None) or 1)


def check_id(id: str) -> None:
    if not checks.findable(id):
        raise checks.missing("job", id)
