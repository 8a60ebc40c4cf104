"""I7: no machine is left without a live provision, and none is made twice, wherever a planner dies.

A planner is killed before each call (of the database, of the cloud) that changes something, and cancelled at each place where
it waits. Then another one starts on the same database and the same cloud. Only these calls leave a trace: to die anywhere
else, such as after one of them, when its answer has not arrived, is to die before the next.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from itertools import count

import pytest
import structlog

from services.kit.settings import Settings
from services.planner.domain import Provision
from services.planner.resource_manager.choice import Work
from services.planner.service import provision_worker
from services.planner.service.provision_worker import Worker
from services.planner.service.resources import ResourceManager
from services.planner.states import ProvisionState
from tests.planner.resources import Killed, Process, World, abort_at, gpus, refusal, world

S = ProvisionState
SPEC = gpus("H100")
# More than a lease lives.
REST_S = 20.0
# All that waits, waits for a few of these: each look is a call to die at.
TICK_S = 5.0


@pytest.fixture
async def here(
    make_settings: Callable[..., Settings], database_url: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[World]:
    monkeypatch.setattr(provision_worker, "SETTLE_S", 3 * TICK_S)
    # Thousands of steps break here on purpose: their tracebacks, nicely printed, would take most of the time.
    with structlog.testing.capture_logs():
        async with world(database_url, make_settings(planner={"poll_s": TICK_S})) as made:
            made.cloud.boot_s = 1.5 * TICK_S
            yield made


async def step_all(manager: ResourceManager) -> int:
    """As `work_due`, but in the caller's own task: so that a cancel of it arrives inside of a step."""
    leased = await manager.ledger.lease_due(10)
    for work in leased:
        await manager.dispatcher.held(work)
    return len(leased)


async def life(here: World, manager: ResourceManager, key: str) -> None:
    """A provision, all the way."""
    provision = await manager.provision(key, "p", SPEC)
    await manager.reconcile()
    await reach(here, manager, provision.id, S.RUNNING, S.RELEASED)
    here.clock.advance(40)
    await step_all(manager)  # a look at what runs
    await manager.release(provision.id)
    await reach(here, manager, provision.id, S.RELEASED)
    await manager.reconcile()


async def reach(here: World, manager: ResourceManager, id: str, *states: ProvisionState) -> Provision:
    provision = await manager.get(id)
    for _ in range(1000):
        if provision.status in states:
            return provision
        if await step_all(manager):
            provision = await manager.get(id)
        here.clock.advance(TICK_S)
    raise AssertionError(f"{id} is {provision.status}, not {states}")


Faults = Callable[[World], None]


def none(here: World) -> None:
    pass


def lost(here: World) -> None:
    """The answer to the launch never comes, the list lags, the first release fails."""
    here.cloud.lost.append(refusal("ProviderUnavailable", ambiguous=True))
    here.cloud.fail("release", refusal("ProviderUnavailable"))
    here.cloud.list_lag_s = 1.5 * TICK_S


def refused(here: World) -> None:
    here.cloud.fail("launch", refusal("ProviderUnavailable", ambiguous=True), refusal("ProviderUnavailable"))


def fresh(here: World, faults: Faults) -> None:
    """A cloud with nothing in it, on the database as it is."""
    clock, boot_s = here.clock, here.cloud.boot_s
    here.cloud = type(here.cloud)(clock, boot_s=boot_s)
    faults(here)


async def recovered(here: World, key: str, *, wanted: bool) -> None:
    """A new planner, after the old one died. Either the job goes on and asks for its compute again, or it is gone."""
    here.clock.advance(REST_S)
    manager = here.manager()
    await manager.reconcile()
    if wanted:
        await life(here, manager, key)
    else:
        here.needed = set()
        await manager.release_unneeded()
        here.clock.advance(60)
        await manager.release_unneeded()
        for _ in range(100):
            await step_all(manager)
            if (await manager.list(1, live=True)) == ([], False):
                break
            here.clock.advance(TICK_S)
        await manager.reconcile()
        here.needed = None
    assert here.cloud.names() == []
    assert max(here.cloud.most_alive.values(), default=0) <= 1
    assert (await manager.list(100, live=True)) == ([], False)


@pytest.mark.parametrize("wanted", [True, False], ids=["goes-on", "job-gone"])
@pytest.mark.parametrize("faults", [none, lost, refused])
async def test_killed_at_every_change(here: World, faults: Faults, wanted: bool) -> None:
    for number in count(1):
        fresh(here, faults)
        process = Process(kill=number)
        try:
            await life(here, here.manager(process), f"job/{number}")
        except* Killed:
            pass
        # A step that dies is only logged: then the next call dies too.
        if not process.dead:
            break
        await recovered(here, f"job/{number}", wanted=wanted)
    assert number > 15


@pytest.mark.parametrize("wanted", [True, False], ids=["goes-on", "job-gone"])
async def test_cancelled_at_every_await(here: World, wanted: bool) -> None:
    cancels = 0
    for number in count(1):
        fresh(here, lost)
        key = f"job/{number}"
        manager = here.manager()

        async def work(manager: ResourceManager = manager, key: str = key) -> None:
            await life(here, manager, key)

        if not await abort_at(number, work):
            break
        cancels += 1
        await recovered(here, key, wanted=wanted)
    assert cancels >= 30


async def test_killed_again_while_it_recovers(here: World) -> None:
    """The second planner dies too, at each of its changes, after the first died when the machine had just been made."""
    made = await changes_until_made(here)
    for number in count(1):
        fresh(here, none)
        key = f"job/{number}"
        first, second = Process(kill=made + 1), Process(kill=number)
        for process in (first, second):
            manager = here.manager(process)
            try:
                await life(here, manager, key)
            except* Killed:
                pass
            here.clock.advance(REST_S)
        assert first.dead
        if not second.dead:
            break
        await recovered(here, key, wanted=True)
    assert number > 10


async def changes_until_made(here: World) -> int:
    """The number of the call that makes the machine."""
    process, found = Process(), 0

    async def note() -> None:
        nonlocal found
        found = process.calls

    here.cloud.on_launch = note
    await life(here, here.manager(process), "to-count")
    assert found
    return found


async def test_the_harness_finds_a_leak(here: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A manager that does not look before it launches again, and reconciles nothing, fails these tests."""

    async def forget(self: Worker, work: Work) -> Work | None:
        return await self._launch(work)

    monkeypatch.setattr(Worker, "_settle", forget)
    made = await changes_until_made(here)
    fresh(here, none)
    with pytest.raises(Killed):
        await life(here, here.manager(Process(kill=made + 1)), "job/1")
    with pytest.raises(AssertionError):
        await recovered(here, "job/1", wanted=True)
