"""The planner role: a durable queue of jobs, and the compute for each. A gRPC server with health, reflection and metrics."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog
from grpc import aio

from brix.planner.v1 import jobs_pb2_grpc, resources_pb2_grpc
from services.kit.metrics import serving_metrics
from services.kit.server import serving
from services.kit.settings import Settings

SERVICES = ["brix.planner.v1.JobService", "brix.planner.v1.ResourceManagerService"]

log = structlog.get_logger(__name__)


@asynccontextmanager
async def run(settings: Settings) -> AsyncIterator[str]:
    """Serve for the length of the block; yields the bound address."""

    def register(server: aio.Server) -> None:
        # The bases answer UNIMPLEMENTED to what they do not override.
        jobs_pb2_grpc.add_JobServiceServicer_to_server(jobs_pb2_grpc.JobServiceServicer(), server)  # type: ignore[abstract]
        resources_pb2_grpc.add_ResourceManagerServiceServicer_to_server(
            resources_pb2_grpc.ResourceManagerServiceServicer(),  # type: ignore[abstract]
            server,
        )

    async with (
        serving_metrics(settings.planner.metrics_listen),
        serving(settings.planner.listen, [register], SERVICES) as address,
    ):
        log.info("planner serves", address=address)
        yield address
