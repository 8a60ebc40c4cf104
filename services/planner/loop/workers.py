"""Acts on due jobs side by side: so many at once, the next as soon as there is room."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol

import structlog

from services.kit.errors import ServiceError
from services.kit.lifecycle import wait_for
from services.planner.service.bells import Bells
from services.planner.store.jobs import Held

# Seconds to wait after the database failed.
PAUSE_S = 1.0
# Jobs that come to rest within this time make room at once: the next ones are taken together.
GAP_S = 0.01

log = structlog.get_logger(__name__)


class Work(Protocol):
    queue_waits: bool
    """Whether a job waited for the policy when `take` looked last."""

    async def take(self, most: int) -> Sequence[Held]: ...

    async def act(self, held: Held) -> None: ...


async def workers(work: Work, bells: Bells, count: int, look_s: float) -> None:
    """For ever. `look_s`: seconds between two looks at the database for what other replicas left to do."""
    busy: set[asyncio.Task[None]] = set()

    def done(task: asyncio.Task[None]) -> None:
        busy.discard(task)
        bells.to_act.ring()

    async with asyncio.TaskGroup() as group:
        while True:
            rung = bells.to_act.listen()
            taken = await _take(work, count - len(busy))
            for held in taken or ():
                task = group.create_task(work.act(held))
                busy.add(task)
                task.add_done_callback(done)
            if taken is None:
                await asyncio.sleep(PAUSE_S)
                continue
            if busy:
                await asyncio.sleep(GAP_S)
            if not await wait_for(rung, look_s) and work.queue_waits:
                bells.to_plan.ring()  # a place may have become free on another replica


async def _take(work: Work, room: int) -> Sequence[Held] | None:
    """None: the database failed."""
    if room <= 0:
        return []
    try:
        return await work.take(room)
    except ServiceError as error:
        log.warning("due jobs cannot be taken, trying again", error=error.message)
    except Exception:
        log.exception("due jobs cannot be taken, trying again")
    return None
