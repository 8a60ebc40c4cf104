"""What is left running for batches that have ended is given back, each by itself."""

from __future__ import annotations

import asyncio

from services.kit.lifecycle import background
from services.runner.orphans import Orphans
from services.runner.runtimes.base import RuntimeFailed


class Leftovers:
    target = "Shelf"
    shared_by_runners = True

    def __init__(self) -> None:
        self.here = [{"key": key} for key in ("stuck", "over", "live", "unknown")]
        self.released: list[str] = []
        self.done = asyncio.Event()

    async def list(self):
        return list(self.here)

    async def release(self, handle) -> None:
        if handle["key"] == "stuck":
            raise RuntimeFailed("somebody's finalizer", retryable=False)
        self.released.append(handle["key"])
        self.done.set()


class Ended:
    async def ended(self, keys):
        return {"stuck", "over"} & set(keys)


async def test_one_that_cannot_be_released_does_not_keep_the_others() -> None:
    runtime = Leftovers()
    async with asyncio.timeout(10), background(Orphans({"Shelf": runtime}, Ended()).run()):
        await runtime.done.wait()
    assert runtime.released == ["over"]
