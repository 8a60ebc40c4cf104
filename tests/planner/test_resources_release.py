"""Compute is given back, whenever that is asked for, until the provider confirms it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

import pytest

from services.kit.settings import Settings
from services.planner.domain import Offer
from services.planner.service import provision_worker
from services.planner.states import ProvisionState
from tests.planner.resources import Fake, Process, World, gpus, refusal, world

S = ProvisionState


@pytest.fixture
async def here(make_settings: Callable[..., Settings], database_url: str) -> AsyncIterator[World]:
    async with world(database_url, make_settings()) as made:
        yield made


@pytest.fixture
async def lite(make_settings: Callable[..., Settings], sqlite_url: str) -> AsyncIterator[World]:
    """As `here`, on SQLite only: for what is decided without the database."""
    async with world(sqlite_url, make_settings()) as made:
        yield made


async def test_a_release_that_fails_is_repeated_until_it_is_confirmed(here: World) -> None:
    manager = here.manager()
    running = await here.running(manager)
    here.cloud.fail("release", *[refusal("ProviderUnavailable")] * 5)
    here.cloud.fail("list", refusal("ProviderUnavailable"))
    await manager.release(running.id)
    await manager.work_due()
    assert (await manager.get(running.id)).status is S.RELEASING
    assert len(here.cloud.machines) == 1
    since = here.clock.time
    released = await here.ended(manager, running.id)
    assert here.cloud.machines == {}
    assert here.cloud.counts["release"] == 6
    waited = (here.clock.time - since).total_seconds()
    assert waited >= 2 + 4 + 8 + 16 + 32
    assert released.cost_usd >= 3.6 * waited / 3600


async def test_a_release_that_lies_is_not_believed(here: World) -> None:
    here.cloud.false_releases = 2
    manager = here.manager()
    running = await here.running(manager)
    await manager.release(running.id)
    await manager.work_due()
    assert (await manager.get(running.id)).status is S.RELEASING
    await here.ended(manager, running.id)
    assert here.cloud.machines == {}


async def test_a_release_that_is_not_confirmed_is_repeated(here: World) -> None:
    here.cloud.unconfirmed_releases = 3
    manager = here.manager()
    running = await here.running(manager)
    await manager.release(running.id)
    await here.ended(manager, running.id)
    assert here.cloud.counts["release"] == 4


@pytest.mark.parametrize("steps", [0, 1])
async def test_a_release_before_it_runs(here: World, steps: int) -> None:
    manager = here.manager()
    provision = await manager.provision("job/1", "p", gpus("H100"))
    for _ in range(steps):
        await manager.work_due()
    await manager.release(provision.id)
    released = await here.ended(manager, provision.id)
    assert (here.cloud.machines, released.error_code, len(here.cloud.launched)) == ({}, None, steps)


async def test_a_release_while_the_machine_is_made(here: World) -> None:
    manager = here.manager()
    provision = await manager.provision("job/1", "p", gpus("H100"))

    async def release() -> None:
        await manager.release(provision.id)

    here.cloud.on_launch = release
    await manager.work_due()
    assert [made.order.name for made in here.cloud.machines.values()] == [f"aibrix-{provision.id}-0"]
    released = await here.ended(manager, provision.id)
    assert (here.cloud.machines, released.machines[0].id) == ({}, "m0")


async def test_a_release_between_the_choice_and_the_launch(here: World) -> None:
    process = Process()
    manager = here.manager(process)
    provision = await manager.provision("job/1", "p", gpus("H100"))
    catalog = Fake.catalog

    class Slow(Fake):
        async def catalog(self) -> list[Offer]:
            await manager.release(provision.id)
            return await catalog(self)

    manager.worker.providers = {"fake": Slow(here.cloud)}
    await manager.work_due()
    await here.ended(manager, provision.id)
    assert here.cloud.launched == []


async def test_a_release_that_the_watch_does_not_put_off(here: World) -> None:
    """The holder's own next look, half a minute ahead, does not overwrite that somebody wants the release now."""
    manager = here.manager()
    running = await here.running(manager)
    here.clock.advance(provision_worker.WATCH_S)
    (work,) = await manager.ledger.lease_due(10)
    await manager.release(running.id)
    assert await manager.work_due() == 0
    await manager.dispatcher.held(work)
    assert await manager.work_due() == 1
    assert (await manager.get(running.id)).status is S.RELEASED


async def test_a_provider_that_is_no_longer_configured_keeps_its_provisions(lite: World) -> None:
    running = await lite.running(lite.manager())
    without = lite.manager(other=Fake(lite.cloud, name="other"))
    await without.release(running.id)
    lite.clock.advance(1000)
    await without.work_due()
    await without.reconcile()
    assert (await without.get(running.id)).status is S.RELEASING
    await lite.ended(lite.manager(), running.id)
    assert lite.cloud.machines == {}


async def test_a_provision_that_no_job_names_is_released_within_a_period(here: World) -> None:
    manager = here.manager()
    kept, left = [await here.running(manager, f"job/{n}") for n in range(2)]
    here.needed = {kept.id}
    await manager.release_unneeded()
    assert (await manager.get(left.id)).status is S.RUNNING
    here.needed.add(left.id)
    await manager.release_unneeded()
    here.needed.discard(left.id)
    await manager.release_unneeded()
    await manager.release_unneeded()
    assert (await manager.get(left.id)).status is S.RELEASING
    await here.ended(manager, left.id)
    assert (await manager.get(kept.id)).status is S.RUNNING
    assert len(here.cloud.machines) == 1
