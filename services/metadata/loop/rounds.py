"""A loop that does not end: an outage of the database or the object store is logged, and the next round comes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from services.kit.errors import ServiceError
from services.kit.lifecycle import wait_for
from services.metadata.service.bells import Bell

Step = Callable[[], Awaitable[object]]
# Seconds to wait after a round that failed.
PAUSE_S = 1.0

log = structlog.get_logger(__name__)


async def attempt(step: Step) -> bool:
    """Run one step; whether it ended well."""
    try:
        await step()
    except ServiceError as error:
        log.warning("background step failed, trying again", step=step.__name__, error=error.message)
        return False
    except Exception:
        log.exception("background step broke, trying again", step=step.__name__)
        return False
    return True


async def every(seconds: float, bell: Bell, *steps: Step) -> None:
    """Run `steps` one after the other, every so often and whenever `bell` rings. One that fails stops no other."""
    while True:
        rung = bell.listen()
        for step in steps:
            await attempt(step)
        await wait_for(rung, seconds)


async def as_long_as_there_is(work: Callable[[], Awaitable[bool]], bell: Bell, seconds: float) -> None:
    """Run `work` until it says that there is none, then wait for `bell`, or so long."""
    while True:
        rung = bell.listen()
        found = False

        async def step() -> None:
            nonlocal found
            found = await work()

        if not await attempt(step):
            await asyncio.sleep(PAUSE_S)
        elif not found:
            await wait_for(rung, seconds)
