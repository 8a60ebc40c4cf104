"""The events of one watch: JSON documents, one per line, on a connection that stays open."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import orjson

from services.kit.kubernetes.errors import Unavailable
from services.kit.kubernetes.requests import Object, Request, error_of_event, send

# An object has 1.5 MiB in the cluster's store; as JSON, what has to be escaped takes six times the room.
MOST_BYTES = 32 * 1024 * 1024
TYPES = frozenset({"ADDED", "MODIFIED", "DELETED", "BOOKMARK"})

Event = tuple[str, Object]


@asynccontextmanager
async def streaming(
    client: Any, request: Request, timeout: aiohttp.ClientTimeout
) -> AsyncIterator[aiohttp.ClientResponse]:
    """An answer whose body comes bit by bit. The connection is closed at the end. Error: Unavailable."""
    try:
        response = await send(client, request, timeout)
    except (aiohttp.ClientError, OSError) as error:  # TimeoutError is an OSError
        # Without the cause: the errors of aiohttp hold the request's headers.
        raise Unavailable(f"the Kubernetes API does not answer: {type(error).__name__}") from None
    try:
        yield response
    finally:
        response.close()


async def events(response: aiohttp.ClientResponse) -> AsyncGenerator[Event, None]:
    """(type, object) until the server ends the watch. Error: Expired, Refused, Unavailable."""
    rest = b""
    async for data in _data(response):
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            if line.strip():
                yield _event(line)
        if len(rest) > MOST_BYTES:
            raise Unavailable(f"the Kubernetes API sends an event of more than {MOST_BYTES} bytes")
    if rest.strip():
        raise Unavailable("the Kubernetes API ended a watch in the middle of an event")


async def _data(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    while True:
        try:
            data = await response.content.readany()
        except TimeoutError:
            raise Unavailable("the Kubernetes API went silent during a watch") from None
        except (aiohttp.ClientError, OSError) as error:
            raise Unavailable(f"a watch of the Kubernetes API broke: {type(error).__name__}") from None
        if not data:
            return
        yield data


def _event(line: bytes) -> Event:
    try:
        event = orjson.loads(line)
        kind, found = event["type"], event["object"]
    except (ValueError, TypeError, KeyError):
        kind, found = None, None
    if kind == "ERROR" and isinstance(found, dict):
        raise error_of_event(found)
    if kind not in TYPES or not isinstance(found, dict):
        raise Unavailable("the Kubernetes API sends something that is no event of a watch")
    return kind, found
