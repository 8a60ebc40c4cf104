"""The planner role: a durable queue of jobs, and the compute for each. A gRPC server with health, reflection and metrics."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog
from grpc import aio

from brix.planner.v1 import planner_pb2, planner_pb2_grpc
from services.kit.metrics import serving_metrics
from services.kit.server import serving
from services.kit.settings import Settings
from services.planner.servicer import PlannerServicer

SERVICE = planner_pb2.DESCRIPTOR.services_by_name["PlannerService"].full_name

log = structlog.get_logger(__name__)


@asynccontextmanager
async def run(settings: Settings) -> AsyncIterator[str]:
    """Serve for the length of the block; yields the bound address."""

    def register(server: aio.Server) -> None:
        servicer = PlannerServicer()  # type: ignore[abstract]  # the base answers what it does not override
        planner_pb2_grpc.add_PlannerServiceServicer_to_server(servicer, server)

    async with (
        serving_metrics(settings.planner.metrics_listen),
        serving(settings.planner.listen, [register], [SERVICE]) as address,
    ):
        log.info("planner serves", address=address)
        yield address
