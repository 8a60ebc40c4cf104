"""The metadata role: opens what it needs, wires it, serves it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial

from brix.metadata.v1 import batches_pb2_grpc, files_pb2_grpc, leases_pb2_grpc, runners_pb2_grpc, uploads_pb2_grpc
from externalscaler import externalscaler_pb2_grpc
from services.kit.lifecycle import background
from services.kit.metrics import serving_metrics
from services.kit.objects import open_store
from services.kit.server import Register, serving
from services.kit.settings import Settings
from services.kit.sql import Database, db_now, open_database
from services.kit.transactions import Now, Transactions
from services.metadata.loop.background import Services, loops
from services.metadata.loop.rounds import every
from services.metadata.migrate import migrate
from services.metadata.registry import registry as registries
from services.metadata.service.backlog import BacklogService
from services.metadata.service.batches import BatchService
from services.metadata.service.bells import Bell, Bells
from services.metadata.service.commits import CommitService
from services.metadata.service.files import FileService
from services.metadata.service.inspection import InspectionService
from services.metadata.service.janitor import JanitorService
from services.metadata.service.leases import LeaseService
from services.metadata.service.runners import RunnerRegistryService
from services.metadata.service.uploads import UploadService
from services.metadata.servicer import (
    BatchServicer,
    FileServicer,
    LeaseServicer,
    RunnerRegistryServicer,
    UploadServicer,
)
from services.metadata.servicer_scaler import SERVICE as SCALER
from services.metadata.servicer_scaler import ScalerServicer

OURS = [f"brix.metadata.v1.{name}Service" for name in ("File", "Upload", "Batch", "Lease", "RunnerRegistry")]
SERVICES = [*OURS, SCALER]


@asynccontextmanager
async def run(settings: Settings, now: Now = db_now) -> AsyncIterator[str]:
    """Yields the bound address. `now` is the clock of all that is stored; tests bring their own."""
    async with opened(settings) as database, registries.opened(settings) as registry:
        bells = Bells()
        transactions = Transactions(database, now)
        objects = open_store(settings)
        runners = RunnerRegistryService(transactions, settings, registry.models)
        services = Services(
            files=FileService(transactions, objects),
            uploads=UploadService(transactions, objects, bells, settings),
            batches=BatchService(transactions, bells, settings, lambda: registry.catalog),
            inspection=InspectionService(transactions, objects, bells, settings),
            janitor=JanitorService(transactions, objects, runners, settings),
            runners=runners,
        )
        leases = LeaseService(transactions, bells, settings)
        commits = CommitService(transactions, objects, bells, settings)
        backlog = BacklogService(transactions, bells, settings)
        async with (
            background(*loops(services, bells, settings), every(settings.templates.reload_s, Bell(), registry.reload)),
            serving(settings.metadata.listen, registrations(services, leases, commits, backlog), SERVICES) as address,
            serving_metrics(settings.metadata.metrics_listen),
        ):
            try:
                yield address
            finally:
                leases.stop_waiting()
                backlog.stop_waiting()


@asynccontextmanager
async def opened(settings: Settings) -> AsyncIterator[Database]:
    """The database, at the schema of this version."""
    async with open_database(settings.database_url(), migrate) as database:
        yield database


def registrations(
    services: Services, leases: LeaseService, commits: CommitService, backlog: BacklogService
) -> Sequence[Register]:
    return [
        partial(files_pb2_grpc.add_FileServiceServicer_to_server, FileServicer(services.files)),
        partial(uploads_pb2_grpc.add_UploadServiceServicer_to_server, UploadServicer(services.uploads)),
        partial(
            batches_pb2_grpc.add_BatchServiceServicer_to_server, BatchServicer(services.batches, services.inspection)
        ),
        partial(leases_pb2_grpc.add_LeaseServiceServicer_to_server, LeaseServicer(leases, commits)),
        partial(runners_pb2_grpc.add_RunnerRegistryServiceServicer_to_server, RunnerRegistryServicer(services.runners)),
        partial(externalscaler_pb2_grpc.add_ExternalScalerServicer_to_server, ScalerServicer(backlog)),
    ]
