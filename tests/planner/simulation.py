"""Planners without loops over one database, one cloud and one metadata in memory: each step is the test's, and any of
them may be the last of its process."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from structlog.testing import capture_logs

from services.kit.errors import IllegalTransition, InvalidArgument, NotFound, Unavailable
from services.kit.settings import Settings
from services.kit.sql import EPOCH, MICROSECOND, Database, create_engine
from services.planner.domain import Job
from services.planner.migrate import migrate
from services.planner.policies.registry import load_policy
from services.planner.server import advancing
from services.planner.service.advance import AdvanceService
from services.planner.service.batches import Batch, BatchError, Findings
from services.planner.service.bells import Bells
from services.planner.service.changes import Writer
from services.planner.service.jobs import JobService
from services.planner.service.new_jobs import NewJob
from services.planner.service.planning import PlanningService
from services.planner.service.resources import ResourceManager
from services.planner.service.watch import WatchService
from services.planner.states import TERMINAL
from services.planner.store.tables import jobs, provisions
from tests.metadata.conftest import Clock
from tests.planner.conftest import GPU, Machines, a_job, a_template
from tests.planner.resources import Calls, Cloud, Killed, Process, match

BAD = BatchError(code="invalid_json_line", message="This line is not parseable as valid JSON.", line=2)


@dataclass
class Metadata:
    """Batches as metadata keeps them."""

    batches: dict[str, Batch] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)
    blocks: dict[str, str] = field(default_factory=dict)
    created: list[str] = field(default_factory=list)
    validated: list[str] = field(default_factory=list)
    cancels: list[str] = field(default_factory=list)
    moved: list[str] = field(default_factory=list)
    """Batches that got other compute, each time."""
    input_errors: list[BatchError] = field(default_factory=list)
    refuses: bool = False
    down: int = 0
    """So many calls fail."""
    total: int = 10

    def set(self, id: str, state: str, **fields: Any) -> None:
        """What a runner brings about; a batch that has ended stays as it is."""
        if not self.batches[id].has_ended:
            self.batches[id] = replace(self.batches[id], state=state, **fields)

    def live(self) -> list[str]:
        return [id for id, batch in self.batches.items() if not batch.has_ended]


class FakeBatches:
    """Metadata as a process sees it."""

    def __init__(self, metadata: Metadata, process: Process) -> None:
        self.metadata = metadata
        self.process = process

    async def _call(self, work: Callable[[], Any]) -> Any:
        async def answered() -> Any:
            if self.metadata.down:
                self.metadata.down -= 1
                raise Unavailable("metadata is away")
            return work()

        return await self.process.call(answered)

    async def validate(self, job: Job, block: str, now: datetime) -> Findings:
        def work() -> Findings:
            self.metadata.validated.append(job.id)
            errors = list(self.metadata.input_errors)
            return Findings(errors=errors, total_count=0 if errors else self.metadata.total)

        return await self._call(work)

    async def create(self, job: Job, block: str, key: str, now: datetime) -> Batch:
        def work() -> Batch:
            if self.metadata.refuses:
                raise InvalidArgument("the block is wrong", param="aibrix.model", code="invalid_value")
            id = self.metadata.keys.setdefault(key, f"batch_{len(self.metadata.keys)}")
            if id not in self.metadata.batches:
                self.metadata.batches[id] = Batch(id=id, state="VALIDATING", total_count=self.metadata.total)
                self.metadata.blocks[id] = block
                self.metadata.created.append(key)
            return self.metadata.batches[id]

        return await self._call(work)

    async def find(self, job: Job, key: str) -> Batch | None:
        return await self._call(lambda: self.metadata.batches.get(self.metadata.keys.get(key, "")))

    async def replace_compute(self, project_id: str, id: str, block: str) -> Batch:
        def work() -> Batch:
            batch, before = self.metadata.batches[id], self.metadata.blocks[id]
            if before == block:
                return batch
            if batch.state not in ("VALIDATING", "IN_PROGRESS") or attempt_of(block) <= attempt_of(before):
                raise IllegalTransition("it ends, or is elsewhere", state=batch.state)
            self.metadata.blocks[id] = block
            self.metadata.moved.append(id)
            self.metadata.batches[id] = replace(batch, compute_lost=None)
            return self.metadata.batches[id]

        return await self._call(work)

    async def get(self, project_id: str, id: str) -> Batch:
        def work() -> Batch:
            if id not in self.metadata.batches:
                raise NotFound("no batch", resource="batch", id=id)
            return self.metadata.batches[id]

        return await self._call(work)

    async def cancel(self, project_id: str, id: str) -> Batch:
        def work() -> Batch:
            batch = self.metadata.batches[id]
            if batch.state in ("COMPLETED", "FAILED", "EXPIRED"):
                raise IllegalTransition("it has ended", state=batch.state)
            self.metadata.cancels.append(id)
            self.metadata.set(id, "CANCELLING")
            return self.metadata.batches[id]

        return await self._call(work)


def attempt_of(block: str) -> int:
    return int(json.loads(block)["resource_allocation"]["attempt"])


@dataclass
class Running:
    """One planner process."""

    process: Process
    manager: ResourceManager
    advance: AdvanceService
    planning: PlanningService
    jobs: JobService


@dataclass
class Simulation:
    settings: Settings
    database: Database
    clock: Clock
    cloud: Cloud
    metadata: Metadata
    one: Running = field(init=False)

    def __post_init__(self) -> None:
        self.one = self.start()

    def start(self, kill: int | None = None) -> Running:
        process = Process(kill)
        transactions = Calls(self.database, self.clock, process)
        manager = ResourceManager(transactions, self.settings, {"fake": Machines(self.cloud, process)}, match=match)
        bells, watch = Bells(), WatchService(transactions)
        batches: Any = FakeBatches(self.metadata, process)
        advance = advancing(transactions, manager, batches, Writer(transactions, bells, watch), self.settings)
        policy = load_policy(self.settings)
        planning = PlanningService(transactions, policy, bells, watch, self.settings, ["fake"])
        return Running(process, manager, advance, planning, JobService(transactions, bells, watch, ["fake"]))

    async def enqueue(self, **fields: Any) -> str:
        asked: Mapping[str, Any] = a_job(model_template_spec_json=json.dumps(a_template(**GPU)), input_dataset="file-1")
        return (await self.one.jobs.enqueue_job(NewJob(**{**asked, **fields}), None, "")).id

    async def get(self, id: str) -> Job:
        return await self.start().jobs.get_job("default", id)

    async def round(self, running: Running | None = None) -> int:
        """Everything that a planner does now; a process that dies in it is replaced. How much there was to do."""
        one = running or self.one
        done = 0
        steps: list[Callable[[], Awaitable[Any]]] = [
            lambda: self._act(one),
            one.planning.plan,
            lambda: self._act(one),
            one.manager.work_due,
            one.advance.wake_waiting,
            lambda: self._act(one),
        ]
        for step in steps:
            try:
                done += int(await step() or 0)
            except* Killed:
                pass
            if one.process.dead:
                break
        if one.process.dead and running is None:
            self.one = self.start()
        return done

    async def _act(self, one: Running) -> int:
        taken = await one.advance.take(10)
        for held in taken:
            await one.advance.act(held)
        return len(taken)

    async def rounds(self, count: int = 4, seconds: float = 0.0) -> None:
        for _ in range(count):
            await self.round()
            self.clock.advance(seconds)

    async def settle(self, id: str, hop: float = 0.0, most: int = 300) -> Job:
        """Until the job has ended and its machines are gone. Whenever nothing is left to do, the clock jumps to what is
        next, by `hop` seconds at least.
        """
        for _ in range(most):
            if await self.round():
                continue
            due = await self._next_due()
            if due is None:
                job = await self.get(id)
                assert job.status in TERMINAL, job.status
                assert not self.cloud.machines
                return job
            self.clock.time = max(self.clock.time + timedelta(seconds=hop), due)
        raise AssertionError(f"the job is {(await self.get(id)).status}, and {self.cloud.machines} are left")

    async def _next_due(self) -> datetime | None:
        """When the next job or provision is due, or a lease ends; None: never."""
        found = []
        async with self.database.engine.connect() as connection:
            for t in (jobs, provisions):
                held = sa.case(
                    (t.c.lease_owner.is_(None), t.c.due_time), else_=sa.func.max(t.c.due_time, t.c.lease_expire_time)
                )
                found.append(await connection.scalar(sa.select(sa.func.min(held)).where(t.c.due_time.is_not(None))))
        times = [EPOCH + at * MICROSECOND if isinstance(at, int) else at for at in found if at is not None]
        return min(times, default=None)


@asynccontextmanager
async def simulated(settings: Settings) -> AsyncIterator[Simulation]:
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    engine = create_engine(settings.planner_database_url())
    try:
        database, clock = Database(engine), Clock()
        await migrate(database)
        with capture_logs():  # to render the errors of dead processes would take longer than everything else
            yield Simulation(settings, database, clock, Cloud(clock, boot_s=0.0), Metadata())
    finally:
        await engine.dispose()
