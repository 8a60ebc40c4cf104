"""A job that has a batch: what the batch does is what the job does, until either has to end."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import structlog

from services.kit.errors import IllegalTransition, NotFound, ServiceError, Unavailable
from services.planner.service.batches import Batch, Batches
from services.planner.service.before import Before, ending, requests
from services.planner.service.changes import Change, failed, later, moved
from services.planner.service.compute import COMPUTE_CODES, NO_BATCH, Compute, Situation, reason
from services.planner.states import JobEvent, JobState
from services.planner.store.events import Line
from services.planner.store.jobs import Held

# How long a batch may take to end after it was cancelled, or its deadline passed: its requests in flight end, and its
# results are written. After that the job ends without it, and its compute goes.
GRACE = timedelta(minutes=5)
BATCH_LOST = "batch_lost"
GONE = "The batch of this job does not exist any more."
OVERDUE = "The batch did not end in time; the compute is given back without waiting for it."

MOVES = {
    "IN_PROGRESS": (JobState.IN_PROGRESS, JobEvent.RUN, Line("Running", source="metadata")),
    "FINALIZING": (JobState.FINALIZING, JobEvent.FINALIZE, Line("Writing results", source="metadata")),
}
# What a runner says it is doing, and what the timeline says then.
STARTING = tuple(
    Line(label, source="metadata")
    for label in ("Connecting to the machine", "Pulling the engine's image", "Starting the engine", "Loading the model")
)
DISPATCHING = "dispatching"
UP = Line("The engine is ready", source="metadata")
ENGINE = {
    "launching: connecting": STARTING[0],
    "launching: pulling": STARTING[1],
    "launching: starting": STARTING[2],
    "launching: loading": STARTING[3],
    DISPATCHING: UP,
}
BATCH_CANCELLED = (JobEvent.CANCEL, Line("The batch was cancelled", source="metadata"))
CONFIRMED = (JobEvent.CONFIRM_CANCEL, Line("Cancelled"))

log = structlog.get_logger(__name__)


class Following:
    def __init__(self, batches: Batches, compute: Compute, before: Before, poll_s: float) -> None:
        self.batches = batches
        self.compute = compute
        self.before = before
        self.poll_s = poll_s
        self.look_s = poll_s
        """How often a batch is looked at; longer if there are very many."""

    # VALIDATING, IN_PROGRESS, FINALIZING.

    async def follow(self, held: Held) -> Change:
        job = held.job
        assert job.batch_id is not None
        try:
            batch = await self.batches.get(job.project_id, job.batch_id)
        except NotFound:
            return failed(JobEvent.FAIL, BATCH_LOST, GONE, label="Failed")
        except Unavailable:
            # Its machine costs, whether or not metadata answers.
            if stop := await self._must_stop(held, await self.compute.situation(held)):
                return stop
            raise
        now = await self.compute.situation(held)
        if batch.has_ended:
            return await self._ended(held, batch, now)
        if stop := await self._must_stop(held, now):
            return stop
        if (now.is_lost or batch.compute_lost is not None) and batch.needs_compute:
            return await self._lost(held, batch, now)
        return await self._went_on(held, batch)

    async def _must_stop(self, held: Held, now: Situation) -> Change | None:
        if held.now >= held.job.expires_time + GRACE:
            await self._try_to_cancel(held)
            return failed(JobEvent.EXPIRE, "expired", OVERDUE, label="Expired")
        return self.compute.over_budget(held, now)

    async def _went_on(self, held: Held, batch: Batch) -> Change:
        values = progress(held, batch)
        if batch.phase == DISPATCHING and held.dispatch_time is None:
            values["dispatch_time"] = held.now
        if batch.state == "CANCELLING":
            return Change(moves=(BATCH_CANCELLED,), values=values)
        if batch.state in MOVES and held.job.status is not MOVES[batch.state][0]:
            _, event, line = MOVES[batch.state]
            return Change(moves=((event, line),), values=values, due=later(held, self.look_s).due)
        return later(held, self.look_s, *await self._news(held, batch), **values)

    async def _news(self, held: Held, batch: Batch) -> tuple[Line, ...]:
        """How far the start of the engine is, if that has changed."""
        line = ENGINE.get(batch.phase)
        if line is None:
            return ()
        if line is not UP:
            return await self.before.news(held, line)
        return (UP,) if await self.before.last_line(held) in STARTING else ()

    async def _lost(self, held: Held, batch: Batch, now: Situation) -> Change:
        """Its block names a machine that is gone: it goes on with another one, from what is committed, unless it ends."""
        if held.is_late:
            return later(held, self.poll_s, **progress(held, batch))
        why = batch.compute_lost or ""
        change = ending(held, await self.compute.after_failure(held, now, why))
        if now.provision is not None and not now.is_lost:
            # Its provider calls it up, but its runner cannot reach it: it would cost, and nobody would use it.
            await self.before.manager.release(now.provision.id)
        return replace(change, values={**progress(held, batch), **change.values})

    async def _ended(self, held: Held, batch: Batch, now: Situation) -> Change:
        if batch.state == "FAILED" and now.is_lost:
            return await self._ended_with_its_compute(held, batch, now)
        moves, values = self._ending(held, batch)
        ran = (MOVES["IN_PROGRESS"][1:],) if batch.has_run and held.job.status is JobState.VALIDATING else ()
        return Change(moves=(*ran, *moves), values=values)

    def _ending(self, held: Held, batch: Batch) -> tuple[tuple[tuple[JobEvent, Line], ...], dict[str, Any]]:
        """How a job ends whose batch has ended, and with what."""
        values = results(held, batch)
        done = f"{requests(batch.completed_count)} done, {batch.failed_count:,} failed"
        if batch.state == "COMPLETED":
            return ((JobEvent.COMPLETE, Line("Completed", done, "metadata")),), values | no_error()
        if batch.state == "FAILED":
            code, said = first_error(batch)
            end = failed(JobEvent.FAIL, code, said, label="Failed", source="metadata")
            return end.moves, values | dict(end.values)
        if batch.state == "EXPIRED":
            said = f"The deadline of the job passed: {done}."
            end = failed(JobEvent.EXPIRE, "expired", said, label="Expired", source="metadata")
            return end.moves, values | dict(end.values)
        if held.job.status is JobState.CANCELLING:
            return confirmed(held).moves, values
        return (BATCH_CANCELLED, CONFIRMED), values

    async def _ended_with_its_compute(self, held: Held, batch: Batch, now: Situation) -> Change:
        """A new try, as long as nothing was done: results of a batch that was ended cannot go on in another one."""
        change = await self.compute.after_failure(held, now)
        if not batch.has_results and not held.is_late:
            again = change.moves[0][0] is JobEvent.REPLAN
            return replace(change, values={**change.values, **NO_BATCH}) if again else change
        code, why = reason(now.provision)
        message = (
            f"{why} {requests(batch.completed_count + batch.failed_count)} of {batch.total_count:,} had been done."
        )
        end = failed(JobEvent.FAIL_RESOURCE, code, message, label="Compute was lost", source="resource_manager")
        return Change(moves=end.moves, values={**results(held, batch), **end.values})

    # CANCELLING.

    async def cancelling(self, held: Held) -> Change:
        job = held.job
        assert job.cancelling_time is not None
        if held.now >= job.cancelling_time + GRACE:
            await self._try_to_cancel(held)
            return confirmed(held, OVERDUE)
        if job.batch_id is None:
            found = await self.batches.find(job, held.key) if job.submitting_time is not None else None
            # Where it was made, and nobody lived to note it, it is cancelled as any other.
            return Change(values={"batch_id": found.id}) if found else confirmed(held)
        try:
            batch = await self.batches.get(job.project_id, job.batch_id)
        except NotFound:
            return confirmed(held)
        if batch.has_ended:
            moves, values = self._ending(held, batch)
            return Change(moves=moves, values=values)
        if batch.state != "CANCELLING":
            await self._cancel(held)
        return later(held, self.poll_s, **progress(held, batch))

    async def _cancel(self, held: Held) -> None:
        assert held.job.batch_id is not None
        try:
            await self.batches.cancel(held.job.project_id, held.job.batch_id)
        except IllegalTransition:
            log.info("the batch ended before it was cancelled", job_id=held.job.id, batch_id=held.job.batch_id)

    async def _try_to_cancel(self, held: Held) -> None:
        """Where the job goes on whether or not metadata answers."""
        if held.job.batch_id is None:
            return
        try:
            await self._cancel(held)
        except ServiceError as error:
            log.warning("the batch was not cancelled", job_id=held.job.id, error=error.message)


def confirmed(held: Held, why: str = "") -> Change:
    """The end of a job that was to be cancelled; if it was for a fault of its own, it has failed."""
    code = held.job.error_code
    if code is not None:
        event = JobEvent.FAIL_RESOURCE if code in COMPUTE_CODES else JobEvent.FAIL
        return moved(event, Line("Failed", held.job.error_message or ""))
    return moved(JobEvent.CONFIRM_CANCEL, Line("Cancelled", why))


def first_error(batch: Batch) -> tuple[str, str]:
    if not batch.errors:
        return "batch_failed", "The batch failed."
    return batch.errors[0].code, batch.errors[0].said()


def no_error() -> dict[str, None]:
    """It was to be stopped, and was done before that."""
    return {"error_code": None, "error_message": None}


def results(held: Held, batch: Batch) -> dict[str, Any]:
    files = {"output_dataset": batch.output_file_id, "error_dataset": batch.error_file_id}
    return progress(held, batch) | files


def progress(held: Held, batch: Batch) -> dict[str, Any]:
    """Columns of counts and tokens that have changed."""
    counts, usage = held.job.request_counts, held.job.usage
    now = {
        "total_count": (counts.total, batch.total_count or counts.total),
        "completed_count": (counts.completed, batch.completed_count),
        "failed_count": (counts.failed, batch.failed_count),
        **{name: (getattr(usage, name), getattr(batch.usage, name)) for name in usage.__dataclass_fields__},
    }
    return {name: after for name, (before, after) in now.items() if before != after}
