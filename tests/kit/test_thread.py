"""A part in a thread of its own begins, ends and fails together with the block that holds it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from services.kit.lifecycle import background
from services.kit.thread import in_own_loop


class Part:
    """Remembers where it ran and how it ended."""

    def __init__(self) -> None:
        self.thread: threading.Thread | None = None
        self.left = False
        self.begins = threading.Event()

    @asynccontextmanager
    async def run(self, error: Exception | None = None, when: str = "") -> AsyncIterator[str]:
        self.thread = threading.current_thread()
        if when == "before":
            raise error or AssertionError
        async with background(self._fail(error)) if when == "during" and error else background():
            try:
                yield "value"
            finally:
                self.left = True
        if when == "after":
            raise error or AssertionError

    @asynccontextmanager
    async def never(self) -> AsyncIterator[str]:
        self.thread = threading.current_thread()
        self.begins.set()
        try:
            await asyncio.Event().wait()
            yield "never"
        finally:
            self.left = True

    async def _fail(self, error: Exception) -> None:
        raise error


async def test_it_runs_elsewhere_and_is_left_with_the_block() -> None:
    part = Part()
    async with in_own_loop("part", part.run) as value:
        assert value == "value"
        assert part.thread is not None
        assert part.thread is not threading.current_thread()
        assert not part.left
    assert part.left
    assert not part.thread.is_alive()


async def hold(part: Part, error: Exception | None, when: str) -> None:
    async with in_own_loop("part", lambda: part.run(error, when)):
        if when == "during":
            await asyncio.Event().wait()


@pytest.mark.parametrize("when", ["before", "during", "after"])
async def test_its_failure_is_ours(when: str) -> None:
    part = Part()
    with pytest.raises((OSError, ExceptionGroup)) as raised:
        await hold(part, OSError("broken"), when)
    assert "broken" in str(raised.value) or raised.group_contains(OSError, match="broken")
    assert part.thread is not None
    assert not part.thread.is_alive()


async def test_our_failure_ends_it() -> None:
    part = Part()
    with pytest.raises(ExceptionGroup) as raised:
        async with in_own_loop("part", part.run):
            raise KeyError
    assert raised.group_contains(KeyError)
    assert part.left


async def test_a_cancelled_start_leaves_no_thread() -> None:
    part = Part()

    async def start() -> None:
        async with in_own_loop("part", part.never):
            raise AssertionError

    async with asyncio.TaskGroup() as group:
        task = group.create_task(start())
        await asyncio.to_thread(part.begins.wait)
        task.cancel()
    assert part.left
    assert part.thread is not None
    assert not part.thread.is_alive()
