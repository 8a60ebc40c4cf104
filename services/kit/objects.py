"""The object store: bytes under keys, over obstore (a local folder, S3, GCS, Azure).

An object appears whole or not at all, and is durable when the call returns: on a local folder the file and its
directory are synced, since obstore renames into place but leaves the bytes in the page cache.
"""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import obstore
from obstore.exceptions import BaseError
from obstore.store import LocalStore, from_url

from services.kit import errors
from services.kit.settings import Settings

CHUNK = 4 * 1024 * 1024
PART = 5 * 1024 * 1024  # S3 takes parts of 5 MiB to 5 GiB, at most 10,000: files up to 50 GB
PARTS_AT_ONCE = 2
STAGED = re.compile(r"#\d+$")


@dataclass(frozen=True)
class ObjectInfo:
    key: str
    bytes: int
    etag: str
    modified_time: datetime


class ObjectStore:
    """Keys are `kind/id...`, made by us: what a user typed never becomes a key.

    Errors: NotFound (no such key), ResourceExhausted (no space left), Unavailable (anything else).
    """

    def __init__(self, store: obstore.store.ObjectStore, root: Path | None = None) -> None:
        self._store = store
        self._root = root

    async def put(self, key: str, data: bytes) -> None:
        with translated(key):
            await obstore.put_async(self._store, key, data, use_multipart=False)
        await self._sync(key)

    async def put_stream(self, key: str, chunks: AsyncIterator[bytes]) -> int:
        """Write what `chunks` yields, in constant memory; its size. If `chunks` raises, nothing appears under `key`."""
        source = Source(chunks)
        try:
            with translated(key):
                await obstore.put_async(self._store, key, source, chunk_size=PART, max_concurrency=PARTS_AT_ONCE)
        except errors.ServiceError:
            if source.error is not None:
                raise source.error from None  # a broken connection is no fault of the store's
            raise
        await self._sync(key)
        return source.size

    async def get(self, key: str) -> bytes:
        with translated(key):
            return bytes(await (await obstore.get_async(self._store, key)).bytes_async())

    async def get_range(self, key: str, start: int, length: int) -> bytes:
        if length == 0:
            return b""
        with translated(key):
            return bytes(await obstore.get_range_async(self._store, key, start=start, length=length))

    async def stream(self, key: str, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        """The bytes from `start` up to `end` (not included), in chunks of some MiB.

        A request for each chunk: one for all of them is cut off after half a minute when the reader is slow, and
        obstore streams a local file in pieces so small that it takes 20 times as long.
        """
        if end is None:
            end = (await self.head(key)).bytes
        for at in range(start, end, CHUNK):
            yield await self.get_range(key, at, min(CHUNK, end - at))

    def stream_sync(self, key: str) -> Iterator[bytes]:
        """As `stream`, for a thread."""
        with translated(key):
            size = obstore.head(self._store, key)["size"]
            for at in range(0, size, CHUNK):
                yield bytes(obstore.get_range(self._store, key, start=at, length=min(CHUNK, size - at)))

    async def head(self, key: str) -> ObjectInfo:
        with translated(key):
            meta = await obstore.head_async(self._store, key)
        return _info(meta)

    async def delete(self, keys: Sequence[str]) -> None:
        """Fine for keys that are not there."""
        for key in keys:
            try:
                with translated(key):
                    await obstore.delete_async(self._store, key)
            except errors.NotFound:
                continue

    async def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        """Every object whose key starts with the folder `prefix` (such as `segments/batch_1/`)."""
        with translated(prefix):
            async for page in obstore.list(self._store, prefix):
                for meta in page:
                    yield _info(meta)

    async def delete_unfinished(self, age_s: float) -> int:
        """Delete what writers left that died half-way, once it is so old; how many. On a bucket, unfinished multipart
        uploads are the work of a lifecycle rule: no listing shows them."""
        return 0 if self._root is None else await asyncio.to_thread(_delete_unfinished, self._root, age_s)

    async def _sync(self, key: str) -> None:
        if self._root is not None:
            with translated(key):
                await asyncio.to_thread(_fsync, self._root / key)


class Source(AsyncIterator[bytes]):
    """Counts what passes, and remembers what went wrong before it."""

    def __init__(self, chunks: AsyncIterator[bytes]) -> None:
        self._chunks = chunks
        self.size = 0
        self.error: Exception | None = None

    async def __anext__(self) -> bytes:
        try:
            chunk = await anext(self._chunks)
        except StopAsyncIteration:
            raise
        except Exception as error:
            self.error = error
            raise
        self.size += len(chunk)
        return chunk


def _info(meta: obstore.ObjectMeta) -> ObjectInfo:
    return ObjectInfo(meta["path"], meta["size"], (meta["e_tag"] or "").strip('"'), meta["last_modified"])


def _delete_unfinished(root: Path, age_s: float) -> int:
    """obstore writes to `<key>#<number>` and renames; its own listing leaves these names out."""
    before = time.time() - age_s
    deleted = 0
    for path in root.rglob("*#*"):
        with suppress(FileNotFoundError):
            if STAGED.search(path.name) and path.is_file() and path.stat().st_mtime <= before:
                path.unlink()
                deleted += 1
    return deleted


def _fsync(path: Path) -> None:
    for target, flags in ((path, os.O_RDONLY), (path.parent, os.O_RDONLY | os.O_DIRECTORY)):
        fd = os.open(target, flags)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


@contextmanager
def translated(key: str) -> Iterator[None]:
    """obstore's errors, and the file system's, as ours."""
    try:
        yield
    except FileNotFoundError as error:
        raise errors.NotFound(f"no object {key}", resource="object", id=key) from error
    except (BaseError, OSError) as error:
        if "os error 28" in str(error) or getattr(error, "errno", None) == 28:
            raise errors.ResourceExhausted("the object store has no space left") from error
        raise errors.Unavailable("the object store is unavailable, retry later") from error


def open_store(settings: Settings) -> ObjectStore:
    url = settings.objects_url()
    if "://" not in url:
        root = Path(url).absolute()
        root.mkdir(parents=True, exist_ok=True)
        return ObjectStore(LocalStore(root, mkdir=True), root)
    chosen = settings.objects
    options: dict[str, str] = {}
    if url.startswith("s3://"):
        options["region"] = chosen.region
        if chosen.endpoint:
            options |= {"endpoint": chosen.endpoint, "virtual_hosted_style_request": "false"}
        if chosen.access_key_id:
            options["access_key_id"] = chosen.access_key_id
            options["secret_access_key"] = chosen.secret_access_key.get_secret_value()
    plain = chosen.endpoint.startswith("http://")
    return ObjectStore(from_url(url, client_options={"allow_http": plain}, **options))  # type: ignore[call-overload]  # options differ by scheme
