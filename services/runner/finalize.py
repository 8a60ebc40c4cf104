"""The result files of a batch: its segments one after the other, and error lines for what was not run, in constant memory.

Nothing here is wrong when done twice: the files get keys with our token, and a batch names them only once it is finished.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from services.kit.objects import ObjectStore
from services.runner.domain import Failure, ResultFile, Segment
from services.runner.held import HeldLease
from services.runner.leases import Leases
from services.runner.patience import Patience
from services.runner.records import failure_line
from services.runner.requests import RequestStream

# Small objects are fetched together: up to so many, and so many bytes. A larger one is streamed by itself.
WINDOW_COUNT = 32
WINDOW_BYTES = 16 * 1024 * 1024
# Error lines are handed on in pieces of about this size.
PIECE_BYTES = 1024 * 1024


@dataclass(frozen=True)
class _Part:
    key: str
    bytes: int


@dataclass
class _Count:
    lines: int = 0


class Finalizer:
    def __init__(
        self,
        store: ObjectStore,
        leases: Leases,
        held: HeldLease,
        patience: Patience,
        unfinished: Callable[[], RequestStream],
    ) -> None:
        """`unfinished` gives the lines that are not committed."""
        self._store = store
        self._leases = leases
        self._held = held
        self._patience = patience
        self._unfinished = unfinished
        self._written: dict[tuple[str, int, Failure | None], ResultFile | None] = {}

    async def write(self, rest: Failure | None) -> tuple[ResultFile | None, ResultFile | None]:
        """The output and the error file. `rest`: what stands in the error line of a line that is not committed."""
        async with asyncio.TaskGroup() as group:
            output = group.create_task(self._file("output", None))
            error = group.create_task(self._file("error", rest))
        return output.result(), error.result()

    async def _file(self, kind: str, rest: Failure | None) -> ResultFile | None:
        """A file that was written before is not written again, if no line was committed since."""
        written = (kind, len(self._held.committed), rest)
        if written not in self._written:
            self._written[written] = await self._patience.until_done(lambda: self._write(kind, rest))
        return self._written[written]

    async def _write(self, kind: str, rest: Failure | None) -> ResultFile | None:
        count = _Count()
        key = f"results/{self._held.batch_id}/{self._held.token}/{kind}.jsonl"
        chunks = self._content(kind, rest, count)
        first = await anext(chunks, None)
        if first is None:
            return None
        size = await self._store.put_stream(key, _with_first(first, chunks))
        return ResultFile(object_key=key, bytes=size, line_count=count.lines)

    async def _content(self, kind: str, rest: Failure | None, count: _Count) -> AsyncIterator[bytes]:
        window: list[_Part] = []
        async for part in self._parts(kind, count):
            if window and (len(window) == WINDOW_COUNT or sum(p.bytes for p in window) + part.bytes > WINDOW_BYTES):
                yield await self._fetch(window)
                window = []
            if part.bytes > WINDOW_BYTES:
                async for chunk in self._store.stream(part.key, 0, part.bytes):
                    yield chunk
                continue
            window.append(part)
        if window:
            yield await self._fetch(window)
        if rest is not None:
            async for piece in self._rest(rest, count):
                yield piece

    async def _parts(self, kind: str, count: _Count) -> AsyncIterator[_Part]:
        async for segment in self._leases.segments(self._held.batch_id, self._held.token):
            key, size, lines = _part(segment, kind)
            if key is not None:
                count.lines += lines
                yield _Part(key, size)

    async def _fetch(self, window: list[_Part]) -> bytes:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._get(part.key)) for part in window]
        return b"".join(task.result() for task in tasks)

    async def _get(self, key: str) -> bytes:
        return await self._patience.until_done(lambda: self._store.get(key))

    async def _rest(self, failure: Failure, count: _Count) -> AsyncIterator[bytes]:
        lines: list[bytes] = []
        size = 0
        async for chunk in self._unfinished().chunks():
            for request in chunk:
                line = failure_line(request.custom_id, failure.code, failure.message)
                lines.append(line)
                size += len(line)
                count.lines += 1
                if size >= PIECE_BYTES:
                    yield b"".join(lines)
                    lines, size = [], 0
        if lines:
            yield b"".join(lines)


def _part(segment: Segment, kind: str) -> tuple[str | None, int, int]:
    if kind == "output":
        return segment.output_key, segment.output_bytes, segment.completed_count
    return segment.error_key, segment.error_bytes, segment.failed_count


async def _with_first(first: bytes, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for chunk in chunks:
        yield chunk
