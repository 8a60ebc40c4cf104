"""A loop that does not end: an outage of the database or of metadata is logged, and the next round comes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from services.kit.errors import ServiceError
from services.kit.lifecycle import wait_for

Step = Callable[[], Awaitable[object]]

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


async def every(seconds: float, listen: Callable[[], asyncio.Event], step: Step, gap: float = 0.0) -> None:
    """Run `step` every so often, and whenever the bell of `listen` rings; rings within `gap` seconds count as one."""
    while True:
        rung = listen()
        await attempt(step)
        await asyncio.sleep(gap)
        await wait_for(rung, seconds)
