"""`aibrix-batch download-model`: a model's files from an object store into a folder, before an engine starts.

A file is whole once it has its name: a start that was cut off, or another one at the same time, does no harm. Files that
are there with the size and the ETag that the store shows are left alone.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from obstore.exceptions import BaseError
from obstore.store import S3Store

from cli import exits
from services.kit.errors import NotFound, ServiceError
from services.kit.objects import ObjectInfo, ObjectStore
from services.kit.settings import MIB, variable

READ_BYTES = 16 * MIB
READS_AT_ONCE = 8
FILES_AT_ONCE = 4
MOST_FILES = 10_000
LONGEST_NAME = 255
# Beside the files: what they were when they were downloaded, and what is not whole yet.
OURS = ".aibrix-download"
STALE_S = 86_400.0
# Without one of these nobody gave credentials: those of the machine are not for models that users name.
CREDENTIALS = (
    "AWS_ACCESS_KEY_ID",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
)
ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
# What stores answer to a request that no other try makes good.
ANSWERS = {
    "NoSuchBucket": "there is no such bucket",
    "403 Forbidden": "the store refuses the credentials, or has none for it",
    "401 Unauthorized": "the store refuses the credentials",
    "PermanentRedirect": "the bucket is in another region: AWS_REGION says which",
    "301 Moved": "the bucket is in another region: AWS_REGION says which",
    "AuthorizationHeaderMalformed": "the bucket is in another region: AWS_REGION says which",
}


@dataclass(frozen=True, kw_only=True)
class File:
    info: ObjectInfo
    path: Path
    """Below the folder."""


def download(uri: str, folder: Path) -> int:
    """Errors: exits.Refused, if no other try makes it good; exits.Failed."""
    bucket, key = _parsed(uri)
    try:
        asyncio.run(_download(_opened(bucket), key, folder))
    except ExceptionGroup as group:
        raise _told(exits.innermost(group.exceptions[0]), uri) from group
    except (exits.Refused, exits.Failed, ServiceError, BaseError, OSError) as error:
        raise _told(error, uri) from error
    return exits.OK


async def _download(store: ObjectStore, key: str, folder: Path) -> None:
    files = await _found(store, key)
    await asyncio.to_thread(_prepare, folder)
    missing = [file for file in files if not await asyncio.to_thread(_is_there, folder, file)]
    await asyncio.to_thread(_check_space, folder, missing)
    print(f"{len(files)} files, {len(missing)} of them to download: {_size(missing)}", flush=True)
    files_at_once, reads = asyncio.Semaphore(FILES_AT_ONCE), asyncio.Semaphore(READS_AT_ONCE)
    async with asyncio.TaskGroup() as group:
        for file in missing:
            group.create_task(_one(store, file, folder, files_at_once, reads))
    print("done", flush=True)


async def _one(
    store: ObjectStore, file: File, folder: Path, files_at_once: asyncio.Semaphore, reads: asyncio.Semaphore
) -> None:
    async with files_at_once:
        draft = folder / OURS / f"{secrets.token_hex(16)}.part"
        try:
            await _fetch(store, file.info, draft, reads)
            if (await store.head(file.info.key)).etag != file.info.etag:
                raise exits.Failed(f"{file.path} changed in the store while it was downloaded")
            await asyncio.to_thread(_keep, folder, file, draft)
        finally:
            draft.unlink(missing_ok=True)
        print(f"{file.path}: {_size([file])}", flush=True)


async def _fetch(store: ObjectStore, info: ObjectInfo, draft: Path, reads: asyncio.Semaphore) -> None:
    """In pieces, several at a time: one connection does not fill a network."""

    async def piece(start: int) -> None:
        async with reads:
            data = await store.get_range(info.key, start, min(READ_BYTES, info.bytes - start))
            await asyncio.to_thread(os.pwrite, target, data, start)

    target = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        async with asyncio.TaskGroup() as group:
            for start in range(0, info.bytes, READ_BYTES):
                group.create_task(piece(start))
        await asyncio.to_thread(os.fsync, target)
    finally:
        os.close(target)


async def _found(store: ObjectStore, key: str) -> list[File]:
    """Everything below `key`, else the object of this name. Error: exits.Refused."""
    files = []
    async for info in store.list(key):
        if info.bytes == 0 and await _is_folder(store, info.key):
            continue
        files.append(File(info=info, path=_path(info.key, key)))
        if len(files) > MOST_FILES:
            raise exits.Refused(f"there are more than {MOST_FILES} objects: this is no model's folder")
    if files:
        _check_tree(files)
        return files
    try:
        info = await store.head(key)
    except NotFound:
        raise exits.Refused("there is no such object, and nothing below it") from None
    return [File(info=info, path=_path(key, key.rpartition("/")[0]))]


async def _is_folder(store: ObjectStore, key: str) -> bool:
    """Some tools write an empty object `name/` for a folder. It is listed without the slash, and nothing has that name."""
    try:
        await store.head(key)
    except NotFound:
        return True
    return False


def _path(key: str, above: str) -> Path:
    """Where an object goes. Error: exits.Refused, for a key that would lead out of the folder, or to a file of ours."""
    start = f"{above}/" if above else ""
    parts = key.removeprefix(start).split("/") if key.startswith(start) else [""]
    for part in parts:
        plain = part.isprintable() and "\\" not in part and part not in ("", ".", "..")
        if not plain or len(part.encode("utf-8", "replace")) > LONGEST_NAME:
            raise exits.Refused(f"the bucket holds a key that is no file's name: {key[:LONGEST_NAME]!r}")
    if parts[0] == OURS:
        raise exits.Refused(f"the bucket holds a folder {OURS}, which is a name of ours")
    return Path(*parts)


def _check_tree(files: Iterable[File]) -> None:
    """Error: exits.Refused, for an object that would have to be a file and a folder: to a store, names are just texts."""
    paths = {file.path for file in files}
    for path in paths:
        if above := paths.intersection(path.parents):
            raise exits.Refused(f"the bucket holds {above.pop()} as a file and as a folder")


def _prepare(folder: Path) -> None:
    """Parts that a killed process left are of no use to anybody after a day."""
    (folder / OURS).mkdir(parents=True, exist_ok=True)
    for part in (folder / OURS).glob("*.part"):
        with suppress(FileNotFoundError):
            if part.stat().st_mtime < time.time() - STALE_S:
                part.unlink()


def _is_there(folder: Path, file: File) -> bool:
    try:
        known = json.loads(_marker(folder, file).read_text())
        return (folder / file.path).stat().st_size == file.info.bytes and known == _seen(file)
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return False


def _keep(folder: Path, file: File, draft: Path) -> None:
    """The name, and then the marker: whoever finds an old marker downloads again."""
    (folder / file.path).parent.mkdir(parents=True, exist_ok=True)
    draft.rename(folder / file.path)
    note = draft.with_suffix(".json.part")
    note.write_text(json.dumps(_seen(file)))
    note.rename(_marker(folder, file))


def _seen(file: File) -> dict[str, str | int]:
    return {"key": file.info.key, "bytes": file.info.bytes, "etag": file.info.etag}


def _marker(folder: Path, file: File) -> Path:
    return folder / OURS / f"{hashlib.sha256(str(file.path).encode()).hexdigest()}.json"


def _check_space(folder: Path, missing: Iterable[File]) -> None:
    wanted, free = sum(file.info.bytes for file in missing), shutil.disk_usage(folder).free
    if wanted > free:
        raise exits.Failed(f"the files are {wanted / MIB:,.0f} MiB, and the volume has {free / MIB:,.0f} MiB left")


def _size(files: Iterable[File]) -> str:
    return f"{sum(file.info.bytes for file in files) / MIB:,.1f} MiB"


def _parsed(uri: str) -> tuple[str, str]:
    scheme, _, rest = uri.partition("://")
    bucket, _, key = rest.partition("/")
    key = key.strip("/")
    if scheme != "s3" or not bucket or not key:
        raise exits.Refused("the URI must be s3://BUCKET/FOLDER or s3://BUCKET/FILE")
    return bucket, key


def _opened(bucket: str) -> ObjectStore:
    """By the variables that AWS' own tools read: AWS_ACCESS_KEY_ID, AWS_REGION, AWS_ENDPOINT_URL and so on."""
    endpoint = next(filter(None, map(variable, ENDPOINTS)), "")
    return ObjectStore(
        S3Store(
            bucket,
            client_options={"allow_http": endpoint.startswith("http://")},
            skip_signature=not any(map(variable, CREDENTIALS)),
        )
    )


def _told(error: BaseException, uri: str) -> BaseException:
    """In words, with what the store said."""
    if isinstance(error, (exits.Refused, exits.Failed)):
        return type(error)(f"{uri}: {error}")
    cause = error.__cause__ if isinstance(error, ServiceError) and error.__cause__ is not None else error
    said = str(cause).partition("\n")[0][:500]
    for word, meaning in ANSWERS.items():
        if word in str(cause):
            return exits.Refused(f"{uri}: {meaning} ({said})")
    if "Missing" in said:
        return exits.Refused(f"{uri}: the credentials are not complete ({said})")
    return exits.Failed(f"{uri}: {said or type(cause).__name__}")
