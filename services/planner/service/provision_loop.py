"""Runs the steps of provisions side by side, and the rounds of the reconciler, for ever."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from services.kit.errors import ServiceError, StaleLease, Unavailable
from services.kit.lifecycle import background, wait_for
from services.planner.resource_manager.choice import Work
from services.planner.service.provision_ledger import Ledger

# Provisions that one planner acts on at once. A step mostly waits for a provider.
MOST_AT_ONCE = 32
# Seconds to wait after the database failed.
PAUSE_S = 1.0

log = structlog.get_logger(__name__)


class Dispatcher:
    def __init__(self, ledger: Ledger, step: Callable[[Work], Awaitable[None]], poll_s: float) -> None:
        self.ledger = ledger
        self.step = step
        self.poll_s = poll_s

    async def run(self) -> None:
        """Lease what is due, as far as there is room, and step it; then wait for a bell, or for the next poll."""
        busy: set[asyncio.Task[None]] = set()
        async with asyncio.TaskGroup() as group:
            while True:
                rung = self.ledger.due.listen()
                leased = await self._lease(MOST_AT_ONCE - len(busy))
                for work in leased or ():
                    task = group.create_task(self.held(work))
                    busy.add(task)
                    task.add_done_callback(busy.discard)
                    task.add_done_callback(lambda _: self.ledger.due.ring())
                if leased is None:
                    await asyncio.sleep(PAUSE_S)
                elif not leased:
                    await wait_for(rung, self.poll_s)

    async def work_due(self) -> int:
        """Step all that is due now, once; how many there were."""
        leased = await self.ledger.lease_due(MOST_AT_ONCE)
        async with asyncio.TaskGroup() as group:
            for work in leased:
                group.create_task(self.held(work))
        return len(leased)

    async def _lease(self, room: int) -> list[Work] | None:
        """None: the database failed."""
        if room <= 0:
            return []
        try:
            return await self.ledger.lease_due(room)
        except ServiceError as error:
            log.warning("provisions cannot be leased, trying again", error=error.message)
        except Exception:
            log.exception("provisions cannot be leased, trying again")
        return None

    async def held(self, work: Work) -> None:
        """Do one step, and keep its lease meanwhile. What goes wrong is logged: it is due again when the lease ends."""
        id = work.provision.id
        try:
            async with background(self._keep(work)):
                await self.step(work)
        except* StaleLease:
            log.warning("a provision was taken over", provision_id=id)
        except* Unavailable as errors:
            log.warning("a step is put off", provision_id=id, error=str(errors.exceptions[0]))
        except* Exception:
            log.exception("a step broke", provision_id=id)

    async def _keep(self, work: Work) -> None:
        """Renew the lease until cancelled. Error: StaleLease."""
        while True:
            await asyncio.sleep(self.ledger.ttl.total_seconds() / 3)
            if not await self.ledger.renew(work):
                raise StaleLease("the token is not current", provision_id=work.provision.id)


async def every(seconds: float, work: Callable[[], Awaitable[None]]) -> None:
    """Run `work` at once and every so often. One that fails is logged, and comes again."""
    while True:
        try:
            await work()
        except ServiceError as error:
            log.warning("a round failed, trying again", round=work.__name__, error=error.message)
        except Exception:
            log.exception("a round broke, trying again", round=work.__name__)
        await asyncio.sleep(seconds)
