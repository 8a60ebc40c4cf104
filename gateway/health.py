"""/healthz says that the process lives; /readyz that a request would find what it needs."""

from __future__ import annotations

import asyncio

import msgspec
from aiohttp import web
from grpc import aio
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

from gateway.backend import BACKEND, Backend
from services.kit import errors

TIMEOUT_S = 2.0
PROBE_KEY = "files/readyz-probe"  # never written


async def healthz(request: web.Request) -> web.Response:
    return _answer(200, {"status": "ok"})


async def readyz(request: web.Request) -> web.Response:
    backend = request.app[BACKEND]
    async with asyncio.TaskGroup() as group:
        metadata = group.create_task(_metadata_serves(backend))
        objects = group.create_task(_objects_answer(backend))
    parts = {"metadata": metadata.result(), "object_store": objects.result()}
    if all(parts.values()):
        return _answer(200, {"status": "ok", "parts": dict.fromkeys(parts, "ok")})
    named = {name: "ok" if ready else "unavailable" for name, ready in parts.items()}
    return _answer(503, {"status": "unavailable", "parts": named})


async def _metadata_serves(backend: Backend) -> bool:
    try:
        answer = await backend.health.Check(HealthCheckRequest(), timeout=TIMEOUT_S)
    except (errors.ServiceError, aio.AioRpcError):
        return False
    return bool(answer.status == HealthCheckResponse.SERVING)


async def _objects_answer(backend: Backend) -> bool:
    try:
        async with asyncio.timeout(TIMEOUT_S):
            await backend.objects.head(PROBE_KEY)
    except errors.NotFound:
        return True
    except (errors.ServiceError, TimeoutError):
        return False
    return True


def _answer(status: int, body: object) -> web.Response:
    return web.Response(
        status=status,
        body=msgspec.json.encode(body),
        content_type="application/json",
        headers={"Cache-Control": "no-store"},
    )
