"""Drives jobs: takes those that are due, each under a lease, and goes on with one until it has to wait for something."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta

import structlog

from services.kit.errors import ServiceError, Unavailable
from services.kit.ids import new_id
from services.kit.settings import Settings
from services.kit.transactions import Transactions, Tx
from services.planner import metrics
from services.planner.service.before import Before
from services.planner.service.changes import Change, Writer, later
from services.planner.service.ending import Ending
from services.planner.service.following import Following
from services.planner.states import LIVE, TERMINAL, WITH_BATCH, JobState
from services.planner.store import jobs, leases
from services.planner.store.jobs import Held

# Seconds until the next try: after metadata or the database did not answer, and after an error of our own.
REST_S = 2.0
LONG_REST_S = 30.0
# Batches that a planner looks at in a second, at most; where there are more, each is looked at more rarely.
LOOKS_PER_SECOND = 20

log = structlog.get_logger(__name__)


class AdvanceService:
    def __init__(
        self,
        transactions: Transactions,
        writer: Writer,
        before: Before,
        following: Following,
        ending: Ending,
        settings: Settings,
    ) -> None:
        self.transactions = transactions
        self.writer = writer
        self.following = following
        self.poll_s = settings.planner.poll_s
        self.ttl = timedelta(seconds=settings.planner.lease_ttl_s)
        self.owner = new_id("planner:")
        self.queue_waits = False
        """Whether a job waited for the policy at the last look."""
        self._mine: set[str] = set()
        # Where there were as many as we had room for, there may be more. Otherwise a look costs no write lock.
        self._found = False
        self._steps: dict[JobState, Callable[[Held], Awaitable[Change]]] = {
            JobState.QUEUED: before.queued,
            JobState.PLANNED: before.planned,
            JobState.RESOURCE_PREPARING: before.preparing,
            JobState.SUBMITTING: before.submitting,
            JobState.CANCELLING: following.cancelling,
            **dict.fromkeys(WITH_BATCH, following.follow),
            **dict.fromkeys(TERMINAL, ending.give_back),
        }

    async def take(self, most: int) -> Sequence[Held]:
        """Lease jobs that are due, at most so many. The caller acts on each of them."""
        if not self._found:
            due, self.queue_waits = await self.transactions.read(leases.look)
            if not due:
                return []

        async def work(tx: Tx) -> Sequence[Held]:
            return await leases.take(tx, self.owner, self.ttl, most)

        taken = await self.transactions.write(work)
        self._found = len(taken) == most
        self._mine.update(held.job.id for held in taken)
        return taken

    async def act(self, held: Held) -> None:
        """Go on with a job until it has to wait, or has ended and its compute is gone. Raises nothing of its own."""
        try:
            with metrics.STEP_SECONDS.time():
                await self._go_on(held)
        except ServiceError as error:
            log.warning("a job is left until its lease ends", job_id=held.job.id, error=error.message)
        except Exception:
            log.exception("a job is left until its lease ends", job_id=held.job.id)
        self._mine.discard(held.job.id)  # not where we are cancelled: see `stop`

    async def _go_on(self, held: Held) -> None:
        while True:
            change = await self._step(held)
            after = await self.writer.write(held, change)
            if after is None:  # cancelled meanwhile, or taken over
                await self.writer.let_go(held)
                return
            if after.job.status is not held.job.status:
                said = {"job_id": after.job.id, "status": after.job.status, "attempt": after.attempt}
                log.info("job moved", **said, error_code=after.job.error_code)
            if change.due is not None or change.rests or (after.job.status in TERMINAL and change.moves):
                return
            held = after

    async def _step(self, held: Held) -> Change:
        """What is to be done next, after doing what has no transaction: every such call may be repeated."""
        try:
            return await self._steps[held.job.status](held)
        except Unavailable as error:
            log.warning("a job is put off", job_id=held.job.id, status=held.job.status, error=error.message)
            return later(held, REST_S)
        except ServiceError as error:
            log.warning("a step failed", job_id=held.job.id, reason=error.reason, error=error.message)
            return later(held, LONG_REST_S)
        except Exception:
            log.exception("a step broke", job_id=held.job.id, status=held.job.status)
            return later(held, LONG_REST_S)

    async def renew(self) -> None:
        """Keep what this process acts on."""
        if not self._mine:
            return

        async def work(tx: Tx) -> int:
            return await leases.renew(tx, self.owner, self._mine, self.ttl)

        await self.transactions.write(work)

    async def wake_waiting(self) -> None:
        """Go on with jobs whose compute is ready, or will never be, or is gone."""
        if await self.transactions.write(leases.wake_waiting):
            self.writer.bells.to_act.ring()
        if await self.transactions.write(leases.wake_resting):
            self.writer.bells.to_plan.ring()

    async def stop(self) -> None:
        """The process ends: others need not wait until its leases run out. Nothing acts on a job any more."""

        if not self._mine:
            return

        async def work(tx: Tx) -> int:
            return await leases.let_go_all(tx, self.owner, self._mine)

        try:
            await self.transactions.write(work)
        except ServiceError as error:
            log.warning("leases were not let go, they will run out", error=error.message)

    async def count(self) -> None:
        """Set the gauges, and how often batches are looked at."""

        async def work(tx: Tx) -> dict[JobState, int]:
            return dict(await jobs.count_live(tx, LIVE))

        counted = await self.transactions.read(work)
        for state in LIVE:
            metrics.LIVE.labels(state.lower()).set(counted.get(state, 0))
        followed = sum(counted.get(state, 0) for state in WITH_BATCH)
        self.following.look_s = max(self.poll_s, followed / LOOKS_PER_SECOND)
