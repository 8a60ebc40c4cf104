"""Starting, stopping and failing together."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from types import FrameType
from typing import Any, TypeVar

T = TypeVar("T")


@asynccontextmanager
async def background(*loops: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Run `loops` for the length of the block. If one fails, the block is cancelled and the failure raised."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(loop) for loop in loops]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()


class _Remembering:
    signalled = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.signalled:
            raise KeyboardInterrupt
        self.signalled = True


@contextmanager
def remembering_signals() -> Iterator[None]:
    """A SIGINT or SIGTERM before anybody waits for it interrupts nothing: `until_signalled` returns at once later. A second
    one is a KeyboardInterrupt.

    Otherwise the first one is raised wherever the process happens to be, and there is code that swallows it. Main thread only.
    """
    remembering = _Remembering()
    old = {sig: signal.signal(sig, remembering) for sig in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for sig, handler in old.items():
            signal.signal(sig, handler)


async def until_signalled(also: asyncio.Event | None = None) -> None:
    """Return at SIGINT or SIGTERM, or when `also` is set."""
    stop = also or asyncio.Event()
    loop = asyncio.get_running_loop()
    before = signal.getsignal(signal.SIGINT)
    for sig in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(sig, stop.set)
    try:
        # Looked at only now: none is lost between the two handlers.
        if not (isinstance(before, _Remembering) and before.signalled):
            await stop.wait()
    finally:
        for sig in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(sig)


async def wait_for(event: asyncio.Event, seconds: float) -> bool:
    """Wait for `event` at most so long; whether it is set."""
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return event.is_set()
    return True


async def any_of(*events: asyncio.Event) -> None:
    """Wait for the first of them."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(event.wait()) for event in events]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()


def innermost(error: BaseException) -> BaseException:
    """The first error of a group, however deep it lies."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


async def uninterrupted(work: Coroutine[Any, Any, T]) -> T:
    """Let `work` end, also if the caller is cancelled meanwhile; the cancel goes on after that. For short work only."""
    task = asyncio.get_running_loop().create_task(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        while not task.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait([task])
        if not task.cancelled():
            task.exception()  # looked at: the caller no longer wants it
        raise
