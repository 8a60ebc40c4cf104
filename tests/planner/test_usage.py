"""What a project uses: counted right, and fast however many jobs have ended."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import Any

import pytest
import sqlalchemy as sa

from brix.console.v1 import access_pb2
from brix.planner.v1 import jobs_pb2, jobs_pb2_grpc
from brix.type.v1 import job_pb2
from services.console.service import access_usage
from services.kit.server import channel
from services.kit.settings import Settings
from services.kit.sql import EPOCH, MICROSECOND, Database, create_engine
from services.kit.transactions import Transactions, Tx
from services.planner import server
from services.planner.migrate import migrate
from services.planner.store import usage
from services.planner.store.tables import jobs, provisions
from tests.conftest import free_port
from tests.console.conftest import Console, serving_console
from tests.metadata.conftest import CHAT
from tests.planner.conftest import GPU, a_job, a_template
from tests.planner.test_plans import in_postgres, numbers, walk

JOBS = 100_000
LIVE_EVERY = 100
PROJECT = "default"
# Half of the jobs are of this month.
BEGIN = EPOCH.replace(year=2026, month=3)
NOW = BEGIN + timedelta(days=10)
FASTEST_S = 0.05

FOUR = json.dumps(a_template(accelerator={"type": "A10", "count": 4}, parallelism={"tp": 4}))
TWO = json.dumps(a_template(accelerator={"type": "A10", "count": 2}, parallelism={"tp": 2}))
CPU = json.dumps(a_template())


@dataclass
class Store:
    """Jobs and provisions that a test writes down."""

    transactions: Transactions
    numbers: Iterator[int] = field(default_factory=lambda: iter(range(10**9)))

    async def job(self, status: str, spec: str | None = TWO, *, project: str = PROJECT, on: str | None = None) -> None:
        row = {"id": f"job_{next(self.numbers)}", "project_id": project, "status": status, "provision_id": on}
        row |= {"endpoint": CHAT, "completion_window": "24h", "model_template_spec_json": spec}
        await self._insert(jobs, row | {"create_time": NOW, "expires_time": NOW})

    async def provision(self, id: str, *, project: str = PROJECT, **fields: Any) -> None:
        row = {"id": id, "idempotency_key": id, "project_id": project, "status": "RUNNING", "spec_json": "{}"}
        await self._insert(provisions, row | {"machines": [], "tried": {}, "create_time": NOW} | fields)

    async def _insert(self, table: sa.Table, row: dict[str, Any]) -> None:
        async def work(tx: Tx) -> None:
            await tx.run(table.insert().values(row))

        await self.transactions.write(work)

    async def read(self, work: Callable[[Tx], Awaitable[Any]]) -> Any:
        return await self.transactions.read(work)


@pytest.fixture
async def store(database_url: str) -> AsyncIterator[Store]:
    engine = create_engine(database_url)
    await migrate(Database(engine))
    yield Store(Transactions(Database(engine), lambda: sa.literal((NOW - EPOCH) // MICROSECOND, sa.BigInteger)))
    await engine.dispose()


async def test_only_what_lives_is_counted(store: Store) -> None:
    assert await store.read(lambda tx: usage.count_live(tx, PROJECT)) == 0
    for status in ("QUEUED", "IN_PROGRESS", "CANCELLING", "COMPLETED", "RESOURCE_FAILED"):
        await store.job(status)
    await store.job("QUEUED", project="other")
    assert await store.read(lambda tx: usage.count_live(tx, PROJECT)) == 3


async def test_compute_that_several_share_counts_once(store: Store) -> None:
    assert await store.read(lambda tx: usage.count_gpus(tx, PROJECT)) == 0
    await store.provision("shared", gpus_per_replica=4, replicas=2)
    await store.provision("ended", gpus_per_replica=4)
    await store.provision("another's", gpus_per_replica=4, project="other")
    for _ in range(2):
        await store.job("IN_PROGRESS", FOUR, on="shared")
    await store.job("COMPLETED", FOUR, on="ended")
    await store.job("IN_PROGRESS", FOUR, on="another's", project="other")
    assert await store.read(lambda tx: usage.count_gpus(tx, PROJECT)) == 8


async def test_those_that_wait_are_grouped_by_what_they_ask_for(store: Store) -> None:
    for spec in (TWO, FOUR, TWO, CPU, None):
        await store.job("QUEUED", spec)
    await store.job("IN_PROGRESS", TWO, on="prov-1")
    await store.job("FAILED", TWO)
    found = await store.read(lambda tx: usage.list_waiting(tx, PROJECT))
    assert {one.model_template_spec_json: one.count for one in found} == {TWO: 2, FOUR: 1, CPU: 1, None: 1}


async def test_cost_is_that_of_compute_that_was_asked_for_since(store: Store) -> None:
    hour = timedelta(hours=1)
    assert await store.read(lambda tx: usage.sum_cost(tx, PROJECT, BEGIN)) == 0
    await store.provision("before", past_cost_usd=1000.0, create_time=BEGIN - MICROSECOND)
    await store.provision("first", past_cost_usd=1.0, create_time=BEGIN)
    await store.provision("running", hourly_price_usd=2.0, replicas=3, billed_from_time=NOW - hour / 2)
    await store.provision("later", hourly_price_usd=2.0, billed_from_time=NOW + hour)  # clocks disagree
    await store.provision("another's", past_cost_usd=1000.0, project="other")
    assert await store.read(lambda tx: usage.sum_cost(tx, PROJECT, BEGIN)) == pytest.approx(1.0 + 2.0 * 3 / 2)


FILL = [
    f"""INSERT INTO jobs (id, project_id, status, endpoint, completion_window, model_id, model, model_template_name,
            model_template_version, model_template_spec_json, create_time, expires_time, attempt, validated, provision_id,
            due_time)
        {numbers(JOBS)}
        SELECT 'job_' || n, '{PROJECT}', CASE WHEN n % {LIVE_EVERY} = 0 THEN 'QUEUED' ELSE 'COMPLETED' END, '{CHAT}', '24h',
            'model-llama', 'm', 'llama', 'v1.0.0', '{json.dumps(a_template(**GPU))}',
            {{begin}} + (n - {JOBS // 2}) * 10000000, {{now}} + 86400000000, CASE WHEN n % {LIVE_EVERY} = 0 THEN 0 ELSE 1 END,
            1 = 1, CASE WHEN n % {LIVE_EVERY} > 0 THEN 'prov-' || n END,
            CASE WHEN n % {LIVE_EVERY} = 0 THEN {{now}} + 86400000000 * 365 END
        FROM numbers""",
    """INSERT INTO provisions (id, idempotency_key, project_id, status, spec_json, provider, region, instance_type,
            machines, tried, create_time, past_cost_usd)
        SELECT provision_id, id || '/1', project_id, 'RELEASED', '{}', 'fake', 'north', '1x-h100', '[]', '{}', create_time,
            0.5
        FROM jobs WHERE provision_id IS NOT NULL""",
]


async def fill(url: str) -> None:
    engine = create_engine(url)
    database = Database(engine)
    await migrate(database)

    def at(statement: str) -> str:
        begin, now = ((time - EPOCH) // MICROSECOND for time in (BEGIN, NOW))
        return statement.replace("{begin}", str(begin)).replace("{now}", str(now))

    async def work(connection: Any) -> None:
        for statement in FILL:
            await connection.exec_driver_sql(at(statement))
        if engine.dialect.name == "postgresql":  # it does so by itself, some time later; SQLite never does
            await connection.exec_driver_sql("ANALYZE")

    await database.write(work)
    await engine.dispose()


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def full_url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A database with as many jobs of one project."""
    if request.param == "sqlite":
        url = f"sqlite+aiosqlite:///{tmp_path_factory.mktemp('usage') / 'full.db'}"
        asyncio.run(fill(url))
        yield url
        return
    port = request.getfixturevalue("postgres_port")
    asyncio.run(in_postgres(port, "CREATE DATABASE usage"))
    url = f"postgresql+asyncpg://postgres@127.0.0.1:{port}/usage"
    asyncio.run(fill(url))
    yield url
    asyncio.run(in_postgres(port, "DROP DATABASE usage WITH (FORCE)"))


QUESTIONS: dict[str, Callable[[Tx], Awaitable[Any]]] = {
    "live": lambda tx: usage.count_live(tx, PROJECT),
    "gpus": lambda tx: usage.count_gpus(tx, PROJECT),
    "waiting": lambda tx: usage.list_waiting(tx, PROJECT),
    "cost": lambda tx: usage.sum_cost(tx, PROJECT, NOW - timedelta(hours=1)),
}


@pytest.mark.parametrize("name", QUESTIONS)
async def test_no_question_reads_all_jobs(full_url: str, name: str) -> None:
    engine = create_engine(full_url)
    said: list[tuple[str, Any]] = []
    sa.event.listen(engine.sync_engine, "before_cursor_execute", lambda *event: said.append((event[2], event[3])))
    await Transactions(Database(engine)).read(QUESTIONS[name])
    asked = [(statement, values) for statement, values in said if "FROM jobs" in statement or "FROM prov" in statement]
    assert asked
    word = "EXPLAIN QUERY PLAN" if engine.dialect.name == "sqlite" else "EXPLAIN (FORMAT JSON)"
    async with engine.connect() as connection:
        for statement, values in asked:
            found = (await connection.exec_driver_sql(f"{word} {statement}", values)).all()
            if engine.dialect.name == "sqlite":
                steps = [row[3] for row in found]
                assert not [step for step in steps if step.startswith(("SCAN jobs", "SCAN prov"))], steps
                assert not [step for step in steps if "ix_jobs_provision" in step], steps
            else:
                ((shown,),) = found
                plan = (json.loads(shown) if isinstance(shown, str) else shown)[0]["Plan"]
                nodes = [(node["Node Type"], node.get("Relation Name")) for node in walk(plan)]
                assert ("Seq Scan", jobs.name) not in nodes, plan
                assert ("Seq Scan", provisions.name) not in nodes, plan
    await engine.dispose()


@pytest.fixture
async def console(make_settings: Callable[..., Settings], full_url: str) -> AsyncIterator[Console]:
    """With the real planner, which has all those jobs; the console has a database of its own."""
    settings = make_settings(planner={"database_url": full_url}, metadata_addr=f"127.0.0.1:{free_port()}")
    async with server.run(settings) as address, serving_console(settings, planner_addr=address) as served:
        served.clock.time = NOW
        yield served


async def limit(console: Console, revision: int, **limits: Any) -> None:
    asked = access_pb2.UpdateQuotaRequest(project_id=PROJECT, revision=revision, **limits)
    await console.access.UpdateQuota(asked)


async def fastest(call: Callable[[], Awaitable[Any]]) -> float:
    """Seconds, of some tries: others may be at work on this machine."""
    took = []
    for _ in range(8):
        began = time.perf_counter()
        await call()
        took.append(time.perf_counter() - began)
    return min(took)


async def test_a_job_under_a_quota_is_made_in_a_moment(console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when nothing of it was asked before."""
    monkeypatch.setattr(access_usage, "COST_MEMORY", timedelta(0))
    _, ready = await console.ready()
    make = partial(console.job, **ready)
    for revision, limits in enumerate(({"max_live_jobs": JOBS}, {"max_gpus": JOBS}, {"max_monthly_cost_usd": 10**8})):
        await limit(console, revision, **limits)
        assert await fastest(make) < FASTEST_S, limits


async def test_the_planner_says_what_all_those_use(console: Console) -> None:
    before = await console.access.GetQuota(access_pb2.GetQuotaRequest(project_id=PROJECT))
    assert before.live_jobs >= JOBS // LIVE_EVERY
    _, ready = await console.ready()
    await console.job(**ready)
    await console.job(**ready)
    after = await console.access.GetQuota(access_pb2.GetQuotaRequest(project_id=PROJECT))
    assert after.live_jobs == before.live_jobs + 2


async def test_usage_over_the_wire(make_settings: Callable[..., Settings], database_url: str) -> None:
    """There is no metadata: jobs stay in the queue."""
    settings = make_settings(planner={"database_url": database_url}, metadata_addr=f"127.0.0.1:{free_port()}")
    async with server.run(settings) as address, channel(address) as ch:
        planner = jobs_pb2_grpc.JobServiceStub(ch)
        for spec in (FOUR, TWO, TWO, CPU):
            job = job_pb2.Job(**a_job(input_dataset="file-1", model_template_spec_json=spec))
            await planner.EnqueueJob(jobs_pb2.EnqueueJobRequest(job=job))
        for with_gpus, gpus in ((False, 0), (True, 8)):
            found = await planner.GetUsage(jobs_pb2.GetUsageRequest(project_id=PROJECT, gpus=with_gpus))
            assert (found.live_jobs, found.live_gpus, found.cost_usd) == (4, gpus, 0.0)
        for nobody in ("other", "", "a\0"):
            found = await planner.GetUsage(jobs_pb2.GetUsageRequest(project_id=nobody, gpus=True))
            assert (found.live_jobs, found.live_gpus) == (0, 0)
