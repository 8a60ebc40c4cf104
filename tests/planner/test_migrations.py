from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from brix.planner.v1 import jobs_pb2_grpc, resources_pb2_grpc
from services.kit.server import channel
from services.kit.settings import Settings
from services.planner.migrate import migrate
from services.planner.server import run
from services.planner.store.tables import schema
from tests.migrations import Migrations, Role
from tests.planner.conftest import Planner


@asynccontextmanager
async def serving_planner(settings: Settings) -> AsyncIterator[Planner]:
    async with run(settings) as address, channel(address) as ch:
        resources = resources_pb2_grpc.ResourceManagerServiceStub(ch)
        yield Planner(settings, address, jobs_pb2_grpc.JobServiceStub(ch), resources)


async def write(planner: Planner) -> Any:
    return await planner.enqueue(input_dataset="file-1")


class TestMigrations(Migrations):
    role = Role("planner", migrate, schema, serving_planner, write, {"version_table": "alembic_version_planner"})
