"""The runner as a server: its status over gRPC, and the loop that does the work."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial

import structlog

from brix.metadata.v1 import leases_pb2_grpc, runners_pb2_grpc
from brix.runner.v1 import runner_pb2_grpc as pb_grpc
from services.kit.ids import new_id
from services.kit.lifecycle import background
from services.kit.metrics import serving_metrics
from services.kit.objects import ObjectStore, open_store
from services.kit.server import channel, serving
from services.kit.settings import Settings
from services.kit.spec.block import EXTERNAL
from services.runner.leases import Leases
from services.runner.loop import LeaseLoop
from services.runner.report import Reporter
from services.runner.runtimes.base import Runtime
from services.runner.runtimes.registry import load_runtimes
from services.runner.service import RunnerService
from services.runner.servicer import RunnerServicer

CLOSE_S = 60.0

log = structlog.get_logger(__name__)


async def close(runtime: Runtime) -> None:
    """A runtime may be anybody's code: it does not hold up the end of the process for ever."""
    try:
        async with asyncio.timeout(CLOSE_S):
            await runtime.close()
    except Exception:
        log.exception("runtime not closed", target=runtime.target)


async def close_all(runtimes: Iterable[Runtime]) -> None:
    """Together: whoever stops this process waits for the slowest only."""
    async with asyncio.TaskGroup() as group:
        for runtime in runtimes:
            group.create_task(close(runtime))


@dataclass(frozen=True)
class Opened:
    """A runner that can be asked how it is, and reports to metadata, before it takes its first lease."""

    address: str
    service: RunnerService
    leases: Leases
    store: ObjectStore
    reporter: Reporter


@asynccontextmanager
async def opened(settings: Settings, runtimes: Mapping[str, Runtime], *, slots: int = 1) -> AsyncIterator[Opened]:
    runner_id = new_id("runner_")
    service = RunnerService(runner_id, sorted(runtimes), slots)
    register = partial(pb_grpc.add_RunnerServiceServicer_to_server, RunnerServicer(service))
    names = ["brix.runner.v1.RunnerService"]
    async with AsyncExitStack() as stack:
        stack.push_async_callback(close_all, runtimes.values())
        metadata = await stack.enter_async_context(channel(settings.metadata_addr))
        reporter = Reporter(runners_pb2_grpc.RunnerRegistryServiceStub(metadata), service, runtimes.get(EXTERNAL))
        leases = Leases(leases_pb2_grpc.LeaseServiceStub(metadata), runner_id)
        store = open_store(settings)
        await stack.enter_async_context(serving_metrics(settings.runner.metrics_listen))
        address = await stack.enter_async_context(serving(settings.runner.listen, [register], names))
        stack.push_async_callback(reporter.leave)  # for good: the last word before the process ends
        await stack.enter_async_context(background(reporter.run()))
        log.info("runner started", runner_id=runner_id, targets=service.targets, slots=service.slot_count)
        yield Opened(address, service, leases, store, reporter)


@asynccontextmanager
async def run(settings: Settings) -> AsyncIterator[str]:
    """Yields the bound address. Leaving the block drains."""
    runtimes = load_runtimes(settings)
    async with opened(settings, runtimes, slots=settings.runner.slots) as runner:
        loop = LeaseLoop(runner.service, runner.leases, runner.store, runtimes, settings.runner)
        async with background(loop.run()):
            try:
                yield runner.address
            finally:
                await runner.reporter.leave()
                await loop.drain()
