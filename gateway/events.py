"""Answers that come one after the other, as server-sent events.

`id:` is the revision, so that a client that comes back with Last-Event-ID gets only what is newer. A stream without anything
newer, of a thing that will not change any more, is answered 204: that tells a browser not to come back.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine
from typing import Any

import msgspec
import structlog
from aiohttp import web
from google.protobuf.message import Message
from grpc import aio

from gateway import auth
from gateway.backend import BACKEND
from gateway.errors import from_service
from gateway.transcode_fields import object_name
from gateway.transcode_write import as_json
from services.kit import clock
from services.kit.errors import InvalidArgument, ServiceError
from services.kit.grpc_errors import raising

HEARTBEAT_S = 15.0
LOOK_S = 1.0  # how soon a client that left is noticed
CHECK_KEY_S = 10.0
# The first answer decides about the status; one that takes longer is waited for with the head already sent.
FIRST_S = 2.0
RETRY_MS = 2000
MAX_ID = 2**63 - 1
HEADERS = {"Content-Type": "text/event-stream", "Cache-Control": "no-store", "X-Accel-Buffering": "no"}
ENDING: web.AppKey[asyncio.Event] = web.AppKey("ending", asyncio.Event)

log = structlog.get_logger(__name__)


def last_seen(request: web.Request, asked: int) -> int:
    """The revision after which events are wanted: Last-Event-ID, else what the query asked. Error: InvalidArgument."""
    text = request.headers.get("Last-Event-ID", "").strip()
    if not text:
        return asked
    if not re.fullmatch(r"[0-9]{1,19}", text) or int(text) > MAX_ID:
        raise InvalidArgument(
            "Invalid 'Last-Event-ID' header: expected the id of an event of this stream.",
            param="Last-Event-ID",
            code="invalid_value",
        )
    return int(text)


async def send(request: web.Request, call: aio.UnaryStreamCall[Any, Any], after: int) -> web.StreamResponse:
    """All of the stream. Errors of its beginning: the service's. The call ends when the client leaves."""
    stream = Stream(request, _newer(raising(aiter(call)), after))
    try:
        return await stream.send()
    finally:
        call.cancel()
        await stream.close()


async def _newer(messages: AsyncIterator[Any], after: int) -> AsyncGenerator[Any, None]:
    async for message in messages:
        if message.revision > after:
            yield message


class Stream:
    def __init__(self, request: web.Request, messages: AsyncGenerator[Any, None]) -> None:
        self._request = request
        self._messages = messages
        self._idle_timeout_s = request.app[BACKEND].settings.gateway.idle_timeout_s
        self._response = web.StreamResponse(headers=HEADERS)
        self._next = self._ask()

    def _ask(self) -> asyncio.Task[Message | None]:
        """Only one answer is asked for at a time: a client that reads slowly holds up its own stream and nothing else."""
        following: Coroutine[Any, Any, Message | None] = _following(self._messages)
        return asyncio.get_running_loop().create_task(following)

    async def close(self) -> None:
        self._next.cancel()
        await asyncio.gather(self._next, return_exceptions=True)
        await self._messages.aclose()

    async def send(self) -> web.StreamResponse:
        await asyncio.wait([self._next], timeout=FIRST_S)
        if self._next.done() and self._next.result() is None:
            return web.Response(status=204, headers={"Cache-Control": "no-store"})
        await self._response.prepare(self._request)
        try:
            await self._write(b"retry: %d\n\n" % RETRY_MS)
            await self._pump()
        except (ConnectionError, TimeoutError) as error:
            log.debug("event stream cut off", error=type(error).__name__)
            if self._request.transport is not None:
                self._request.transport.abort()
        return self._response

    async def _pump(self) -> None:
        written = checked = clock.monotonic()
        while not self._is_over():
            await asyncio.wait([self._next], timeout=LOOK_S)
            now = clock.monotonic()
            if self._next.done():
                if not await self._write_next():
                    return
                written = now
            elif now - written >= HEARTBEAT_S:
                await self._write(b": still there\n\n")
                written = now
            if now - checked >= CHECK_KEY_S:
                checked = now
                if not await auth.still_valid(self._request):
                    return

    def _is_over(self) -> bool:
        """The client left, or the server stops."""
        transport = self._request.transport
        return transport is None or transport.is_closing() or self._request.app[ENDING].is_set()

    async def _write_next(self) -> bool:
        """Whether there is more to come."""
        try:
            message = self._next.result()
        except ServiceError as error:
            body = from_service(error).body
            await self._write(b"event: error\ndata: %s\n\n" % body)
            return False
        if message is None:
            return False
        await self._write(as_event(message))
        self._next = self._ask()
        return True

    async def _write(self, data: bytes) -> None:
        async with asyncio.timeout(self._idle_timeout_s):
            await self._response.write(data)


async def _following(messages: AsyncIterator[Any]) -> Message | None:
    return await anext(messages, None)


def as_event(message: Any) -> bytes:
    # Free objects stand in there as they came: a line break between their members would end the field `data`.
    data = msgspec.json.encode(as_json(message)).translate(LINE_BREAKS)
    name = object_name(message.DESCRIPTOR.name)
    return b"id: %d\nevent: %s\ndata: %s\n\n" % (message.revision, name.encode(), data)


LINE_BREAKS = bytes.maketrans(b"\r\n", b"  ")


async def end_streams(app: web.Application) -> None:
    """At shutdown, which would wait for them."""
    app[ENDING].set()
