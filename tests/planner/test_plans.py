"""A page, a round of planning and a look for work cost what they find, however many jobs have ended: both databases say so
themselves, on full tables."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import asyncpg
import pytest
import sqlalchemy as sa

from services.kit.settings import Settings
from services.kit.sql import EPOCH, MICROSECOND, Database, create_engine
from services.kit.transactions import Transactions, Tx
from services.planner.migrate import migrate
from services.planner.policies.registry import load_policy
from services.planner.service.bells import Bells
from services.planner.service.jobs import JobService
from services.planner.service.planning import PlanningService
from services.planner.service.provision_ledger import Ledger
from services.planner.service.watch import WatchService
from services.planner.states import LIVE, JobState
from services.planner.store import jobs as store
from services.planner.store import leases, plans, provisions
from services.planner.store.jobs import Filter, Held
from services.planner.store.tables import jobs
from services.planner.store.tables import provisions as provisions_table
from tests.planner.resources import H100

S = JobState
JOBS = 100_000
# One job in so many is live, each in another state.
LIVE_EVERY = 997
PAGE = 20
BEGIN = EPOCH.replace(year=2026)
NOW = BEGIN + timedelta(seconds=JOBS)
TTL = timedelta(seconds=30)
MIDDLE, PROVISION = f"job_{JOBS // 2 + 1}", f"prov-{JOBS // 2 + 1}"
# Rows that PostgreSQL may touch for one statement: a page of every status, or all that is live.
ROWS = 21 * len(S)
# Instructions of SQLite's machine for one call. A look at every job takes ten times as many.
STEPS = 30_000
# SQLite's machine tells us every so many instructions.
TICK = 10


def numbers(last: int) -> str:
    """Both databases' way to count from 0."""
    return f"WITH RECURSIVE numbers(n) AS (SELECT CAST(0 AS BIGINT) UNION ALL SELECT n + 1 FROM numbers WHERE n < {last - 1})"


def status_of(number: str) -> str:
    """SQL: one job in LIVE_EVERY is live, and every status there is has some."""
    live = " ".join(f"WHEN {at} THEN '{state.value}'" for at, state in enumerate(sorted(LIVE)))
    ended = " ".join(
        f"WHEN {at} THEN '{state.value}'"
        for at, state in enumerate([S.FAILED, S.EXPIRED, S.CANCELLED, S.SUBMIT_FAILED])
    )
    turn = f"({number} / {LIVE_EVERY}) % {len(LIVE)}"
    return (
        f"CASE WHEN {number} % {LIVE_EVERY} = 7 THEN CASE {turn} {live} END "
        f"ELSE CASE {number} % 40 {ended} ELSE 'COMPLETED' END END"
    )


def often(number: str, prefix: str) -> str:
    """SQL: nearly all have the first one, as the daily job of a busy project."""
    return f"'{prefix}' || CASE WHEN {number} % 10 > 0 THEN 0 ELSE {number} / 10 % 50 END"


FILL = {
    "jobs": f"""
        INSERT INTO jobs (id, project_id, status, endpoint, completion_window, model_id, model, model_template_name,
            model_template_version, create_time, expires_time, attempt, validated, provision_id, due_time, priority,
            total_count)
        {numbers(JOBS)}
        SELECT 'job_' || n, {often("n", "p")}, s, '/v1/chat/completions', '24h', {often("n", "m")}, 'm', {often("n", "t")},
            {often("n", "v")}, {{begin}} + n * 1000000, {{now}} + 86400000000 - n, CASE s WHEN 'QUEUED' THEN 0 ELSE 1 END, s <> 'QUEUED' OR n % 3 > 0,
            CASE WHEN s IN ('QUEUED', 'PLANNED') THEN NULL ELSE 'prov-' || n END,
            CASE WHEN n % {LIVE_EVERY} = 7 THEN {{now}} + (n % 3 - 1) * 1000000 END, n % 5, 10
        FROM (SELECT n, {status_of("n")} AS s FROM numbers) AS made""",
    "provisions": """
        INSERT INTO provisions (id, idempotency_key, project_id, status, spec_json, provider, region, instance_type,
            machines, tried, create_time, due_time)
        SELECT provision_id, id || '/1', project_id,
            CASE WHEN due_time IS NULL THEN 'RELEASED' WHEN status = 'RESOURCE_PREPARING' THEN 'PENDING' ELSE 'RUNNING' END,
            '{{}}', 'fake', 'north', '1x-h100', '[]', '{{}}', create_time, due_time
        FROM jobs WHERE provision_id IS NOT NULL""",
    "events": """
        INSERT INTO job_events (job_id, id, label, status, source, time)
        SELECT id, 1, 'Queued', 'queued', 'console', create_time FROM jobs""",
}


async def fill(url: str) -> None:
    engine = create_engine(url)
    database = Database(engine)
    await migrate(database)
    times = {"begin": (BEGIN - EPOCH) // MICROSECOND, "now": (NOW - EPOCH) // MICROSECOND}

    async def work(connection: Any) -> None:
        for statement in FILL.values():
            await connection.exec_driver_sql(statement.format(**times))
        if engine.dialect.name == "postgresql":  # it does so by itself, some time later; SQLite never does
            await connection.exec_driver_sql("ANALYZE")

    await database.write(work)
    await engine.dispose()


async def in_postgres(port: int, statement: str) -> None:
    admin = await asyncpg.connect(host="127.0.0.1", port=port, user="postgres", database="postgres")
    await admin.execute(statement)
    await admin.close()


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def full_url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A database with as many jobs; those of one project are half of them."""
    if request.param == "sqlite":
        url = f"sqlite+aiosqlite:///{tmp_path_factory.mktemp('plans') / 'full.db'}"
        asyncio.run(fill(url))
        yield url
        return
    port = request.getfixturevalue("postgres_port")
    asyncio.run(in_postgres(port, "CREATE DATABASE plans"))
    url = f"postgresql+asyncpg://postgres@127.0.0.1:{port}/plans"
    asyncio.run(fill(url))
    yield url
    asyncio.run(in_postgres(port, "DROP DATABASE plans WITH (FORCE)"))


class Undo(Exception):
    """Ends a transaction without a trace."""


class Undone(Transactions):
    """What a test writes is not there for the next one."""

    async def write(self, work: Any) -> Any:
        result = []

        async def undone(tx: Tx) -> None:
            result.append(await work(tx))
            raise Undo

        try:
            await super().write(undone)
        except Undo:
            return result[0]


@dataclass
class Meter:
    """Runs calls of the real services, and says what their statements cost."""

    url: str
    steps: int = 0
    statements: list[tuple[str, Any]] = field(default_factory=list)
    sorted: bool = False
    """Whether something had to be sorted."""

    def __post_init__(self) -> None:
        self.engine = create_engine(self.url)
        self.is_sqlite = self.engine.dialect.name == "sqlite"
        sa.event.listen(self.engine.sync_engine, "before_cursor_execute", self._note)
        if self.is_sqlite:
            sa.event.listen(self.engine.sync_engine, "connect", self._count)
        now = sa.literal((NOW - EPOCH) // MICROSECOND, sa.BigInteger)
        self.transactions = Undone(Database(self.engine), lambda: now)
        self.jobs = JobService(self.transactions, Bells(), WatchService(self.transactions), ["fake"])
        self.ledger = Ledger(self.transactions, Settings())

    def planning(self, policy: str) -> PlanningService:
        settings = Settings(planning_policy=policy)
        watch = WatchService(self.transactions)
        return PlanningService(self.transactions, load_policy(settings), Bells(), watch, settings, ["fake"])

    async def read(self, work: Callable[[Tx], Awaitable[Any]]) -> Any:
        return await self.transactions.read(work)

    async def write(self, work: Callable[[Tx], Awaitable[Any]]) -> Any:
        return await self.transactions.write(work)

    def _note(self, connection: Any, cursor: Any, statement: str, parameters: Any, context: Any, many: bool) -> None:
        if not many and any(table in statement for table in (jobs.name, provisions_table.name)):
            self.statements.append((statement, parameters))

    def _count(self, connection: Any, record: Any) -> None:
        def tick() -> int:
            self.steps += TICK
            return 0

        connection.run_async(lambda driver: driver.set_progress_handler(tick, TICK))

    async def costs_little(self, call: Callable[[], Awaitable[Any]]) -> Any:
        """What the call returns; it must have touched few rows, and read no table from end to end."""
        await self.read(lambda tx: tx.scalar(sa.select(1)))  # a connection reads the schema when it is new
        self.statements.clear()
        self.steps, self.sorted = 0, False
        result = await call()
        assert self.statements
        assert self.steps <= STEPS, self.statements
        for statement, parameters in list(self.statements):
            await self._check(statement, parameters)
        return result

    async def _check(self, statement: str, parameters: Any) -> None:
        async with self.engine.connect() as connection:
            word = "EXPLAIN QUERY PLAN" if self.is_sqlite else "EXPLAIN (ANALYZE, FORMAT JSON)"
            found = (await connection.exec_driver_sql(f"{word} {statement}", parameters)).all()
            await connection.rollback()  # ANALYZE has done what it has measured
        if self.is_sqlite:
            # SCAN ... USING INDEX reads in the order of the index, and ends with the page.
            whole = [row[3] for row in found if row[3] in (f"SCAN {jobs.name}", f"SCAN {provisions_table.name}")]
            assert not whole, statement
            self.sorted = self.sorted or any("TEMP B-TREE" in row[3] for row in found)
            return
        ((shown,),) = found
        nodes = list(walk(json.loads(shown)[0]["Plan"] if isinstance(shown, str) else shown[0]["Plan"]))
        kinds = {node["Node Type"] for node in nodes}
        assert "Seq Scan" not in kinds, (statement, nodes)
        self.sorted = self.sorted or bool({"Sort", "Incremental Sort"} & kinds)
        assert sum(touched(node) for node in nodes) <= ROWS, (statement, nodes)


def walk(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield node
    for child in node.get("Plans", []):
        yield from walk(child)


def touched(node: dict[str, Any]) -> int:
    """Rows that this part of a plan has read from a table."""
    if "Relation Name" not in node or node["Node Type"] == "ModifyTable":
        return 0
    removed = node.get("Rows Removed by Filter", 0) + node.get("Rows Removed by Index Recheck", 0)
    return int((node["Actual Rows"] + removed) * node["Actual Loops"])


@pytest.fixture
async def meter(full_url: str) -> AsyncIterator[Meter]:
    meter = Meter(full_url)
    yield meter
    await meter.engine.dispose()


FILTERS: dict[str, tuple[dict[str, Any], int]] = {
    "all": ({}, PAGE),
    "live": ({"live": True}, PAGE),
    "frequent": ({"statuses": {S.COMPLETED}}, PAGE),
    "rare": ({"statuses": {S.PLANNED}}, 10),
    "none": ({"statuses": {S.RESOURCE_FAILED}}, 0),
    "several": ({"statuses": {S.COMPLETED, S.FAILED, S.PLANNED}}, PAGE),
    "every": ({"statuses": set(S)}, PAGE),
    "model": ({"model_id": "m0"}, PAGE),
    "no-model": ({"model_id": "mx"}, 0),
    "model-rare": ({"model_id": "m0", "statuses": {S.PLANNED}}, 10),
    "model-none": ({"model_id": "m0", "statuses": {S.RESOURCE_FAILED}}, 0),
    "model-live": ({"model_id": "m0", "live": True}, PAGE),
    "template": ({"model_template_name": "t0"}, PAGE),
    "template-rare": ({"model_template_name": "t0", "statuses": {S.PLANNED}}, 10),
    "template-none": ({"model_template_name": "t0", "statuses": {S.RESOURCE_FAILED}}, 0),
    "template-live": ({"model_template_name": "t0", "live": True}, PAGE),
    "template-of-model": ({"model_id": "m0", "model_template_name": "t0"}, PAGE),
    "template-of-another": ({"model_id": "m0", "model_template_name": "t8"}, 0),
    "version": ({"model_template_name": "t0", "model_template_version": "v0"}, PAGE),
    # Whether a template may be changed.
    "in-use": ({"model_id": "m0", "model_template_name": "t0", "model_template_version": "v0", "live": True}, PAGE),
    "not-in-use": ({"model_id": "m0", "model_template_name": "t0", "model_template_version": "vx", "live": True}, 0),
}


# What comes from one index in its order.
IN_ORDER = ("all", "frequent", "rare")


@pytest.mark.parametrize("name", FILTERS)
async def test_a_page(meter: Meter, name: str) -> None:
    asked, expected = FILTERS[name]
    wanted = Filter(project_id="p0", **asked)
    for after in (None, MIDDLE):
        found, _ = await meter.costs_little(lambda: meter.jobs.list_jobs(wanted, PAGE, after))  # noqa: B023 - called here
        assert found == sorted(found, key=lambda job: (job.create_time, job.id), reverse=True)
        assert bool(found) == bool(expected)
        if after is None:
            assert len(found) == expected
        else:
            assert all(job.create_time < BEGIN + timedelta(seconds=JOBS // 2 + 1) for job in found)
        if name in IN_ORDER:
            assert not meter.sorted


async def waiting(meter: Meter) -> set[str]:
    return {job.id for job in await meter.read(lambda tx: plans.list_waiting(tx, with_kin=False))}


@pytest.mark.parametrize("policy", ["simple", "deadline"])
async def test_a_round_of_planning(meter: Meter, policy: str) -> None:
    assert len(await waiting(meter)) == 9
    await meter.costs_little(meter.planning(policy).plan)


async def of_middle(tx: Tx) -> Held:
    held = await store.find(tx, "p0", MIDDLE)
    assert held is not None
    return held


async def to_release(tx: Tx) -> Any:
    return await plans.list_to_release(tx, await of_middle(tx))


async def failures(tx: Tx) -> int:
    return await plans.count_failures(tx, await of_middle(tx), ["NoCapacity"])


# What planners do all the time.
IDLE: dict[str, Callable[[Meter], Awaitable[Any]]] = {
    "look": lambda meter: meter.read(leases.look),
    "claim": lambda meter: meter.write(lambda tx: leases.take(tx, "me", TTL, 16)),
    "renew": lambda meter: meter.write(lambda tx: leases.renew(tx, "me", [f"job_{n}" for n in range(16)], TTL)),
    "wake": lambda meter: meter.write(leases.wake_waiting),
    "gauges": lambda meter: meter.read(lambda tx: store.count_live(tx, LIVE)),
    "claim-provisions": lambda meter: meter.ledger.lease_due(32),
    "unneeded-provisions": lambda meter: meter.ledger.list_unreleased(),
    "capacity": lambda meter: meter.ledger.taken([H100]),
}
# What a worker asks of one job.
OF_A_JOB: dict[str, Callable[[Meter], Awaitable[Any]]] = {
    "show": lambda meter: meter.jobs.get_job("p0", MIDDLE),
    "compute": lambda meter: meter.read(lambda tx: provisions.find(tx, PROVISION)),
    "turn": lambda meter: meter.read(lambda tx: plans.first_in_line(tx, PROVISION)),
    "next-in-line": lambda meter: meter.write(lambda tx: leases.wake_sharing(tx, PROVISION)),
    "to-release": lambda meter: meter.write(to_release),
    "failures": lambda meter: meter.read(failures),
    "is-needed": lambda meter: meter.read(lambda tx: plans.is_needed(tx, PROVISION)),
    "provisions": lambda meter: meter.ledger.page(None, PAGE, live=False),
    "live-provisions": lambda meter: meter.ledger.page(PROVISION, PAGE, live=True),
}


@pytest.mark.parametrize("name", [*IDLE, *OF_A_JOB])
async def test_a_look_for_work_touches_only_what_lives(meter: Meter, name: str) -> None:
    await meter.costs_little(lambda: (IDLE | OF_A_JOB)[name](meter))


async def test_the_meter_sees_a_look_at_everything(meter: Meter) -> None:
    everything = sa.select(sa.func.count()).select_from(jobs).where(jobs.c.name == "x")
    with pytest.raises(AssertionError):
        await meter.costs_little(lambda: meter.read(lambda tx: tx.scalar(everything)))
