"""Resource managers over one database and one cloud in memory, with faults, a clock that the test moves, and processes that
die at a given call."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict, deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, ClassVar, TypeVar

import sqlalchemy as sa

from services.kit.settings import Settings
from services.kit.sql import Database, create_engine
from services.kit.transactions import Transactions
from services.planner.domain import AcceleratorPreference, Group, Machine, Offer, Provision, ProvisionSpec
from services.planner.migrate import migrate
from services.planner.resource_manager.base import Gone, Order, Pending, Probe, Provider, ProviderError, Ready
from services.planner.service.resources import ResourceManager
from services.planner.states import ProvisionState
from tests.metadata.conftest import Clock

T = TypeVar("T")
H100 = Offer(
    provider="fake",
    region="north",
    instance_type="1x-h100",
    accelerator="H100-SXM-80GB",
    memory_gb=80,
    gpus=1,
    hourly_price_usd=3.6,
)


def gpus(*types: str, count: int = 1, memory: int = 0, **fields: Any) -> ProvisionSpec:
    preference = AcceleratorPreference(preferred_types=list(types), min_memory_gb=memory)
    return ProvisionSpec(groups=[Group(gpus_per_replica=count, accelerator_preference=preference)], **fields)


class Which:
    """What a matcher says that does not know which one is meant."""

    def __str__(self) -> str:
        return "A100 may be A100-40GB or A100-80GB: say which"


def match(wanted: str, offer: Offer) -> object:
    """`H100` is every H100, `H100-SXM-80GB` that one; `A100` could be two."""
    if wanted == "A100" and offer.accelerator.startswith("A100"):
        return Which()
    return f"{offer.accelerator}-".startswith(f"{wanted}-")


def refusal(code: str = "NoCapacity", *, retryable: bool = True, ambiguous: bool = False) -> ProviderError:
    return ProviderError(code, f"the cloud says {code}", retryable=retryable, ambiguous=ambiguous)


class Killed(Exception):
    """The process is dead: nothing that it does has an effect."""


class Process:
    """Whatever leaves the process goes through here: `call`, or `ask`, if it changes nothing. `kill`: before which call it dies."""

    def __init__(self, kill: int | None = None) -> None:
        self.kill = kill
        self.calls = 0
        self.dead = False

    async def call(self, work: Callable[[], Awaitable[T]]) -> T:
        self.calls += 1
        self.dead = self.dead or self.calls == self.kill
        return await self.ask(work)

    async def ask(self, work: Callable[[], Awaitable[T]]) -> T:
        if self.dead:
            raise Killed
        return await work()


class Calls(Transactions):
    """Transactions of a process that may die."""

    def __init__(self, database: Database, clock: Clock, process: Process) -> None:
        super().__init__(database, clock)
        self.process = process

    async def read(self, work: Any) -> Any:
        return await self.process.ask(lambda: Transactions.read(self, work))

    async def write(self, work: Any) -> Any:
        return await self.process.call(lambda: Transactions.write(self, work))


@dataclass
class Made:
    machine: Machine
    order: Order
    time: datetime


@dataclass
class Cloud:
    """The account at a provider. `faults` of a call: each is raised once, in order; of `launch`, `lost` ones after the
    machine was made."""

    clock: Clock
    offers: list[Offer] = field(default_factory=lambda: [H100])
    boot_s: float = 5.0
    list_lag_s: float = 0.0
    machines: dict[str, Made] = field(default_factory=dict)
    faults: dict[str, deque[Exception]] = field(default_factory=lambda: defaultdict(deque))
    lost: deque[Exception] = field(default_factory=deque)
    gone: dict[str, Gone] = field(default_factory=dict)
    false_releases: int = 0
    unconfirmed_releases: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    launched: list[Order] = field(default_factory=list)
    most_alive: Counter[str] = field(default_factory=Counter)
    on_launch: Callable[[], Awaitable[None]] | None = None

    def fail(self, call: str, *errors: Exception) -> None:
        self.faults[call].extend(errors)

    def enter(self, call: str) -> None:
        self.counts[call] += 1
        if self.faults[call]:
            raise self.faults[call].popleft()

    def make(self, order: Order) -> Machine:
        id = f"m{len(self.launched)}"
        self.launched.append(order)
        self.machines[id] = Made(Machine(id=id, name=order.name, state="booting"), order, self.clock.time)
        provision = order.name.rpartition("-")[0]
        alive = sum(made.order.name.rpartition("-")[0] == provision for made in self.machines.values())
        self.most_alive[provision] = max(self.most_alive[provision], alive)
        return self.machines[id].machine

    def names(self) -> list[str]:
        return sorted(made.machine.name for made in self.machines.values())


class Fake(Provider):
    """A provider with machines in `cloud`, as a process sees it."""

    name: ClassVar[str] = "fake"
    target: ClassVar[str] = "Fake"

    def __init__(self, cloud: Cloud, process: Process | None = None, name: str = "fake") -> None:
        self.cloud = cloud
        self.process = process or Process()
        self.name = name  # type: ignore[misc]

    async def catalog(self) -> list[Offer]:
        async def work() -> list[Offer]:
            self.cloud.enter("catalog")
            return [replace(offer, provider=self.name) for offer in self.cloud.offers]

        return await self.process.ask(work)

    async def launch(self, order: Order) -> Machine:
        async def work() -> Machine:
            self.cloud.enter("launch")
            if self.cloud.on_launch is not None:
                await self.cloud.on_launch()
            made = self.cloud.make(order)
            if self.cloud.lost:
                raise self.cloud.lost.popleft()
            return made

        return await self.process.call(work)

    async def probe(self, machine: Machine) -> Probe:
        async def work() -> Probe:
            self.cloud.enter("probe")
            made = self.cloud.machines.get(machine.id)
            if made is None:
                return Gone("Lost", "it does not exist")
            if machine.id in self.cloud.gone:
                return self.cloud.gone[machine.id]
            if self.cloud.clock.time < made.time + timedelta(seconds=self.cloud.boot_s):
                return Pending("booting", made.machine)
            return Ready(replace(made.machine, state="running", host="192.0.2.7", ssh_port=22, ssh_user="root"))

        return await self.process.ask(work)

    async def release(self, machine: Machine) -> bool:
        async def work() -> bool:
            self.cloud.enter("release")
            if self.cloud.false_releases:
                self.cloud.false_releases -= 1
                return True
            self.cloud.machines.pop(machine.id, None)
            if self.cloud.unconfirmed_releases:
                self.cloud.unconfirmed_releases -= 1
                return False
            return True

        return await self.process.call(work)

    async def list(self) -> list[Machine]:
        async def work() -> list[Machine]:
            self.cloud.enter("list")
            since = self.cloud.clock.time - timedelta(seconds=self.cloud.list_lag_s)
            return [made.machine for made in self.cloud.machines.values() if made.time <= since]

        return await self.process.ask(work)

    async def close(self) -> None:
        pass


class World:
    """One database, one cloud, and any number of planners on them."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self.database = database
        self.settings = settings
        self.clock = Clock()
        self.cloud = Cloud(self.clock)
        self.needed: set[str] | None = None

    def manager(self, process: Process | None = None, **providers: Provider) -> ResourceManager:
        process = process or Process()
        transactions = Calls(self.database, self.clock, process)
        given = providers or {"fake": Fake(self.cloud, process)}
        return ResourceManager(transactions, self.settings, given, self._is_needed, match)

    async def _is_needed(self, id: str) -> bool:
        return self.needed is None or id in self.needed

    async def until(
        self, manager: ResourceManager, id: str, *states: ProvisionState, seconds: float = 3600.0, tick: float = 1.0
    ) -> Provision:
        """The provision, once it is in one of these states, however the clock must be moved for it."""
        for _ in range(int(seconds / tick)):
            await manager.work_due()
            provision = await manager.get(id)
            if provision.status in states:
                return provision
            self.clock.advance(tick)
        raise AssertionError(f"{id} is {provision.status} after {seconds:g} s, not {states}")

    async def running(
        self, manager: ResourceManager, key: str = "job/1", *, tick: float = 1.0, **fields: Any
    ) -> Provision:
        """A new provision when it runs, or when it failed and is released."""
        provision = await manager.provision(key, "default", gpus("H100", **fields))
        return await self.until(manager, provision.id, ProvisionState.RUNNING, ProvisionState.RELEASED, tick=tick)

    async def ended(self, manager: ResourceManager, id: str) -> Provision:
        return await self.until(manager, id, ProvisionState.RELEASED)


@asynccontextmanager
async def world(url: str, settings: Settings) -> AsyncIterator[World]:
    engine = create_engine(url)
    if engine.dialect.name == "sqlite":  # processes die here, machines do not
        sa.event.listen(
            engine.sync_engine, "connect", lambda connection, _: connection.execute("PRAGMA synchronous=OFF")
        )
    try:
        database = Database(engine)
        await migrate(database)
        yield World(database, settings)
    finally:
        await engine.dispose()


async def abort_at(number: int, work: Callable[[], Awaitable[None]]) -> bool:
    """Run `work` in a task that is cancelled at the `number`-th time that it waits; whether it was."""
    cancelled = False

    class Steps:
        def __await__(self) -> Any:
            nonlocal cancelled
            inner = work().__await__()  # type: ignore[attr-defined]
            step, given, waits = inner.send, None, 0
            while True:
                try:
                    waited = step(given)
                except StopIteration:
                    return
                waits += 1
                if waits == number:
                    cancelled = True
                    task = asyncio.current_task()
                    assert task is not None
                    task.cancel()
                try:
                    step, given = inner.send, (yield waited)
                except BaseException as error:
                    step, given = inner.throw, error

    async def body() -> None:
        await Steps()

    async with asyncio.TaskGroup() as group:
        task = group.create_task(body())
        await asyncio.wait([task])
        if task.done() and not task.cancelled():
            task.result()
    return cancelled
