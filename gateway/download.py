"""A file's bytes, from the object store to the socket, no faster than the client takes them."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from urllib.parse import quote

import structlog
from aiohttp import web

from brix.type.v1.file_pb2 import File
from gateway.backend import BACKEND
from gateway.errors import Refused
from services.kit import errors

JSONL_PURPOSES = {"batch", "batch_output"}
RANGE = re.compile(r"bytes=(\d{0,19})-(\d{0,19})", re.ASCII)
TOKEN = re.compile(r"[^A-Za-z0-9._ ()+=@-]")

log = structlog.get_logger(__name__)


async def send(request: web.Request, file: File) -> web.StreamResponse:
    """Whatever `Accept` says: there is one form of a file. Errors: NotFound, Unavailable, Refused 416."""
    etag = f'"{file.id}"'  # strong: the bytes under an id never change
    headers = {
        "ETag": etag,
        "Accept-Ranges": "bytes",
        "Content-Disposition": attachment(file.filename),
        "X-Content-Type-Options": "nosniff",
    }
    if _matches(request.headers.get("If-None-Match", ""), etag):
        return web.Response(status=304, headers=headers)
    kind = "application/jsonl; charset=utf-8" if file.purpose in JSONL_PURPOSES else "application/octet-stream"
    headers["Content-Type"] = kind
    span = _range(request, file.bytes, etag)
    start, end = span or (0, file.bytes)
    if span:
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{file.bytes}"
    response = web.StreamResponse(status=206 if span else 200, headers=headers)
    response.content_length = end - start
    if request.method == "HEAD" or start == end:
        await response.prepare(request)
        return response
    backend = request.app[BACKEND]
    chunks = backend.objects.stream(file.object_key, start, end)
    first = await anext(chunks)  # what is wrong with the object is known before the head is sent
    await response.prepare(request)
    await _copy(request, response, first, chunks, backend.settings.gateway.idle_timeout_s)
    return response


async def _copy(
    request: web.Request, response: web.StreamResponse, first: bytes, rest: AsyncIterator[bytes], idle_timeout_s: float
) -> None:
    """After the head nothing can be taken back: a failure cuts the connection, so that nobody takes half for whole."""
    try:
        async with asyncio.timeout(idle_timeout_s):
            await response.write(first)
        async for chunk in rest:
            async with asyncio.timeout(idle_timeout_s):
                await response.write(chunk)
    except (errors.ServiceError, TimeoutError, ConnectionError) as error:
        log.info("download cut off", error=type(error).__name__)
        if request.transport is not None:
            request.transport.abort()


def attachment(filename: str) -> str:
    """RFC 6266: a plain fallback, and the name itself percent-encoded."""
    return f"attachment; filename=\"{TOKEN.sub('_', filename)}\"; filename*=UTF-8''{quote(filename, safe='')}"


def _matches(header: str, etag: str) -> bool:
    """If-None-Match compares weakly."""
    tags = {tag.strip().removeprefix("W/") for tag in header.split(",")}
    return etag in tags or "*" in tags


def _range(request: web.Request, size: int, etag: str) -> tuple[int, int] | None:
    """The one range that is asked for, its end not included; None for the whole. Error: Refused 416.

    What is no range, or several, is answered with the whole file, as RFC 9110 allows.
    """
    match = RANGE.fullmatch(request.headers.get("Range", "").replace(" ", ""))
    if match is None or not (match[1] or match[2]) or request.headers.get("If-Range", etag) != etag:
        return None
    if match[1]:
        start, end = int(match[1]), int(match[2]) + 1 if match[2] else size
        if match[2] and end <= start:
            return None
    else:
        start, end = max(0, size - int(match[2])), size
    if start >= size:
        raise Refused(
            416,
            f"The range is not satisfiable: the file has {size} bytes.",
            code="invalid_range",
            headers={"Content-Range": f"bytes */{size}"},
        )
    return start, min(end, size)
