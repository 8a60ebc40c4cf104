"""The input as a stream."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.kit.errors import NotFound
from services.kit.lines import ENTRY, LineSet
from services.kit.objects import ObjectStore, open_store
from services.runner.patience import Patience
from services.runner.requests import BLOCK_LINES, CHUNK_BYTES, Request, RequestStream
from tests.runner.platform import a_line, settings_for


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    return open_store(settings_for(tmp_path))


async def stored(store: ObjectStore, lines: list[bytes]) -> None:
    index, offset = bytearray(), 0
    for line in lines:
        text = line.rstrip(b"\n")
        if text:
            index += ENTRY.pack(offset, len(text))
        offset += len(line)
    await store.put("files/in", b"".join(lines))
    await store.put("indexes/in", bytes(index))


def stream(store: ObjectStore, count: int, committed: LineSet | None = None) -> RequestStream:
    return RequestStream(store, Patience(), "files/in", "indexes/in", count, committed or LineSet())


async def read(requests: RequestStream) -> list[Request]:
    return [request async for chunk in requests.chunks() for request in chunk]


async def test_lines_come_as_they_stand_in_the_file(store: ObjectStore) -> None:
    lines = [
        b'{"custom_id": "a\\u00e9" , "method":"POST","url":"/v1/x", "body": {"a" : 1.0, "b":"\\n"} }\n',
        b"\n",
        b'{"body":{},"custom_id":"b"}',
    ]
    await stored(store, lines)
    first, second = await read(stream(store, 2))
    assert (first.number, first.custom_id, first.body) == (0, b'"a\\u00e9"', b'{"a" : 1.0, "b":"\\n"}')
    assert (second.number, second.custom_id, second.body) == (1, b'"b"', b"{}")


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sets(st.integers(0, 199)))
async def test_committed_lines_are_left_out(store: ObjectStore, committed: set[int]) -> None:
    await stored(store, [a_line(number) for number in range(200)])
    numbers = [request.number for request in await read(stream(store, 200, LineSet.of(committed)))]
    assert numbers == [number for number in range(200) if number not in committed]


async def test_what_is_wholly_committed_is_not_read(store: ObjectStore) -> None:
    lines = [a_line(number, text="x" * 20_000) for number in range(500)]
    await stored(store, lines)
    chunks = [chunk async for chunk in stream(store, 500, LineSet.of(range(5, 490))).chunks()]
    assert [request.number for chunk in chunks for request in chunk] == [*range(5), *range(490, 500)]
    assert sum(chunk.size for chunk in chunks) < 320_000
    assert len(chunks) == 2


async def test_a_committed_block_of_the_index_is_not_read(store: ObjectStore) -> None:
    count = BLOCK_LINES + 3
    await stored(store, [b'{"custom_id":"%d","body":{}}\n' % number for number in range(count)])
    numbers = [request.number for request in await read(stream(store, count, LineSet.first_n(BLOCK_LINES)))]
    assert numbers == [BLOCK_LINES, BLOCK_LINES + 1, BLOCK_LINES + 2]


async def test_a_line_longer_than_a_chunk_is_a_chunk(store: ObjectStore) -> None:
    await stored(store, [a_line(0, text="x" * (2 * CHUNK_BYTES)), a_line(1)])
    assert [request.number for request in await read(stream(store, 2))] == [0, 1]


async def test_a_missing_input_is_an_error(store: ObjectStore) -> None:
    with pytest.raises(NotFound):
        await read(stream(store, 1))


async def test_memory_does_not_grow_with_the_number_of_lines(store: ObjectStore) -> None:
    count = 200_000
    await stored(store, [b'{"custom_id":"%d","body":{"messages":"%060d"}}\n' % (n, n) for n in range(count)])
    tracemalloc.start()
    try:
        seen = 0
        async for chunk in stream(store, count).chunks():
            for _ in chunk:
                seen += 1
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert seen == count
    assert peak < 24 * 1024 * 1024
