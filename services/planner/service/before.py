"""A job from the queue to its batch: the input is checked first, then compute is asked for, then the batch is made."""

from __future__ import annotations

from dataclasses import replace

from services.kit.errors import AlreadyExists, IllegalTransition, InvalidArgument, NotFound
from services.kit.transactions import Tx
from services.planner.domain import Provision
from services.planner.service.batches import Batches
from services.planner.service.changes import Change, failed, later, moved, plain
from services.planner.service.compute import BATCH_LOOK_S, Compute, Situation
from services.planner.service.resources import ResourceManager
from services.planner.service.runtime import Runtimes, block_for, compute_for, draft_block
from services.planner.states import JobEvent, ProvisionState
from services.planner.store import events
from services.planner.store.events import Line
from services.planner.store.jobs import Held

# What is wrong with a request stays wrong.
FINAL = (InvalidArgument, NotFound, AlreadyExists)
NEEDS_NONE = Line("The batch needs no other compute", source="metadata")
LATE = "The deadline of the job passed before its batch was made."


class Before:
    def __init__(
        self, manager: ResourceManager, batches: Batches, compute: Compute, runtimes: Runtimes, poll_s: float
    ) -> None:
        self.manager = manager
        self.batches = batches
        self.compute = compute
        self.runtimes = runtimes
        self.poll_s = poll_s

    async def queued(self, held: Held) -> Change:
        if held.is_late:
            return late(held)
        if not held.validated:
            return await self._check_input(held)
        if held.job.batch_id is None:
            return Change(values={"rest_until_time": None}, due=held.job.expires_time)
        return await self._queued_again(held)

    async def _queued_again(self, held: Held) -> Change:
        """Its batch waits with it for other compute, and may end meanwhile."""
        if await self._needs_none(held):
            return off(NEEDS_NONE)
        until = held.rest_until_time
        if until is None:
            return later(held, BATCH_LOOK_S)
        if until <= held.now:
            return later(held, BATCH_LOOK_S, rest_until_time=None)
        return later(held, min(BATCH_LOOK_S, (until - held.now).total_seconds()))

    async def _needs_none(self, held: Held) -> bool:
        """Whether the job's batch goes on, or ends, without a machine: somebody cancelled it, or its machine was not lost."""
        if held.job.batch_id is None:
            return False
        try:
            batch = await self.batches.get(held.job.project_id, held.job.batch_id)
        except NotFound:
            return True
        return not batch.needs_compute

    async def _check_input(self, held: Held) -> Change:
        """Metadata reads the whole input: nothing is spent on one that is wrong."""
        try:
            found = await self.batches.validate(held.job, draft_block(held.job, self.runtimes), held.now)
        except FINAL as error:
            code = error.context.get("code", "invalid_value")
            return failed(JobEvent.FAIL, code, error.message, label="Input refused", source="metadata")
        if found.errors:
            first = found.errors[0]
            return failed(JobEvent.FAIL, first.code, first.said(), label="Input refused", source="metadata")
        line = Line(f"Input checked: {requests(found.total_count)}", source="metadata")
        return Change(
            lines=(line,),
            values={"validated": True, "total_count": found.total_count},
            due=held.job.expires_time,
        )

    async def planned(self, held: Held) -> Change:
        if held.is_late:
            return late(held)
        job = held.job
        if job.provision_id is not None:
            return moved(JobEvent.PREPARE, Line("Uses the compute of an earlier job"))
        try:
            provision = await self.manager.provision(held.key, job.project_id, compute_for(job))
        except FINAL as error:
            code = error.context.get("code", "invalid_value")
            return ending(held, failed(JobEvent.FAIL_RESOURCE, code, error.message, label="Compute refused"))
        line = Line(f"Waiting for compute from {self._asked(held)}", source="resource_manager")
        change = moved(JobEvent.PREPARE, line, provision_id=provision.id)
        return replace(change, due=later(held, self.poll_s).due)

    def _asked(self, held: Held) -> str:
        return " or ".join(compute_for(held.job).providers or self.runtimes.targets)

    async def preparing(self, held: Held) -> Change:
        if held.is_late:
            return late(held)
        now = await self.compute.situation(held, turn=True)
        if over := self.compute.over_budget(held, now):
            return over
        if await self._needs_none(held):
            return off(NEEDS_NONE)
        if now.is_lost:
            return ending(held, await self.compute.after_failure(held, now))
        assert now.provision is not None
        if not now.runs:
            is_made = now.provision.status is not ProvisionState.PENDING
            news = await self.news(held, starting(now.provision)) if is_made else ()
            return later(held, self.poll_s, *news)
        if not now.is_first:
            return later(held, self.poll_s, *await self.news(held, Line("Waiting for its turn on shared compute")))
        return moved(JobEvent.SUBMIT, Line(f"Compute is ready{where(now.provision)}", source="resource_manager"))

    async def submitting(self, held: Held) -> Change:
        if held.is_late:
            return late(held)  # a batch that was made a moment ago ends by its own deadline, which is no later
        now = await self.compute.situation(held)
        if over := self.compute.over_budget(held, now):
            return over
        if not now.runs:
            return await self._no_machine(held, now)
        try:
            return await self._submit(held, self.block(held, now))
        except IllegalTransition:
            return off(Line("The batch ends", source="metadata"))
        except FINAL as error:
            code = error.context.get("code", "invalid_value")
            refused = failed(JobEvent.FAIL_SUBMIT, code, error.message, label="Batch refused", source="metadata")
            return ending(held, refused)

    async def _submit(self, held: Held, block: str) -> Change:
        job = held.job
        if job.batch_id is None:
            batch = await self.batches.create(job, block, held.key, held.now)
            said = f"Batch {batch.id} created"
        else:
            batch = await self.batches.replace_compute(job.project_id, job.batch_id, block)
            said = f"Batch {batch.id} goes on with the new compute"
        accepted = (JobEvent.ACCEPT, Line(said, source="metadata"))
        return Change(moves=(accepted,), values={"batch_id": batch.id}, due=later(held, self.poll_s).due)

    def block(self, held: Held, now: Situation) -> str:
        """Error: InvalidArgument."""
        assert now.provision is not None
        return block_for(held.job, now.provision, self.runtimes, held.attempt)

    async def _no_machine(self, held: Held, now: Situation) -> Change:
        if held.job.batch_id is None and (batch := await self.batches.find(held.job, held.key)):
            return Change(values={"batch_id": batch.id})  # it was made, and nobody lived to note it
        change = await self.compute.after_failure(held, now)
        if change.moves[0][0] is not JobEvent.FAIL_RESOURCE:
            return change  # another try
        return ending(held, Change(moves=((JobEvent.FAIL_SUBMIT, change.moves[0][1]),), values=change.values))

    async def news(self, held: Held, line: Line) -> tuple[Line, ...]:
        """The line, unless the timeline ends with it already."""
        return () if await self.last_line(held) == line else (line,)

    async def last_line(self, held: Held) -> Line | None:
        async def work(tx: Tx) -> Line | None:
            return await events.last(tx, held.job.id)

        return await self.compute.transactions.read(work)


def ending(held: Held, change: Change) -> Change:
    """The same, but where there is a batch already it is cancelled first, and what it has done is kept."""
    if held.job.batch_id is None or change.moves[0][0] not in (JobEvent.FAIL_RESOURCE, JobEvent.FAIL_SUBMIT):
        return change
    return Change(moves=((JobEvent.CANCEL, change.moves[0][1]),), values=change.values)


def late(held: Held) -> Change:
    """The end at the deadline. A batch that waited for other compute has the same deadline: see it off."""
    return expired() if held.job.batch_id is None else off(Line("Expired while waiting for compute"))


def off(line: Line) -> Change:
    """Follow the batch to its end."""
    return Change(moves=((JobEvent.RUN, line),))


def expired() -> Change:
    return failed(JobEvent.EXPIRE, "expired", LATE, label="Expired")


def starting(provision: Provision) -> Line:
    return Line(f"Machine is starting{where(provision)}", source="resource_manager")


def where(provision: Provision) -> str:
    """Such as ` (region EU-1, H100)`."""
    count = f"{provision.gpus_per_replica} x " if provision.gpus_per_replica > 1 else ""
    what = f"{count}{provision.accelerator}" if provision.accelerator else provision.instance_type
    parts = [f"region {provision.region}" if provision.region else "", what]
    said = ", ".join(part for part in parts if part)
    return plain(f" ({said})") if said else ""


def requests(count: int) -> str:
    return f"{count:,} request" + ("" if count == 1 else "s")
