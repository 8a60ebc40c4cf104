"""Takes leases while there are free slots, and runs them. Any runner may take over any batch, so there is nothing to keep.

Two ways to end: `drain` lets executions commit and hand back what they hold; a cancel drops it, as a crash would.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import structlog

from services.kit import clock
from services.kit.errors import ServiceError
from services.kit.lifecycle import background, wait_for
from services.kit.objects import ObjectStore
from services.kit.settings import Runner
from services.runner.domain import Lease
from services.runner.execution import Execution
from services.runner.leases import Leases
from services.runner.orphans import Orphans
from services.runner.runtimes.base import Runtime
from services.runner.service import RunnerService

WAIT_S = 20.0
AFTER_ERROR_S = 1.0
# Committing and handing back may take this much longer than requests in flight.
DRAIN_MARGIN_S = 15.0

log = structlog.get_logger(__name__)


class LeaseLoop:
    def __init__(
        self,
        service: RunnerService,
        leases: Leases,
        store: ObjectStore,
        runtimes: Mapping[str, Runtime],
        settings: Runner,
    ) -> None:
        self._service = service
        self._leases = leases
        self._store = store
        self._runtimes = runtimes
        self._settings = settings
        self._orphans = Orphans(runtimes, leases)
        self._slots = asyncio.Semaphore(service.slot_count)
        self._stopping = asyncio.Event()
        self.ended = asyncio.Event()

    async def run(self) -> None:
        """Until drained."""
        await self._orphans.release_own()
        async with background(self._orphans.run()), asyncio.TaskGroup() as group:
            taker = group.create_task(self._take(group))
            stopper = group.create_task(self._stop(taker))
            await asyncio.wait([taker])
            stopper.cancel()
        self.ended.set()

    async def drain(self) -> None:
        """Take no more leases, and return when those that are held are handed back."""
        self._service.draining = True
        self._stopping.set()
        for execution in self._service.executions:
            execution.drain(self._service.shared_targets)
        if not await wait_for(self.ended, self._settings.drain_s + DRAIN_MARGIN_S):
            log.warning("drain took too long, work in flight is dropped", held=len(self._service.executions))

    async def _stop(self, taker: asyncio.Task[None]) -> None:
        await self._stopping.wait()
        taker.cancel()

    async def _take(self, group: asyncio.TaskGroup) -> None:
        while not self._stopping.is_set():
            await self._slots.acquire()
            sent_at = clock.monotonic()
            try:
                lease = await self._leases.acquire(self._service.targets, WAIT_S)
            except ServiceError as error:
                log.warning("no lease, trying again", error=error.message)
                lease = None
                await wait_for(self._stopping, AFTER_ERROR_S)
            if lease is None:
                self._slots.release()
                continue
            group.create_task(self._hold(lease, sent_at))

    async def _hold(self, lease: Lease, sent_at: float) -> None:
        try:
            with structlog.contextvars.bound_contextvars(batch_id=lease.batch_id):
                execution = Execution(self._leases, lease, sent_at, self._store, self._runtimes, self._settings)
                self._service.executions.add(execution)
                if self._stopping.is_set():
                    execution.drain(self._service.shared_targets)
                try:
                    await execution.run()
                finally:
                    self._service.executions.discard(execution)
        finally:
            self._slots.release()
