"""What EnqueueJob asks for: everything that is wrong with it, before the database is asked."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta

from pydantic import TypeAdapter, ValidationError

from services.kit.errors import InvalidArgument
from services.kit.spec.endpoints import ENDPOINT_PATHS
from services.kit.spec.template import CONTROL, Name, TemplateSpec, Version
from services.kit.spec.window import parse_window
from services.planner.domain import Job
from services.planner.service import checks, documents
from services.planner.service.provision_checks import check_job
from services.planner.service.runtime import compute_spec
from services.planner.states import JobState

DEFAULT_WINDOW = "24h"
LONGEST_MODEL = 512
NAMES: TypeAdapter[str] = TypeAdapter(Name)
VERSIONS: TypeAdapter[str] = TypeAdapter(Version)
PRIORITIES = (-1000, 1000)
NO_REPLICAS = "a job runs on 1 machine today"
NO_SPOT = "no provider here has interruptible machines; leave it out"


@dataclass(frozen=True, kw_only=True)
class NewJob:
    """What a caller decides about a job. The fields of the proto Job that are not output."""

    project_id: str
    name: str = ""
    created_by: str = ""
    input_dataset: str
    endpoint: str
    completion_window: str
    model_id: str = ""
    model: str = ""
    model_template_name: str = ""
    model_template_version: str = ""
    model_template_spec_json: str | None = None
    client_json: str | None = None
    resource_request_json: str | None = None
    metadata_json: str | None = None
    priority: int = 0
    budget_usd: float | None = None
    retry_of: str | None = None


@dataclass(frozen=True)
class Order:
    """A job that is about to be made."""

    id: str
    new: NewJob
    window: timedelta
    model: str
    key: str | None
    request_hash: str

    def job(self, now: datetime) -> Job:
        plain = {name: getattr(self.new, name) for name in NewJob.__dataclass_fields__}
        plain |= {"model": self.model, "completion_window": self.new.completion_window or DEFAULT_WINDOW}
        return Job(
            **plain,
            id=self.id,
            status=JobState.QUEUED,
            create_time=now,
            queued_time=now,
            expires_time=now + self.window,
            revision=1,
        )


def check(id: str, new: NewJob, key: str | None, request_hash: str, providers: Collection[str]) -> Order:
    """`providers`: those that are configured. Error: InvalidArgument; `param` is the name that the field has in JSON."""
    _check_names(new)
    checks.idempotency(key, request_hash)
    checks.required("endpoint", new.endpoint)
    checks.one_of("endpoint", new.endpoint, ENDPOINT_PATHS)
    window = parse_window(new.completion_window or DEFAULT_WINDOW)
    spec = _check_template(new)
    documents.read_client(new.client_json)
    documents.check_metadata(new.metadata_json)
    _check_request(new, spec, providers)
    checks.between("priority", new.priority, *PRIORITIES)
    _check_budget(new.budget_usd)
    return Order(id, new, window, new.model or spec.model_source.uri, key, request_hash)


def _check_names(new: NewJob) -> None:
    checks.required("project_id", new.project_id)
    checks.required("input_dataset", new.input_dataset)
    for param in ("name", "created_by", "model_id"):
        checks.text(param, getattr(new, param))
    checks.text("model", new.model, LONGEST_MODEL)
    if new.model.startswith("-") or CONTROL.search(new.model):
        raise _invalid("model", "it may not begin with a dash or hold control characters")
    if new.retry_of is not None:
        checks.required("retry_of", new.retry_of)


def _check_template(new: NewJob) -> TemplateSpec:
    checks.required("model_template_name", new.model_template_name)
    for param, kind in (("model_template_name", NAMES), ("model_template_version", VERSIONS)):
        _check_kind(param, getattr(new, param), kind)
    checks.required_document(documents.SPEC, new.model_template_spec_json)
    spec = documents.read_spec(new.model_template_spec_json or "")
    if new.endpoint not in spec.supported_endpoints:
        listed = ", ".join(f"'{path}'" for path in spec.supported_endpoints)
        message = f"Invalid value: '{new.endpoint}'. The template supports: {listed}."
        raise InvalidArgument(message, param="endpoint", code="invalid_value")
    return spec


def _check_request(new: NewJob, spec: TemplateSpec, providers: Collection[str]) -> None:
    request = documents.read_request(new.resource_request_json)
    if request.replicas != 1:
        raise _invalid("resource_request.replicas", NO_REPLICAS)
    if request.spot:
        raise _invalid("resource_request.spot", NO_SPOT)
    check_job(compute_spec(spec, request), providers)


def _check_kind(param: str, value: str, kind: TypeAdapter[str]) -> None:
    if not value:
        return
    try:
        kind.validate_python(value)
    except ValidationError as error:
        raise _invalid(param, error.errors(include_url=False, include_input=False)[0]["msg"]) from error


def _invalid(param: str, why: str) -> InvalidArgument:
    return InvalidArgument(f"Invalid value for '{param}': {why}.", param=param, code="invalid_value")


def _check_budget(budget: float | None) -> None:
    if budget is not None and not (math.isfinite(budget) and budget > 0):
        raise _invalid("budget_usd", "it must be a number of US dollars above 0")
