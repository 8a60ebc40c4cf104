"""The resource manager over a cloud in memory: from the intent to nothing, keys, pages, the catalog, and its loops."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest

from services.kit.errors import AlreadyExists, InvalidArgument, NotFound
from services.kit.settings import Settings
from services.planner.domain import Machine, Offer
from services.planner.resource_manager.base import ProviderError
from services.planner.service import provision_asking
from services.planner.states import ProvisionState
from tests.planner.resources import H100, Fake, World, gpus, world

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


async def test_from_the_intent_to_nothing(here: World) -> None:
    manager = here.manager()
    wanted = await manager.provision("job_1/1", "project", gpus("H100", image="an-image", labels={"a": "b"}))
    assert (wanted.status, wanted.provider, wanted.machines, wanted.cost_usd) == (S.PENDING, "", [], 0)
    assert here.cloud.machines == {}
    assert await manager.work_due() == 1
    made = await manager.get(wanted.id)
    assert made.status is S.PROVISIONING
    name = f"aibrix-{wanted.id}-0"
    assert made.machines == [Machine(id="m0", name=name, state="booting")]
    (order,) = here.cloud.launched
    assert (order.name, order.image, order.labels, order.offer) == (name, "an-image", (("a", "b"),), H100)
    running = await here.until(manager, wanted.id, S.RUNNING)
    assert running.machines[0].host == "192.0.2.7"
    assert (running.provider, running.region, running.instance_type) == ("fake", "north", "1x-h100")
    assert (running.accelerator, running.gpus_per_replica, running.hourly_price_usd) == ("H100-SXM-80GB", 1, 3.6)
    assert running.running_time == here.clock.time
    here.clock.advance(1000 - (here.clock.time - wanted.create_time).total_seconds())
    assert (await manager.get(wanted.id)).cost_usd == pytest.approx(1.0)
    releasing = await manager.release(wanted.id)
    assert releasing.status is S.RELEASING
    assert len(here.cloud.machines) == 1
    released = await here.ended(manager, wanted.id)
    assert here.cloud.machines == {}
    assert (released.error_code, released.cost_usd) == (None, pytest.approx(1.0))
    here.clock.advance(10_000)
    assert (await manager.get(wanted.id)).cost_usd == pytest.approx(1.0)
    assert (await manager.release(wanted.id)).status is S.RELEASED
    assert await manager.work_due() == 0


async def test_ids_begin_with_the_installation(here: World) -> None:
    first, second = [await here.manager().provision(f"job/{n}", "p", gpus("H100")) for n in range(2)]
    assert len(first.id) == len("prov-") + 20
    assert first.id[:11] == second.id[:11]
    assert first.id != second.id
    assert first.id.removeprefix("prov-").isalnum()


async def test_a_key_gives_one_provision(here: World) -> None:
    managers = [here.manager(), here.manager()]
    spec = gpus("H100", labels={"b": "1", "a": "2"})
    same = await asyncio.gather(*(managers[n % 2].provision("job/1", "p", spec) for n in range(10)))
    assert len({provision.id for provision in same}) == 1
    again = gpus("H100", labels={"a": "2", "b": "1"})
    assert (await managers[0].provision("job/1", "p", again)).id == same[0].id
    for other in (("job/1", "p", gpus("H200")), ("job/1", "another", spec)):
        with pytest.raises(AlreadyExists):
            await managers[0].provision(*other)
    assert len((await managers[0].list())[0]) == 1


async def test_nobody_knows_it(lite: World) -> None:
    manager = lite.manager()
    for call in (manager.get, manager.release):
        with pytest.raises(NotFound):
            await call("prov-x")


async def test_pages(here: World) -> None:
    manager = here.manager()
    ids = []
    for number in range(5):
        here.clock.advance(1)
        ids.append((await manager.provision(f"job/{number}", "p", gpus("H100"))).id)
    first, more = await manager.list(2)
    assert ([one.id for one in first], more) == ([ids[4], ids[3]], True)
    second, more = await manager.list(3, after=ids[3])
    assert ([one.id for one in second], more) == ([ids[2], ids[1], ids[0]], False)
    assert await manager.list(3, after="prov-unknown") == ([], False)
    await manager.release(ids[2])
    await here.ended(manager, ids[2])
    live, _ = await manager.list(100, live=True)
    assert {one.id for one in live} == {*ids} - {ids[2]}
    for wrong in (-1, 101):
        with pytest.raises(InvalidArgument):
            await manager.list(wrong)


async def test_the_catalog(here: World, monkeypatch: pytest.MonkeyPatch) -> None:
    broken, silent = Fake(here.cloud, name="broken"), Fake(here.cloud, name="silent")

    async def fail() -> list[Offer]:
        raise ProviderError("InvalidCredential", "the key is not accepted", retryable=False)

    async def hang() -> list[Offer]:
        await asyncio.Event().wait()
        return []

    monkeypatch.setattr(broken, "catalog", fail)
    monkeypatch.setattr(silent, "catalog", hang)
    monkeypatch.setattr(provision_asking, "CATALOG_S", 0.05)
    manager = here.manager(fake=Fake(here.cloud), broken=broken, silent=silent)
    offers, unavailable = await manager.catalog()
    assert offers == [H100]
    assert unavailable == {
        "broken": "InvalidCredential: the key is not accepted",
        "silent": "ProviderUnavailable: no answer within 0.05 s",
    }
    assert await manager.catalog("fake") == ([H100], {})
    with pytest.raises(InvalidArgument, match="Configured are: broken, fake, silent"):
        await manager.catalog("runpod")
    assert manager.targets() == {"fake": "Fake", "broken": "Fake", "silent": "Fake"}


async def test_the_loops(make_settings: Callable[..., Settings], database_url: str) -> None:
    """With the real clock: a bell, not the poll, makes it go on."""
    from services.kit.lifecycle import background
    from services.kit.sql import db_now

    settings = make_settings(planner={"poll_s": 0.01, "reconcile_s": 0.1})
    async with world(database_url, settings) as here:
        here.cloud.boot_s = 0
        manager = here.manager()
        manager.ledger.transactions._now = db_now

        async def until(id: str, *states: ProvisionState) -> None:
            while True:
                changed = manager.changed.listen()  # before the look: what changes after it rings
                if (await manager.get(id)).status in states:
                    return
                await asyncio.wait_for(changed.wait(), 20)

        async with background(*manager.loops()):
            made = [await manager.provision(f"job/{n}", "p", gpus("H100")) for n in range(5)]
            for one in made:
                await until(one.id, S.RUNNING)
            here.needed = {one.id for one in made[1:]}
            await until(made[0].id, S.RELEASED)
            for one in made[1:]:
                await manager.release(one.id)
                await until(one.id, S.RELEASED)
        assert here.cloud.machines == {}
        assert max(here.cloud.most_alive.values()) == 1


async def test_two_planners_on_one_database(make_settings: Callable[..., Settings], postgres_url: str) -> None:
    async with world(postgres_url, make_settings()) as here:
        managers = [here.manager() for _ in range(2)]
        made = await asyncio.gather(*(managers[n % 2].provision(f"job/{n}", "p", gpus("H100")) for n in range(40)))
        ids = {one.id for one in made}
        for wanted in (S.RUNNING, S.RELEASED):
            for _ in range(100):
                await asyncio.gather(*(manager.work_due() for manager in managers), managers[0].reconcile())
                found, _ = await managers[0].list(100)
                if {one.status for one in found} == {wanted}:
                    break
                here.clock.advance(1)
            assert {one.status for one in found} == {wanted}
            assert len(here.cloud.launched) == 40
            assert len(here.cloud.machines) == (40 if wanted is S.RUNNING else 0)
            for id in ids:
                await managers[1].release(id)
