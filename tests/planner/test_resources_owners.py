"""Whose a machine is, and whose a provision: the reconciler, other installations, leases, and planners that were paused."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import pytest
import structlog

from services.kit.settings import Settings
from services.planner.domain import Machine
from services.planner.states import ProvisionState
from tests.planner.resources import World, gpus, refusal, world

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


async def test_the_reconciler(here: World) -> None:
    manager = here.manager()
    running, ended = [await here.running(manager, f"job/{n}") for n in range(2)]
    await manager.release(ended.id)
    await here.ended(manager, ended.id)

    def put(id: str, name: str) -> None:
        here.cloud.machines[id] = replace(next(iter(here.cloud.machines.values())), machine=Machine(id=id, name=name))

    own = running.id[:11]
    put("of-ended", f"aibrix-{ended.id}-0")
    put("second", running.machines[0].name)
    put("not-named", f"aibrix-{running.id}-7")
    put("unknown", f"aibrix-{own}{'x' * 14}-0")
    put("foreign", "aibrix-prov-" + ("0" * 20 if not own.endswith("000000") else "1" * 20) + "-0")
    put("odd", f"aibrix-{running.id}")
    put("other", "aibrix-something-else")
    here.cloud.fail("release", refusal("ProviderUnavailable"), refusal("ProviderUnavailable"))
    await manager.reconcile()
    await manager.reconcile()
    assert set(here.cloud.machines) == {"m0", "foreign", "odd", "other"}
    assert (await manager.get(running.id)).status is S.RUNNING


async def test_the_reconciler_when_the_list_fails_or_lies(lite: World) -> None:
    manager = lite.manager()
    running = await lite.running(manager)
    lite.cloud.fail("list", refusal("ProviderUnavailable"), KeyError("a bug"))
    await manager.reconcile()
    await manager.reconcile()
    lite.cloud.list_lag_s = 10**6  # it lists nothing
    await manager.reconcile()
    assert (await manager.get(running.id)).status is S.RUNNING
    assert len(lite.cloud.machines) == 1


async def test_two_installations_share_an_account(make_settings: Callable[..., Settings], tmp_path: Any) -> None:
    urls = [f"sqlite+aiosqlite:///{tmp_path / name}.db" for name in "ab"]
    async with world(urls[0], make_settings()) as a, world(urls[1], make_settings()) as b:
        b.cloud, b.clock = a.cloud, a.clock
        b.cloud.clock = a.clock
        ours, theirs = a.manager(), b.manager()
        await a.running(ours)
        await b.running(theirs)
        with structlog.testing.capture_logs() as said:
            for _ in range(2):
                await ours.reconcile()
                await theirs.reconcile()
        assert len(a.cloud.machines) == 2
        told = [line["names"] for line in said if line["event"] == "machines of others are left alone"]
        assert sorted(told) == sorted([name] for name in a.cloud.names())


async def test_the_machines_of_a_lost_database_are_named_and_left_alone(
    make_settings: Callable[..., Settings], tmp_path: Any
) -> None:
    """Nothing tells them from those of somebody else who uses this software with the same account."""
    urls = [f"sqlite+aiosqlite:///{tmp_path / name}.db" for name in ("before", "after")]
    async with world(urls[0], make_settings()) as before, world(urls[1], make_settings()) as after:
        await before.running(before.manager())
        after.cloud = before.cloud
        with structlog.testing.capture_logs() as said:
            await after.manager().reconcile()
        assert [line["names"] for line in said if line["log_level"] == "warning"] == [before.cloud.names()]
        assert len(before.cloud.machines) == 1


async def test_a_paused_planner_changes_nothing_any_more(here: World) -> None:
    """It wakes up in the middle of a launch, after another planner took the provision over."""
    first, second = here.manager(), here.manager()
    provision = await first.provision("job/1", "p", gpus("H100"))
    asleep, awake = asyncio.Event(), asyncio.Event()

    async def sleep() -> None:
        asleep.set()
        await awake.wait()

    here.cloud.on_launch = sleep
    async with asyncio.TaskGroup() as group:
        group.create_task(first.work_due())
        await asleep.wait()
        here.cloud.on_launch = None
        assert await second.work_due() == 0
        here.clock.advance(20)
        running = await here.until(second, provision.id, S.RUNNING)
        awake.set()
    assert len(here.cloud.machines) == 2
    assert (await second.get(provision.id)).machines == running.machines
    await second.reconcile()
    assert here.cloud.names() == [running.machines[0].name]


async def test_a_lease_is_kept_while_a_step_takes_long(make_settings: Callable[..., Settings], sqlite_url: str) -> None:
    async with world(sqlite_url, make_settings(planner={"lease_ttl_s": 0.03})) as here:
        manager = here.manager()
        provision = await manager.provision("job/1", "p", gpus("H100"))
        renewed = asyncio.Event()

        async def wait() -> None:
            before = (await manager.ledger.transactions.read(_lease_end))["lease_expire_time"]
            here.clock.advance(0.02)
            while (await manager.ledger.transactions.read(_lease_end))["lease_expire_time"] == before:
                await asyncio.sleep(0)
            renewed.set()

        here.cloud.on_launch = wait
        await manager.work_due()
        assert renewed.is_set()
        assert (await manager.get(provision.id)).status is S.PROVISIONING


async def _lease_end(tx: Any) -> Any:
    from services.planner.store.tables import provisions

    return await tx.find(provisions.select())


async def test_a_step_whose_lease_is_lost_is_given_up(make_settings: Callable[..., Settings], sqlite_url: str) -> None:
    async with world(sqlite_url, make_settings(planner={"lease_ttl_s": 0.03})) as here:
        first, second = here.manager(), here.manager()
        provision = await first.provision("job/1", "p", gpus("H100"))

        async def taken_over() -> None:
            here.clock.advance(1)
            assert len(await second.ledger.lease_due(10)) == 1
            await asyncio.Event().wait()

        here.cloud.on_launch = taken_over
        assert await first.work_due() == 1
        assert (await first.get(provision.id)).status is S.PENDING
