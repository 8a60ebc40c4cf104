"""A gRPC server, and the channel to one, as async context managers."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from grpc import aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from services.kit.grpc_errors import ErrorInterceptor, RaiseServiceErrors

Register = Callable[[aio.Server], None]

MAX_MESSAGE_BYTES = 16 * 1024 * 1024

# Every call of ours may be repeated (creates carry a key), so a lost answer is retried by the channel itself.
RETRY = {
    "methodConfig": [
        {
            "name": [{}],
            "retryPolicy": {
                "maxAttempts": 4,
                "initialBackoff": "0.05s",
                "maxBackoff": "1s",
                "backoffMultiplier": 3,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ]
}
SIZES: list[tuple[str, Any]] = [
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
]
SERVER_OPTIONS: list[tuple[str, Any]] = [*SIZES, ("grpc.so_reuseport", 0)]
CHANNEL_OPTIONS: list[tuple[str, Any]] = [
    *SIZES,
    ("grpc.service_config", json.dumps(RETRY)),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.max_reconnect_backoff_ms", 1_000),  # a restarted role is found again within a second
    ("grpc.enable_http_proxy", 0),  # roles reach each other directly
]


@asynccontextmanager
async def serving(
    address: str, registrations: Sequence[Register], services: Sequence[str], *, grace: float = 5.0
) -> AsyncIterator[str]:
    """Serve until the block ends, then drain for `grace` seconds. Yields the bound address.

    `services` are the full names (`brix.metadata.v1.FileService`) for health and reflection.
    """
    server = aio.server(interceptors=[ErrorInterceptor()], options=SERVER_OPTIONS)
    for register in registrations:
        register(server)
    checks = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    names = [*services, health.SERVICE_NAME, reflection.SERVICE_NAME]
    reflection.enable_server_reflection(names, server)
    port = server.add_insecure_port(address)
    await server.start()
    for name in ("", *services):
        await checks.set(name, health_pb2.HealthCheckResponse.SERVING)
    try:
        yield f"{address.rpartition(':')[0]}:{port}"
    finally:
        await checks.enter_graceful_shutdown()
        await server.stop(grace)


@asynccontextmanager
async def channel(address: str) -> AsyncIterator[aio.Channel]:
    async with aio.insecure_channel(address, interceptors=[RaiseServiceErrors()], options=CHANNEL_OPTIONS) as ch:
        yield ch
