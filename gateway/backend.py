"""What the handlers stand on: metadata's services, the object store, the limits; and how creates are repeated."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import structlog
from aiohttp import web
from grpc import aio
from grpc_health.v1 import health_pb2_grpc

from brix.metadata.v1 import batches_pb2_grpc, files_pb2_grpc, runners_pb2_grpc, uploads_pb2_grpc
from services.kit import clock
from services.kit.errors import InvalidArgument, ServiceError, Unavailable
from services.kit.objects import ObjectStore
from services.kit.settings import Settings

# A create whose answer is lost may have been done: it is repeated for so long before the client hears of it.
PERSIST_S = 20.0
PAUSE_S = 0.25
MAX_KEY_LENGTH = 255
ID = re.compile(r"[A-Za-z0-9_-]{1,64}")

log = structlog.get_logger(__name__)

Q = TypeVar("Q")
A = TypeVar("A")


@dataclass(frozen=True)
class Backend:
    settings: Settings
    objects: ObjectStore
    files: files_pb2_grpc.FileServiceAsyncStub
    uploads: uploads_pb2_grpc.UploadServiceAsyncStub
    batches: batches_pb2_grpc.BatchServiceAsyncStub
    runners: runners_pb2_grpc.RunnerRegistryServiceAsyncStub
    health: Any  # its stub package declares no methods

    async def discard(self, object_key: str) -> None:
        """Delete an object that no row names. If that fails, the janitor does it later: the answer is not changed by it."""
        try:
            await self.objects.delete([object_key])
        except ServiceError as error:
            log.warning("an object stays for the janitor", object_key=object_key, error=error.message)


BACKEND: web.AppKey[Backend] = web.AppKey("backend", Backend)


def connect(settings: Settings, objects: ObjectStore, channel: aio.Channel) -> Backend:
    return Backend(
        settings,
        objects,
        files_pb2_grpc.FileServiceStub(channel),
        uploads_pb2_grpc.UploadServiceStub(channel),
        batches_pb2_grpc.BatchServiceStub(channel),
        runners_pb2_grpc.RunnerRegistryServiceStub(channel),
        health_pb2_grpc.HealthStub(channel),
    )


async def persist(call: Callable[[Q], Awaitable[A]], message: Q) -> A:
    """An idempotent create, until it is answered. Errors: the call's own; Unavailable after PERSIST_S."""
    end = clock.monotonic() + PERSIST_S
    while True:
        try:
            return await call(message)
        except Unavailable:
            if clock.monotonic() + PAUSE_S >= end:
                raise
        await asyncio.sleep(PAUSE_S)


async def record(backend: Backend, call: Callable[[Q], Awaitable[A]], message: Q, object_key: str) -> A:
    """`persist` for an object that was just written: if the record of it is refused, the object goes too."""
    try:
        return await persist(call, message)
    except Unavailable:
        raise  # the record may be there all the same: if it is not, the janitor takes the object
    except ServiceError:
        await backend.discard(object_key)
        raise


def idempotency_key(request: web.Request) -> str | None:
    """What the caller sent. Error: InvalidArgument."""
    key = request.headers.get("Idempotency-Key")
    if key is None:
        return None
    if not 0 < len(key) <= MAX_KEY_LENGTH or not key.isprintable():
        raise InvalidArgument(
            f"Invalid 'Idempotency-Key' header: expected 1 to {MAX_KEY_LENGTH} printable characters.",
            param="Idempotency-Key",
            code="invalid_value",
        )
    return key


def path_id(request: web.Request) -> str | None:
    """The id in the path; None for what can't be one, so that nothing odd travels further."""
    value = request.match_info["id"]
    return value if ID.fullmatch(value) else None
