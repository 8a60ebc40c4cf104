"""The input as a stream of requests: ranges of some MiB by the line index, and nothing of what is committed already.

Memory does not depend on the number of lines: the index is read in blocks, the input in chunks, and lines are cut out of
a chunk one by one. Requests come in the order of the file; `_spans` is the place for another order.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence

import msgspec

from services.kit.lines import ENTRY, LineSet, LineSpan
from services.kit.objects import ObjectStore
from services.runner.patience import Patience

CHUNK_BYTES = 2 * 1024 * 1024
# Committed lines between two others are read along if they are fewer bytes than this.
GAP_BYTES = 64 * 1024
BLOCK_LINES = 16_384


class _Line(msgspec.Struct):
    custom_id: msgspec.Raw
    body: msgspec.Raw


_decode = msgspec.json.Decoder(_Line).decode


class Request:
    """One line, on its way. A plain class: there is one for every line of a batch."""

    __slots__ = ("attempts", "body", "custom_id", "number", "size", "waits")

    def __init__(self, number: int, custom_id: bytes, body: bytes, size: int) -> None:
        self.number = number
        self.custom_id = custom_id
        """JSON, as it stands in the line."""
        self.body = body
        """JSON, as it stands in the line: what is sent."""
        self.size = size
        self.attempts = 0
        self.waits = 0
        """How often it found no healthy endpoint."""


class Chunk:
    """Some lines and the bytes they stand in."""

    def __init__(self, spans: Sequence[LineSpan], data: bytes) -> None:
        self._spans = spans
        self._data = memoryview(data)
        self.size = sum(span.length for span in spans)

    def __iter__(self) -> Iterator[Request]:
        start = self._spans[0].offset
        for span in self._spans:
            offset = span.offset - start
            line = _decode(self._data[offset : offset + span.length])
            yield Request(span.number, bytes(line.custom_id), bytes(line.body), span.length)


class RequestStream:
    """The requests of one batch that are not `committed`. May be read more than once."""

    def __init__(
        self,
        store: ObjectStore,
        patience: Patience,
        input_key: str,
        index_key: str,
        line_count: int,
        committed: LineSet,
    ) -> None:
        self._store = store
        self._patience = patience
        self._input_key = input_key
        self._index_key = index_key
        self._line_count = line_count
        # As bytes: asking an integer of this size for one bit copies all of it.
        self._committed = committed.to_bytes()

    async def chunks(self) -> AsyncIterator[Chunk]:
        """Error: NotFound, if the input or its index is gone."""
        spans: list[LineSpan] = []
        async for span in self._spans():
            if spans and not _together(spans, span):
                yield await self._load(spans)
                spans = []
            spans.append(span)
        if spans:
            yield await self._load(spans)

    async def _spans(self) -> AsyncIterator[LineSpan]:
        for first in range(0, self._line_count, BLOCK_LINES):
            count = min(BLOCK_LINES, self._line_count - first)
            if self._all_committed(first, count):
                continue
            for span in _entries(first, await self._range(self._index_key, first * ENTRY.size, count * ENTRY.size)):
                if not self._is_committed(span.number):
                    yield span

    async def _load(self, spans: list[LineSpan]) -> Chunk:
        start = spans[0].offset
        return Chunk(spans, await self._range(self._input_key, start, spans[-1].offset + spans[-1].length - start))

    async def _range(self, key: str, start: int, length: int) -> bytes:
        return await self._patience.until_done(lambda: self._store.get_range(key, start, length))

    def _is_committed(self, line: int) -> bool:
        place = line >> 3
        return place < len(self._committed) and bool(self._committed[place] >> (line & 7) & 1)

    def _all_committed(self, first: int, count: int) -> bool:
        """Only whole bytes are looked at: blocks start at a multiple of eight."""
        whole = self._committed[first >> 3 : (first + count) >> 3]
        return count % 8 == 0 and len(whole) == count >> 3 and whole.count(0xFF) == len(whole)


def _entries(first: int, data: bytes) -> Iterator[LineSpan]:
    for place, (offset, length) in enumerate(ENTRY.iter_unpack(data)):
        yield LineSpan(first + place, offset, length)


def _together(spans: list[LineSpan], span: LineSpan) -> bool:
    """Whether one read should cover them: near to each other, and not too much."""
    last = spans[-1]
    gap = span.offset - (last.offset + last.length)
    return 0 <= gap <= GAP_BYTES and span.offset + span.length - spans[0].offset <= CHUNK_BYTES
