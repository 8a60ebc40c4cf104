"""Jobs as their users see them: put into the queue, looked at, listed, cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

import structlog

from services.kit.errors import IllegalTransition, ServiceError
from services.kit.ids import new_id
from services.kit.together import Together
from services.kit.transactions import Transactions, Tx
from services.planner import metrics
from services.planner.domain import Job, TimelineEntry
from services.planner.service import checks, new_jobs, views
from services.planner.service.bells import Bells
from services.planner.service.documents import read_request, read_spec
from services.planner.service.new_jobs import NewJob, Order
from services.planner.service.runtime import compute_spec
from services.planner.service.watch import WatchService
from services.planner.states import JobState
from services.planner.store import events, jobs, keys, moves, usage
from services.planner.store.events import Line
from services.planner.store.jobs import JOB_PREFIX, Filter

DEFAULT_PAGE = 20
LARGEST_PAGE = 100
# A page ends early when its documents hold this many characters: a message has at most 16 MiB.
PAGE_CHARACTERS = 4 * 1024 * 1024
QUEUED = Line("Queued", source="console")

log = structlog.get_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class ProjectUsage:
    """The proto GetUsageResponse."""

    live_jobs: int
    live_gpus: int = 0
    cost_usd: float = 0.0


class JobService:
    def __init__(
        self, transactions: Transactions, bells: Bells, watch: WatchService, providers: Collection[str]
    ) -> None:
        """`providers`: those that are configured."""
        self.transactions = transactions
        self.bells = bells
        self.watch = watch
        self.providers = providers
        self._insert = Together(self._insert_all)

    async def enqueue_job(self, new: NewJob, key: str | None, request_hash: str) -> Job:
        order = new_jobs.check(new_id(JOB_PREFIX), new, key, request_hash, self.providers)
        job = await self._insert(order)
        self.bells.to_act.ring()
        if job.id == order.id:
            metrics.QUEUED.inc()
            template = f"{job.model_template_name}@{job.model_template_version}"
            log.info("job queued", job_id=job.id, project_id=job.project_id, template=template)
            return replace(job, events=[first_entry(job)])
        return await self.get_job(job.project_id, job.id)

    async def _insert_all(self, orders: Sequence[Order]) -> Sequence[Job | ServiceError]:
        """Record new jobs in one transaction. What is wrong with one of them is no trouble of the others."""

        async def work(tx: Tx) -> list[Job | ServiceError]:
            results: list[Job | ServiceError] = []
            new: list[Job] = []
            for order in orders:
                try:
                    earlier = await self._earlier(tx, order, new)
                except ServiceError as error:
                    results.append(error)
                    continue
                job = earlier or order.job(tx.now)
                results.append(job)
                if earlier is None:
                    new.append(job)
            await jobs.insert_all(tx, new)
            async with events.telling(tx) as said:
                for job in new:
                    said.add(job, QUEUED)
            return results

        return await self.transactions.write(work)

    async def _earlier(self, tx: Tx, order: Order, beside: Sequence[Job]) -> Job | None:
        """The job that its idempotency key made before, if any; perhaps a moment ago, in the same transaction."""
        if order.key is None:
            return None
        claim = await keys.claim(tx, order.new.project_id, order.key, order.request_hash, order.id)
        checks.same_request(order.key, claim.request_hash, order.request_hash)
        if claim.job_id == order.id:
            return None
        for job in beside:
            if job.id == claim.job_id:
                return job
        found = await jobs.find(tx, order.new.project_id, claim.job_id)
        return found.job if found else None

    async def get_job(self, project_id: str, id: str) -> Job:
        async def work(tx: Tx) -> Job | None:
            held = await jobs.find(tx, project_id, id)
            return await views.shown_whole(tx, held) if held else None

        job = None if "\0" in id + project_id else await self.transactions.read(work)
        if job is None:
            raise checks.missing_job(id)
        return job

    async def list_jobs(self, wanted: Filter, page_size: int, after: str | None) -> tuple[list[Job], bool]:
        """One page, newest first, and whether there are more. An unknown cursor gives an empty page."""
        size = checks.page_size(page_size, DEFAULT_PAGE, LARGEST_PAGE)
        texts = (wanted.model_id, wanted.model_template_name, wanted.model_template_version, after)
        if any("\0" in text for text in texts if text is not None):
            return [], False

        async def work(tx: Tx) -> tuple[list[Job], bool]:
            found = await jobs.page(tx, wanted, after, size + 1)
            page = cut(await views.shown(tx, found[:size]))
            return page, len(found) > len(page)

        return await self.transactions.read(work)

    async def cancel_job(self, project_id: str, id: str) -> Job:
        async def work(tx: Tx) -> Job:
            if "\0" in id:
                raise checks.missing_job(id)
            held = await moves.cancel(tx, project_id, id) or await jobs.find(tx, project_id, id)
            if held is None:
                raise checks.missing_job(id)
            status = held.job.status
            if status is not JobState.CANCELLING:
                message = f"Cannot cancel a job with status '{status.lower()}'."
                raise IllegalTransition(message, state=status, param="id")
            return await views.shown_whole(tx, held)

        job = await self.transactions.write(work)
        log.info("job is cancelled", job_id=id)
        self.bells.to_act.ring()
        self.watch.changed([id])
        return job

    async def get_usage(self, project_id: str, *, with_gpus: bool, since: datetime | None) -> ProjectUsage:
        """How many jobs of the project live; how many GPUs they have or wait for, if `with_gpus`; and what the compute that
        was asked for `since` then has cost."""

        async def work(tx: Tx) -> tuple[ProjectUsage, Sequence[usage.Waiting]]:
            found = ProjectUsage(
                live_jobs=await usage.count_live(tx, project_id),
                live_gpus=await usage.count_gpus(tx, project_id) if with_gpus else 0,
                cost_usd=await usage.sum_cost(tx, project_id, since) if since is not None else 0.0,
            )
            return found, await usage.list_waiting(tx, project_id) if with_gpus else ()

        if "\0" in project_id:
            return ProjectUsage(live_jobs=0)
        found, waiting = await self.transactions.read(work)
        if waiting:
            # In a thread: there is a template to be read for each group.
            found = replace(found, live_gpus=found.live_gpus + await asyncio.to_thread(gpus_of, waiting))
        return found

    async def forget_old_keys(self) -> None:
        await self.transactions.write(keys.forget_old)


def gpus_of(waiting: Sequence[usage.Waiting]) -> int:
    """What these jobs ask for."""
    total = 0
    for group in waiting:
        request = read_request(group.resource_request_json)
        wanted = compute_spec(read_spec(group.model_template_spec_json or ""), request).groups
        total += group.count * sum(one.gpus_per_replica * one.replicas for one in wanted)
    return total


def first_entry(job: Job) -> TimelineEntry:
    """What its timeline begins with."""
    status = job.status.lower()
    return TimelineEntry(id=1, label=QUEUED.label, status=status, source=QUEUED.source, time=job.create_time)


def cut(page: list[Job]) -> list[Job]:
    """As much of a page as fits into a message; at least one job."""
    characters = 0
    for count, job in enumerate(page):
        documents = (job.model_template_spec_json, job.client_json, job.resource_request_json, job.metadata_json)
        characters += sum(len(text) for text in documents if text is not None)
        if characters > PAGE_CHARACTERS and count:
            return page[:count]
    return page
