"""A part of the process on an event loop in a thread of its own, so that its work never holds up the rest."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TypeVar

import uvloop

from services.kit.lifecycle import background

T = TypeVar("T")


@asynccontextmanager
async def in_own_loop(name: str, make: Callable[[], AbstractAsyncContextManager[T]]) -> AsyncIterator[T]:
    """Hold `make()` open in a new thread `name` for the length of the block; yields what it yields.

    If it fails, before or during the block, its error is raised here and the block is cancelled. At the end of the block
    it is left in its own thread, and waited for.
    """
    here = asyncio.get_running_loop()
    entered: asyncio.Future[tuple[T, Callable[[], None]]] = here.create_future()
    ended: asyncio.Future[None] = here.create_future()

    async def hold() -> None:
        there, leave = asyncio.get_running_loop(), asyncio.Event()
        async with make() as value:
            here.call_soon_threadsafe(_settle, entered, (value, lambda: there.call_soon_threadsafe(leave.set)))
            await leave.wait()

    def run() -> None:
        failure: BaseException | None = None
        try:
            uvloop.run(hold())
        except BaseException as error:
            failure = error
        here.call_soon_threadsafe(_settle, ended, None, failure)

    thread = threading.Thread(target=run, name=name)
    thread.start()
    await asyncio.wait((entered, ended), return_when=asyncio.FIRST_COMPLETED)
    if not entered.done():
        await ended  # raises why
        raise RuntimeError(f"{name} ended before it began")
    value, leave = entered.result()
    try:
        async with background(_until(ended)):
            yield value
    finally:
        if not ended.done():
            leave()
        await asyncio.shield(ended)
        thread.join()


async def _until(ended: asyncio.Future[None]) -> None:
    await asyncio.shield(ended)


def _settle(future: asyncio.Future[T], value: T, failure: BaseException | None = None) -> None:
    if future.done():
        return
    if failure is not None:
        future.set_exception(failure)
    else:
        future.set_result(value)
