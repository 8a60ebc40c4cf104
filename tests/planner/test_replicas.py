"""Several planners over one database: two real processes, and a kill; and each step of two in one process."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from grpc_health.v1 import health_pb2, health_pb2_grpc

from brix.metadata.v1 import batches_pb2
from brix.planner.v1 import jobs_pb2_grpc, resources_pb2_grpc
from brix.type.v1 import batch_pb2
from services.kit.errors import Unavailable
from services.kit.server import channel
from services.kit.settings import Settings
from services.kit.sql import create_engine
from services.planner.states import LIVE, JobState
from services.planner.store.tables import jobs, provisions
from tests.conftest import free_port
from tests.metadata.conftest import Metadata, eventually, serving_metadata, some_lines
from tests.planner.conftest import Planner, RunningClock, State
from tests.planner.simulation import Simulation, simulated
from tests.planner.test_life import at

JOBS = 60
ENDPOINTS = [{"name": "there", "base_url": "http://127.0.0.1:9", "capacity": 1000}]
WITH_BATCH = (State.VALIDATING, State.IN_PROGRESS)


@dataclass
class Replica:
    """A planner in a process of its own."""

    process: asyncio.subprocess.Process
    planner: Planner
    log: Path

    async def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        await self.process.wait()

    def moved(self) -> set[str]:
        """Jobs that this process has moved on."""
        lines = [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]
        return {line["job_id"] for line in lines if line["event"] == "job moved"}


@dataclass
class Replicas:
    metadata: Metadata
    database_url: str
    both: list[Replica]

    async def rows(self, statement: Any) -> list[Any]:
        engine = create_engine(self.database_url)
        async with engine.connect() as connection:
            found = list(await connection.execute(statement))
        await engine.dispose()
        return found

    async def batches(self) -> list[batch_pb2.Batch]:
        """All that metadata has."""
        request = batches_pb2.ListBatchesRequest(project_id="default", page_size=100)
        return list((await self.metadata.batches.ListBatches(request)).batches)

    async def enqueue(self, count: int) -> list[str]:
        """At one and the other by turns."""
        file = await self.metadata.file(some_lines(2))
        planners = itertools.cycle(replica.planner for replica in self.both)
        made = [next(planners).enqueue(input_dataset=file.id, name=str(number)) for number in range(count)]
        return [job.id for job in await asyncio.gather(*made)]

    async def submitted(self) -> dict[str, tuple[str, str]]:
        """Provision and batch by job, of those that have both."""
        rows = await self.rows(sa.select(jobs.c.id, jobs.c.provision_id, jobs.c.batch_id))
        return {id: (provision, batch) for id, provision, batch in rows if provision is not None and batch is not None}

    async def all_submitted(self, ids: list[str]) -> dict[str, tuple[str, str]]:
        async def there() -> dict[str, tuple[str, str]] | None:
            found = await self.submitted()
            return found if found.keys() == set(ids) else None

        found: dict[str, tuple[str, str]] = await eventually(there, 60.0)
        return found

    async def check_each_has_one(self, ids: list[str], submitted: dict[str, tuple[str, str]]) -> None:
        """One provision and one batch of every job, and no others."""
        made = [key for (key,) in await self.rows(sa.select(provisions.c.idempotency_key))]
        assert Counter(made) == Counter(f"{id}/1" for id in ids)
        assert len({provision for provision, _ in submitted.values()}) == len(ids)
        batches = await self.batches()
        assert {batch.id: json.loads(batch.aibrix_json)["job_id"] for batch in batches} == {
            batch: id for id, (_, batch) in submitted.items()
        }


async def started(settings: Settings, folder: Path, number: int, stack: AsyncExitStack) -> Replica:
    address, log = f"127.0.0.1:{free_port()}", folder / f"planner-{number}.log"
    ours = {name: value for name, value in os.environ.items() if not name.startswith("AIBRIX_")}
    env = ours | {
        "AIBRIX_DATA_DIR": str(folder / "data"),
        "AIBRIX_PLANNER__LISTEN": address,
        "AIBRIX_PLANNER__DATABASE_URL": settings.planner_database_url(),
        "AIBRIX_PLANNER__LEASE_TTL_S": "2",
        "AIBRIX_PLANNER__POLL_S": "0.1",
        "AIBRIX_PLANNER__MAX_PROVISIONS": "1000",
        "AIBRIX_METADATA_ADDR": settings.metadata_addr,
        "AIBRIX_STATIC__ENDPOINTS": json.dumps(ENDPOINTS),
        "AIBRIX_LOG__FORMAT": "json",
        "PROVISIONER": "static",
    }
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "services", "planner", env=env, stdout=output, stderr=output
        )

    async def stop() -> None:
        if process.returncode is None:
            process.kill()  # also one that is stopped
            await process.wait()

    stack.push_async_callback(stop)
    ch = await stack.enter_async_context(channel(address))

    async def serves() -> bool:
        assert process.returncode is None, log.read_text()[-3000:]
        try:
            answer = await health_pb2_grpc.HealthStub(ch).Check(health_pb2.HealthCheckRequest(), timeout=1)
        except Unavailable:
            return False
        return answer.status == health_pb2.HealthCheckResponse.SERVING

    await eventually(serves, 60.0)
    resources = resources_pb2_grpc.ResourceManagerServiceStub(ch)
    return Replica(process, Planner(settings, address, jobs_pb2_grpc.JobServiceStub(ch), resources), log)


@pytest.fixture
async def replicas(
    make_settings: Callable[..., Settings], postgres_url: str, tmp_path: Path
) -> AsyncIterator[Replicas]:
    settings = make_settings(planner={"database_url": postgres_url}, metadata={"janitor_interval_s": 0.5})
    async with serving_metadata(settings, RunningClock()) as metadata, AsyncExitStack() as stack:
        wired = settings.model_copy(update={"metadata_addr": metadata.address})
        both = await asyncio.gather(*(started(wired, tmp_path, number, stack) for number in range(2)))
        yield Replicas(metadata, postgres_url, both)


async def test_every_job_gets_one_provision_and_one_batch(replicas: Replicas) -> None:
    ids = await replicas.enqueue(JOBS)
    await replicas.check_each_has_one(ids, await replicas.all_submitted(ids))
    one, other = (replica.moved() for replica in replicas.both)
    assert one | other == set(ids)
    assert one
    assert other
    for id in ids[:4]:  # as either of them says it
        shown = [await replica.planner.get(id) for replica in replicas.both]
        assert shown[0].batch_id == shown[1].batch_id != ""


async def test_one_that_is_killed_leaves_its_jobs_to_the_other(replicas: Replicas) -> None:
    victim, survivor = replicas.both
    survivor.process.send_signal(signal.SIGSTOP)  # so that all are the victim's
    file = await replicas.metadata.file(some_lines(2))
    made = await asyncio.gather(*(victim.planner.enqueue(input_dataset=file.id) for _ in range(JOBS)))
    ids = [job.id for job in made]
    await eventually(replicas.submitted, 60.0)
    await victim.kill()
    before = await replicas.submitted()
    assert 0 < len(before) < JOBS
    survivor.process.send_signal(signal.SIGCONT)
    after = await replicas.all_submitted(ids)
    assert {id: after[id] for id in before} == before
    await replicas.check_each_has_one(ids, after)
    assert survivor.moved() >= set(ids) - before.keys()


async def test_a_cancel_at_either_is_acted_on(replicas: Replicas) -> None:
    ids = await replicas.enqueue(4)
    one, other = (replica.planner for replica in replicas.both)
    for id, planner in zip(ids, itertools.cycle((one, other)), strict=False):
        running = await planner.reaches(id, *WITH_BATCH)
        elsewhere = other if planner is one else one
        assert (await elsewhere.cancel(id)).status == State.CANCELLING
        await replicas.metadata.reaches(running.batch_id, batch_pb2.Batch.CANCELLING, batch_pb2.Batch.CANCELLED)


@pytest.fixture
async def sim(make_settings: Callable[..., Settings]) -> AsyncIterator[Simulation]:
    async with simulated(make_settings(planner={"poll_s": 1.0})) as simulation:
        yield simulation


@pytest.mark.parametrize("state", sorted(LIVE - {JobState.CANCELLING}))
async def test_a_cancel_at_another_one_while_a_job_is_acted_on(sim: Simulation, state: JobState) -> None:
    """Who holds the job finds out when it writes; nothing of what it did is left."""
    id = await at(sim, state)
    sim.clock.advance(40.0)
    taken = await sim.one.advance.take(10)
    other = sim.start()
    assert (await other.jobs.cancel_job("default", id)).status is JobState.CANCELLING
    for held in taken:
        await sim.one.advance.act(held)
    for _ in range(3):
        await sim.round(other)
        sim.clock.advance(2.0)
    for batch_id in sim.metadata.live():
        sim.metadata.set(batch_id, "CANCELLED")
    sim.one = other
    job = await sim.settle(id)
    assert job.status is JobState.CANCELLED
    assert not sim.metadata.live()
