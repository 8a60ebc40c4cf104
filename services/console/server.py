"""The console role: what people create, such as models, templates and jobs. A gRPC server with health, reflection and metrics."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog
from grpc import aio

from brix.console.v1 import jobs_pb2_grpc, models_pb2_grpc
from services.kit.metrics import serving_metrics
from services.kit.server import serving
from services.kit.settings import Settings

SERVICES = ["brix.console.v1.ModelService", "brix.console.v1.JobService"]

log = structlog.get_logger(__name__)


@asynccontextmanager
async def run(settings: Settings) -> AsyncIterator[str]:
    """Serve for the length of the block; yields the bound address."""

    def register(server: aio.Server) -> None:
        # The bases answer UNIMPLEMENTED to what they do not override.
        models_pb2_grpc.add_ModelServiceServicer_to_server(models_pb2_grpc.ModelServiceServicer(), server)  # type: ignore[abstract]
        jobs_pb2_grpc.add_JobServiceServicer_to_server(jobs_pb2_grpc.JobServiceServicer(), server)  # type: ignore[abstract]

    async with (
        serving_metrics(settings.console.metrics_listen),
        serving(settings.console.listen, [register], SERVICES) as address,
    ):
        log.info("console serves", address=address)
        yield address
