"""Waiting out other parts of the platform: what a batch has done must survive the minutes in which metadata or the
object store does not answer, or has no space left."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

import structlog

from services.kit.errors import ResourceExhausted, ServiceError, Unavailable

T = TypeVar("T")

FIRST_DELAY_S = 0.2
LONGEST_DELAY_S = 5.0
# An answer `internal error` may be a bug of ours: waiting for ever would hide it.
INTERNAL_ATTEMPTS = 8

log = structlog.get_logger(__name__)


class Patience:
    """Repeats calls until they are done. `waiting_for` says, for people, what is waited for; None: nothing."""

    def __init__(self) -> None:
        self.waiting_for: str | None = None

    async def until_done(self, call: Callable[[], Awaitable[T]]) -> T:
        """What `call` returns in the end. Other errors than outages are raised at once; a cancel ends the wait."""
        attempt = 0
        while True:
            try:
                result = await call()
            except ServiceError as error:
                attempt += 1
                if not _may_pass(error, attempt):
                    raise
                self._say(error)
                longest = min(LONGEST_DELAY_S, FIRST_DELAY_S * 2.0 ** min(attempt - 1, 10))
                await asyncio.sleep(random.uniform(longest / 2, longest))
            else:
                if self.waiting_for is not None:
                    self.waiting_for = None
                    log.info("storage is back, the batch goes on")
                return result

    def _say(self, error: ServiceError) -> None:
        if self.waiting_for is None:
            log.warning("the batch waits for storage", error=error.message, reason=error.reason)
        self.waiting_for = error.message


def _may_pass(error: ServiceError, attempt: int) -> bool:
    if isinstance(error, (Unavailable, ResourceExhausted)):
        return True
    return type(error) is ServiceError and attempt < INTERNAL_ATTEMPTS
