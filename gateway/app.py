"""The HTTP front: OpenAI requests in, gRPC calls and object-store bytes out. It holds no state."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import NamedTuple

import structlog
from aiohttp import web
from grpc import aio

from brix.console.v1.access_pb2_grpc import AccessServiceStub
from gateway import auth, batches, console, cors, events, files, health, hosts, metrics, models, uploads
from gateway.backend import BACKEND, Backend, connect
from gateway.body import expect_later
from gateway.console_keys import ConsoleKeys
from gateway.errors import openai_errors
from gateway.transcode import CHANNEL
from gateway.wire import Runner
from services.kit import metrics as process_metrics
from services.kit.lifecycle import background
from services.kit.objects import open_store
from services.kit.server import channel
from services.kit.settings import Settings

READ_BUFFER = 512 * 1024  # per connection; twice this stops reading from the socket
KEEPALIVE_S = 75.0
SHUTDOWN_S = 10.0  # for requests in flight
LINGER_S = 5.0  # what a refused client still sends is read for so long, or it would not see the answer


class Route(NamedTuple):
    method: str
    path: str
    handle: Callable[[web.Request], Awaitable[web.StreamResponse]]


# Every path also answers with a slash at its end; GET answers HEAD too.
ROUTES = [
    Route("POST", "/v1/files", files.create),
    Route("GET", "/v1/files", files.list_files),
    Route("GET", "/v1/files/{id}", files.retrieve),
    Route("DELETE", "/v1/files/{id}", files.delete),
    Route("GET", "/v1/files/{id}/content", files.content),
    Route("POST", "/v1/uploads", uploads.create),
    Route("POST", "/v1/uploads/{id}/parts", uploads.add_part),
    Route("POST", "/v1/uploads/{id}/complete", uploads.complete),
    Route("POST", "/v1/uploads/{id}/cancel", uploads.cancel),
    Route("POST", "/v1/batches", batches.create),
    Route("GET", "/v1/batches", batches.list_batches),
    Route("GET", "/v1/batches/{id}", batches.retrieve),
    Route("POST", "/v1/batches/{id}/cancel", batches.cancel),
    Route("GET", "/v1/models", models.list_models),
    Route("GET", "/v1/models/{id:.+?}", models.retrieve),
    *(Route(*route) for route in console.ROUTES),
    Route("GET", "/healthz", health.healthz),
    Route("GET", "/readyz", health.readyz),
    Route("GET", "/metrics", process_metrics.render),
]

log = structlog.get_logger(__name__)


def build(backend: Backend, keys: auth.KeyFile | None, console: aio.Channel, origins: cors.Origins) -> web.Application:
    app = web.Application(
        middlewares=[metrics.observe, openai_errors, hosts.only_from_here, cors.preflight, auth.authenticate]
    )
    app[BACKEND] = backend
    app[CHANNEL] = console
    app[cors.ORIGINS] = origins
    app[events.ENDING] = asyncio.Event()
    if keys is not None:
        app[auth.KEYS] = keys
        app[auth.MORE_KEYS] = ConsoleKeys(AccessServiceStub(console)).find
    app.on_response_prepare.extend([metrics.add_headers, cors.add_headers])
    app.on_shutdown.append(events.end_streams)
    for method, path, handle in ROUTES:
        resource = app.router.add_resource(path + "{slash:/?}")
        for name in ("GET", "HEAD") if method == "GET" else (method,):
            resource.add_route(name, handle, expect_handler=expect_later)
    return app


@asynccontextmanager
async def run(settings: Settings) -> AsyncIterator[str]:
    """Serve; yields the bound address. Error: ValueError for keys or origins that are broken, or missing where they are needed."""
    keys = auth.open_keys(settings)
    origins = cors.Origins.parse(settings.allowed_origins)
    loops = [] if keys is None else [keys.watch()]
    async with (
        channel(settings.metadata_addr) as metadata,
        channel(settings.console_addr) as console_channel,
        background(*loops),
    ):
        app = build(connect(settings, open_store(settings), metadata), keys, console_channel, origins)
        runner = Runner(
            app,
            access_log=None,
            auto_decompress=False,
            handler_cancellation=False,
            keepalive_timeout=KEEPALIVE_S,
            read_bufsize=READ_BUFFER,
            lingering_time=LINGER_S,
            shutdown_timeout=SHUTDOWN_S,
        )
        await runner.setup()
        try:
            host, _, port = settings.gateway.listen.rpartition(":")
            await web.TCPSite(runner, host.strip("[]") or None, int(port)).start()
            address = f"{host}:{runner.addresses[0][1]}"
            log.info("gateway listens", address=address, keys=keys is not None)
            yield address
        finally:
            await runner.cleanup()
