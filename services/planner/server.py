"""The planner role: a durable queue of jobs, and the compute for each. Opens what it needs, wires it, serves it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from brix.metadata.v1 import batches_pb2_grpc
from brix.planner.v1 import jobs_pb2_grpc
from services.kit.lifecycle import background
from services.kit.metrics import serving_metrics
from services.kit.server import channel, serving
from services.kit.settings import Settings
from services.kit.sql import Database, db_now, open_database
from services.kit.transactions import Now, Transactions, Tx
from services.planner.loop.background import loops
from services.planner.migrate import migrate
from services.planner.policies.registry import load_policy
from services.planner.resource_servicer import register_resources
from services.planner.service import resources
from services.planner.service.advance import AdvanceService
from services.planner.service.batches import Batches
from services.planner.service.before import Before
from services.planner.service.bells import Bells
from services.planner.service.changes import Writer
from services.planner.service.compute import Compute
from services.planner.service.ending import Ending
from services.planner.service.following import Following
from services.planner.service.jobs import JobService
from services.planner.service.planning import PlanningService
from services.planner.service.resources import ResourceManager
from services.planner.service.runtime import Runtimes
from services.planner.service.watch import WatchService
from services.planner.servicer import JobServicer
from services.planner.store import plans

SERVICES = ["brix.planner.v1.JobService", "brix.planner.v1.ResourceManagerService"]
# Batches on such a target use an endpoint that is there anyway: there is no model to be loaded twice.
ENDPOINT = "External"


@asynccontextmanager
async def run(settings: Settings, now: Now = db_now) -> AsyncIterator[str]:
    """Yields the bound address. `now` is the clock of all that is stored; tests bring their own."""
    policy = load_policy(settings)
    async with opened(settings) as database, channel(settings.metadata_addr) as to_metadata:
        transactions = Transactions(database, now)

        async def is_needed(provision_id: str) -> bool:
            async def work(tx: Tx) -> bool:
                return await plans.is_needed(tx, provision_id)

            return await transactions.read(work)

        async with resources.opened(transactions, settings, is_needed) as manager:
            bells, watch = Bells(), WatchService(transactions)
            targets = manager.targets()
            sharable = [name for name, target in targets.items() if target != ENDPOINT]
            planning = PlanningService(transactions, policy, bells, watch, settings, sharable)
            jobs = JobService(transactions, bells, watch, list(targets))
            batches = Batches(batches_pb2_grpc.BatchServiceStub(to_metadata))
            writer = Writer(transactions, bells, watch)
            advance = advancing(transactions, manager, batches, writer, settings, shares=policy.shares)
            register = partial(jobs_pb2_grpc.add_JobServiceServicer_to_server, JobServicer(jobs, watch))
            mine = loops(advance, planning, jobs, watch, bells, manager.changed, settings)
            async with (
                background(*mine, *manager.loops()),
                serving(
                    settings.planner.listen, [register, partial(register_resources, manager=manager)], SERVICES
                ) as address,
                serving_metrics(settings.planner.metrics_listen),
            ):
                try:
                    yield address
                finally:
                    watch.stop()
            await advance.stop()


def advancing(
    transactions: Transactions,
    manager: ResourceManager,
    batches: Batches,
    writer: Writer,
    settings: Settings,
    *,
    shares: bool = False,
) -> AdvanceService:
    """What drives jobs, put together. `shares`: whether the policy puts several jobs onto one machine."""
    poll_s = settings.planner.poll_s
    compute = Compute(transactions, settings)
    before = Before(manager, batches, compute, Runtimes.of(settings, manager.targets(), shares=shares), poll_s)
    following = Following(batches, compute, before, poll_s)
    return AdvanceService(transactions, writer, before, following, Ending(transactions, manager, poll_s), settings)


@asynccontextmanager
async def opened(settings: Settings) -> AsyncIterator[Database]:
    """The database, at the schema of this version."""
    async with open_database(settings.planner_database_url(), migrate) as database:
        yield database
