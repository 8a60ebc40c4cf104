"""The console role: what people create, such as models, templates and jobs. A gRPC server with health, reflection and metrics."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog
from grpc import aio

from brix.console.v1 import console_pb2, console_pb2_grpc
from services.console.servicer import ConsoleServicer
from services.kit.metrics import serving_metrics
from services.kit.server import serving
from services.kit.settings import Settings

SERVICE = console_pb2.DESCRIPTOR.services_by_name["ConsoleService"].full_name

log = structlog.get_logger(__name__)


@asynccontextmanager
async def run(settings: Settings) -> AsyncIterator[str]:
    """Serve for the length of the block; yields the bound address."""

    def register(server: aio.Server) -> None:
        servicer = ConsoleServicer()  # type: ignore[abstract]  # the base answers what it does not override
        console_pb2_grpc.add_ConsoleServiceServicer_to_server(servicer, server)

    async with (
        serving_metrics(settings.console.metrics_listen),
        serving(settings.console.listen, [register], [SERVICE]) as address,
    ):
        log.info("console serves", address=address)
        yield address
