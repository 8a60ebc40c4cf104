"""Engines whose batch has ended, and that wait a while for the next one of its kind: a model is not loaded twice."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import structlog

from services.runner.runtimes.base import Handle

log = structlog.get_logger(__name__)


@dataclass
class _Left:
    handle: Handle
    timer: asyncio.Task[None]


class Kept:
    def __init__(self, release: Callable[[Handle], Awaitable[None]]) -> None:
        """`release` ends an engine for which no batch came in time."""
        self._release = release
        self._left: dict[str, _Left] = {}
        self._timers: set[asyncio.Task[None]] = set()

    def leave(self, kind: str, handle: Handle, seconds: float) -> None:
        """Keep it for the next batch of `kind`, instead of the one that was kept before."""
        earlier = self._left.pop(kind, None)
        if earlier is not None:
            earlier.timer.cancel()
            _ = self._expire(kind, earlier.handle, 0.0)
        self._left[kind] = _Left(handle, self._expire(kind, handle, seconds))

    def take(self, kind: str) -> Handle | None:
        """What was left, for good: whoever takes it releases it."""
        left = self._left.pop(kind, None)
        if left is None:
            return None
        left.timer.cancel()
        return left.handle

    def close(self) -> None:
        """Forget all of it: whoever calls ends the engines."""
        for timer in self._timers:
            timer.cancel()
        self._left.clear()

    async def clear(self) -> None:
        """End all that is kept: something else needs its room."""
        for kind in list(self._left):
            handle = self.take(kind)
            if handle is not None:
                await self._release(handle)

    def _expire(self, kind: str, handle: Handle, seconds: float) -> asyncio.Task[None]:
        async def expire() -> None:
            await asyncio.sleep(seconds)
            left = self._left.get(kind)
            if left is not None and left.handle is handle:
                del self._left[kind]
            try:
                await self._release(handle)
            except Exception:
                log.exception("an engine that nobody waits for was not ended")

        timer = asyncio.get_running_loop().create_task(expire())
        self._timers.add(timer)  # the loop itself holds tasks only weakly
        timer.add_done_callback(self._timers.discard)
        return timer
