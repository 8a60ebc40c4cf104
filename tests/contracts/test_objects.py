"""What an object store must do, on a local folder and on the S3 protocol."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from services.kit.errors import NotFound
from services.kit.objects import CHUNK, PART, ObjectStore, open_store
from services.kit.settings import Objects, Settings


@pytest.fixture(params=["local", "s3"])
def store(request: pytest.FixtureRequest, make_settings: Callable[..., Settings]) -> ObjectStore:
    if request.param == "local":
        return open_store(make_settings())
    return open_store(make_settings(objects=Objects(**request.getfixturevalue("s3_objects"))))


async def pieces(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


async def read(store: ObjectStore, key: str, *span: int) -> bytes:
    return b"".join([chunk async for chunk in store.stream(key, *span)])


async def test_what_goes_in_comes_out(store: ObjectStore) -> None:
    await store.put("a/one", b"hello")
    assert await store.get("a/one") == b"hello"
    assert await store.get_range("a/one", 1, 3) == b"ell"
    assert await store.get_range("a/one", 1, 0) == b""
    assert await read(store, "a/one", 2, 4) == b"ll"
    assert b"".join(store.stream_sync("a/one")) == b"hello"
    head = await store.head("a/one")
    assert (head.key, head.bytes) == ("a/one", 5)
    assert head.etag


async def test_a_stream_of_any_size_arrives_whole(store: ObjectStore) -> None:
    block = bytes(range(256)) * 4096
    count = 2 * PART // len(block) + 1
    assert await store.put_stream("a/large", pieces(*[block] * count, b"end")) == len(block) * count + 3
    assert await read(store, "a/large") == block * count + b"end"
    assert await read(store, "a/large", CHUNK - 1, CHUNK + 2) == (block * count)[CHUNK - 1 : CHUNK + 2]


async def test_an_empty_stream_is_an_empty_object(store: ObjectStore) -> None:
    assert await store.put_stream("a/empty", pieces()) == 0
    assert await read(store, "a/empty") == b""


async def test_a_stream_that_breaks_leaves_nothing(store: ObjectStore) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"x" * (PART + 1)
        raise ConnectionError("the client went away")

    with pytest.raises(ConnectionError, match="went away"):
        await store.put_stream("a/broken", broken())
    with pytest.raises(NotFound):
        await store.head("a/broken")
    assert [found async for found in store.list("a/")] == []


async def test_what_is_not_there(store: ObjectStore) -> None:
    for look in (store.get("no/such"), store.head("no/such"), store.get_range("no/such", 0, 1)):
        with pytest.raises(NotFound):
            await look
    await store.delete(["no/such"])


async def test_writing_again_replaces(store: ObjectStore) -> None:
    await store.put("a/one", b"first")
    await store.put("a/one", b"second")
    assert await store.get("a/one") == b"second"


async def test_list_and_delete_by_folder(store: ObjectStore) -> None:
    for key in ("a/1", "a/b/2", "ab/3"):
        await store.put(key, b"x")
    assert {found.key async for found in store.list("a/")} == {"a/1", "a/b/2"}
    await store.delete(["a/1", "a/b/2"])
    assert {found.key async for found in store.list("a/")} == set()
    assert await store.get("ab/3") == b"x"


def test_what_a_dead_writer_left_is_deleted_when_it_is_old(make_settings: Callable[..., Settings]) -> None:
    settings = make_settings()
    store = open_store(settings)
    folder = Path(settings.objects_url()) / "files"
    folder.mkdir(parents=True)
    for name in ("a#1", "b#2", "c", "d#x"):
        (folder / name).write_bytes(b"x")
    os.utime(folder / "a#1", (0, 0))
    os.utime(folder / "c", (0, 0))
    assert asyncio.run(store.delete_unfinished(3600)) == 1
    assert sorted(path.name for path in folder.iterdir()) == ["b#2", "c", "d#x"]
