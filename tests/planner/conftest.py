"""A metadata role and planners that really listen, a cloud in memory, and a clock that runs and that the test moves on."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar

import pytest

from brix.metadata.v1 import leases_pb2
from brix.planner.v1 import jobs_pb2, jobs_pb2_grpc, resources_pb2_grpc
from brix.type.v1 import batch_pb2, job_pb2, provision_pb2
from services.kit.server import channel
from services.kit.settings import Settings
from services.planner.resource_manager import registry
from services.planner.server import run
from tests.metadata.conftest import CHAT, Clock, Metadata, a_commit, eventually, serving_metadata, some_lines
from tests.planner.resources import Cloud, Fake

State = job_pb2.Job
PROJECT = "default"
TARGETS = ["External", "RunPod"]
ENDED = (State.COMPLETED, State.FAILED, State.EXPIRED, State.CANCELLED, State.RESOURCE_FAILED, State.SUBMIT_FAILED)


class RunningClock(Clock):
    """Goes on by itself, and jumps when the test moves it."""

    def __init__(self) -> None:
        self.ahead = timedelta()

    @property
    def time(self) -> datetime:  # type: ignore[override]
        return datetime.now(UTC) + self.ahead

    def advance(self, seconds: float) -> None:
        self.ahead += timedelta(seconds=seconds)


class Machines(Fake):
    """The fake cloud, with batches that any runner of the target takes."""

    target: ClassVar[str] = "RunPod"


def a_template(**fields: Any) -> dict[str, Any]:
    spec = {
        "engine": {"type": "vllm", "serve_args": ["--max-num-seqs", "64"]},
        "model_source": {"type": "huggingface", "uri": "org/model"},
        "accelerator": {"type": "cpu", "count": 1},
        "supported_endpoints": [CHAT],
    }
    return spec | fields


GPU = {"accelerator": {"type": "H100-SXM-80GB", "count": 1}}


def a_job(**fields: Any) -> dict[str, Any]:
    asked = {
        "project_id": PROJECT,
        "name": "daily",
        "endpoint": CHAT,
        "completion_window": "24h",
        "model_id": "model-1",
        "model": "m",
        "model_template_name": "small",
        "model_template_version": "v1",
        "model_template_spec_json": json.dumps(a_template()),
    }
    return asked | fields


@dataclass
class Planner:
    settings: Settings
    address: str
    jobs: jobs_pb2_grpc.JobServiceAsyncStub
    resources: resources_pb2_grpc.ResourceManagerServiceAsyncStub

    async def enqueue(self, key: str | None = None, request_hash: str = "h", **fields: Any) -> job_pb2.Job:
        request = jobs_pb2.EnqueueJobRequest(
            job=job_pb2.Job(**a_job(**fields)), idempotency_key=key, request_hash=request_hash if key else ""
        )
        return await self.jobs.EnqueueJob(request)

    async def get(self, id: str, project_id: str = PROJECT) -> job_pb2.Job:
        return await self.jobs.GetJob(jobs_pb2.GetJobRequest(project_id=project_id, id=id))

    async def list(self, **fields: Any) -> jobs_pb2.ListJobsResponse:
        return await self.jobs.ListJobs(jobs_pb2.ListJobsRequest(**{"project_id": PROJECT} | fields))

    async def cancel(self, id: str, project_id: str = PROJECT) -> job_pb2.Job:
        return await self.jobs.CancelJob(jobs_pb2.CancelJobRequest(project_id=project_id, id=id))

    async def reaches(self, id: str, *states: int) -> job_pb2.Job:
        async def there() -> job_pb2.Job | None:
            job = await self.get(id)
            assert job.status in states or job.status not in ENDED, (State.State.Name(job.status), job.error_message)
            return job if job.status in states else None

        found: job_pb2.Job = await eventually(there)
        return found

    async def given_back(self, id: str) -> job_pb2.Job:
        """The job, once nothing of its compute is left."""

        async def there() -> job_pb2.Job | None:
            job = await self.get(id)
            return job if job.events[-1].label == "Compute released" else None

        found: job_pb2.Job = await eventually(there)
        released = provision_pb2.Provision.RELEASED
        assert not found.HasField("provision") or found.provision.status == released
        return found


def labels(job: job_pb2.Job) -> list[str]:
    return [event.label for event in job.events]


@dataclass
class World:
    """Everything besides the planners."""

    metadata: Metadata
    clock: RunningClock
    settings: Settings
    cloud: Cloud = field(init=False)

    def __post_init__(self) -> None:
        self.cloud = Cloud(self.clock, boot_s=0.0)

    @asynccontextmanager
    async def planner(self, **overrides: Any) -> AsyncIterator[Planner]:
        """A planner that listens for the length of the block; there may be several."""
        settings = self.settings.model_copy(update=overrides)
        async with AsyncExitStack() as stack:
            address = await stack.enter_async_context(run(settings, self.clock))
            ch = await stack.enter_async_context(channel(address))
            yield Planner(
                settings, address, jobs_pb2_grpc.JobServiceStub(ch), resources_pb2_grpc.ResourceManagerServiceStub(ch)
            )

    def with_planner(self, **fields: Any) -> dict[str, Any]:
        """Overrides of the settings' section `planner`."""
        return {"planner": self.settings.planner.model_copy(update=fields)}

    async def input(self, count: int = 10) -> str:
        return (await self.metadata.file(some_lines(count))).id

    async def lease(self, batch_id: str) -> leases_pb2.Lease:
        """As a runner takes it."""

        async def taken() -> leases_pb2.Lease | None:
            return await self.metadata.acquire(targets=TARGETS, batch_id=batch_id)

        found: leases_pb2.Lease = await eventually(taken)
        return found

    async def complete(self, batch_id: str, failed: int = 0) -> batch_pb2.Batch:
        """Run a batch to its end, as a runner would."""
        lease = await self.lease(batch_id)
        count = lease.batch.total_count
        segment = a_commit(lease, 1, list(range(failed, count)), list(range(failed)), 7)
        for key in (segment.segment.output_key, segment.segment.error_key):
            if key:
                await self.metadata.store.put(key, b"{}\n" * count)
        await self.metadata.leases.CommitSegment(segment)
        await self.metadata.finalize(lease)
        return await self.metadata.finish(lease, batch_pb2.Batch.COMPLETED, output=count - failed, error=failed)

    async def end(self, batch_id: str, outcome: int, **fields: Any) -> batch_pb2.Batch:
        return await self.metadata.finish(await self.lease(batch_id), outcome, **fields)


@pytest.fixture
async def world(
    make_settings: Callable[..., Settings], database_url: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[World]:
    """The planner's store is on both databases; metadata's is a file of SQLite."""
    clock = RunningClock()
    settings = make_settings(
        planner={"database_url": database_url, "poll_s": 0.05, "lease_ttl_s": 2.0},
        metadata={"janitor_interval_s": 0.5},
        provisioner="static",
        static={"endpoints": [{"name": "there", "base_url": "http://127.0.0.1:9", "capacity": 100}]},
    )
    async with serving_metadata(settings, clock) as metadata:
        world = World(metadata, clock, settings.model_copy(update={"metadata_addr": metadata.address}))
        monkeypatch.setitem(registry.PROVIDERS, "fake", "tests.planner.conftest:the_provider")
        monkeypatch.setattr("tests.planner.conftest.the_provider", lambda _: Machines(world.cloud), raising=False)
        yield world


@pytest.fixture
async def planner(world: World) -> AsyncIterator[Planner]:
    async with world.planner() as served:
        yield served
