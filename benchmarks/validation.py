"""Validating a large file against a bare loop of `orjson.loads` per line, and how long it blocks the event loop."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import orjson
from obstore.store import LocalStore

from benchmarks.support import Row
from benchmarks.transfer import MIB, large_file
from services.kit.objects import ObjectStore
from services.metadata.validation import Limits, check

LINES = 50_000


async def measure(folder: Path) -> list[Row]:
    source = folder / "large.jsonl"
    large_file(source, LINES)
    store = ObjectStore(LocalStore(folder))
    bare, ours, stalls = [], [], []
    for _ in range(3):
        bare.append(_bare(source))
        stall = Stall()
        async with stall:
            ours.append(await asyncio.to_thread(_ours, store, source.name))
        stalls.append(stall.longest)
    mine, theirs, blocked = sorted(ours)[1], sorted(bare)[1], sorted(stalls)[1]
    ratio = mine / theirs
    name = f"validate {LINES:,} lines in {source.stat().st_size / MIB:.0f} MiB"
    value = f"{blocked * 1000:.0f} ms"
    return [
        Row(name, f"{mine:.2f} s", f"{theirs:.2f} s", f"{ratio:.2f}", "<= 3.0", ratio <= 3),
        Row("event loop blocked meanwhile, longest", value, "", "", "<= 50 ms", blocked <= 0.05),
    ]


def _bare(source: Path) -> float:
    started = time.perf_counter()
    with source.open("rb") as lines:
        for line in lines:
            orjson.loads(line)
    return time.perf_counter() - started


def _ours(store: ObjectStore, key: str) -> float:
    started = time.perf_counter()
    limits = Limits(lines=LINES, line_bytes=10 * MIB)
    found = check(store.stream_sync(key), "/v1/chat/completions", limits)
    if found.errors or len(found.index) != LINES * 12:
        raise RuntimeError(f"the file is not valid: {found.errors[:1]}")
    return time.perf_counter() - started


class Stall:
    """The longest time for which the event loop did not come round."""

    def __init__(self) -> None:
        self.longest = 0.0

    async def __aenter__(self) -> None:
        self.group = asyncio.TaskGroup()
        await self.group.__aenter__()
        self.task = self.group.create_task(self._watch())

    async def __aexit__(self, *exc: object) -> None:
        self.task.cancel()
        await self.group.__aexit__(None, None, None)

    async def _watch(self) -> None:
        while True:
            before = time.perf_counter()
            await asyncio.sleep(0.001)
            self.longest = max(self.longest, time.perf_counter() - before - 0.001)
