"""A part of the process on an event loop in a thread of its own, so that its work never holds up the rest."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from typing import Generic, TypeVar

import uvloop

from services.kit.lifecycle import background, uninterrupted

T = TypeVar("T")


@asynccontextmanager
async def in_own_loop(name: str, make: Callable[[], AbstractAsyncContextManager[T]]) -> AsyncIterator[T]:
    """Hold `make()` open in a new thread `name` for the length of the block; yields what it yields.

    If it fails, before, during or after the block, its error is raised here, and the block is cancelled. At the end of
    the block, or when its start is cancelled, it is left in its own thread and waited for.
    """
    part = _Part(make)
    thread = threading.Thread(target=part.run, name=name)
    thread.start()
    try:
        value = await part.value()
        async with background(part.until_ended()):
            yield value
    finally:
        part.leave()
        await uninterrupted(part.wait())
        thread.join()
    part.raise_failure()


class _Part(Generic[T]):
    """What the two threads tell each other. `run` and `_hold` are the new thread's; the rest is the old one's."""

    def __init__(self, make: Callable[[], AbstractAsyncContextManager[T]]) -> None:
        self._make = make
        self._here = asyncio.get_running_loop()
        self._there = uvloop.new_event_loop()
        self._leave = asyncio.Event()
        self._entering: asyncio.Task[None] | None = None
        self._entered: asyncio.Future[T] = self._here.create_future()
        self._ended: asyncio.Future[BaseException | None] = self._here.create_future()

    def run(self) -> None:
        failure: BaseException | None = None
        try:
            with asyncio.Runner(loop_factory=lambda: self._there) as runner:
                runner.run(self._hold())
        except asyncio.CancelledError:
            failure = None  # its start was given up, as was asked
        except BaseException as error:  # noqa: BLE001 - whatever it is, the other thread raises it
            failure = error
        self._here.call_soon_threadsafe(self._ended.set_result, failure)

    async def _hold(self) -> None:
        if self._leave.is_set():
            return
        self._entering = asyncio.current_task()
        async with self._make() as value:
            self._entering = None
            self._here.call_soon_threadsafe(self._entered.set_result, value)
            await self._leave.wait()

    def _on_leave(self) -> None:
        self._leave.set()
        if self._entering is not None:
            self._entering.cancel()

    async def value(self) -> T:
        await asyncio.wait((self._entered, self._ended), return_when=asyncio.FIRST_COMPLETED)
        if not self._entered.done():
            self.raise_failure()
        return self._entered.result()

    async def until_ended(self) -> None:
        await self.wait()
        self.raise_failure()

    async def wait(self) -> None:
        await asyncio.wait((self._ended,))

    def leave(self) -> None:
        with suppress(RuntimeError):  # its loop is closed: it has ended by itself
            self._there.call_soon_threadsafe(self._on_leave)

    def raise_failure(self) -> None:
        if failure := self._ended.result():
            raise failure
