"""`aibrix-batch health`: what a container's health check asks. The image is one for all roles, so it finds out which run."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import aiohttp
import grpc
from grpc import aio
from grpc_health.v1 import health_pb2

from cli import exits
from services.kit.settings import Settings

TIMEOUT_S = 5.0
EVERY_ADDRESS = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}


def check(settings: Settings, roles: Sequence[str]) -> int:
    """Ask `roles`. Asked for several, those that do not listen are left out; one at least must, and all must be well."""
    states = asyncio.run(_states(settings, roles))
    for role, well in states.items():
        if well is not None or len(roles) == 1:
            print(f"{role}: {'serving' if well else 'not serving'}")
    answers = [well for well in states.values() if well is not None]
    return exits.OK if answers and all(answers) else exits.FAILED


async def _states(settings: Settings, roles: Sequence[str]) -> dict[str, bool | None]:
    async def ask(role: str) -> bool | None:
        address = _reachable(getattr(settings, role).listen)
        return await (_ready(address) if role == "gateway" else _serving(address))

    return dict(zip(roles, await asyncio.gather(*(ask(role) for role in roles)), strict=True))


def _reachable(listen: str) -> str:
    """A server that listens on every address is asked on loopback."""
    host, _, port = listen.rpartition(":")
    return f"{EVERY_ADDRESS.get(host, host)}:{port}"


async def _serving(address: str) -> bool | None:
    """None: nothing listens there."""
    async with aio.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        # Called by name: the stubs of grpc_health are not typed.
        ask = channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )
        try:
            answer = await ask(health_pb2.HealthCheckRequest(), timeout=TIMEOUT_S)
        except aio.AioRpcError as error:
            return None if error.code() is grpc.StatusCode.UNAVAILABLE else False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


async def _ready(address: str) -> bool | None:
    timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        try:
            async with session.get(f"http://{address}/readyz") as answer:
                return answer.status == 200
        except aiohttp.ClientConnectorError:
            return None
        except (aiohttp.ClientError, TimeoutError):
            return False
