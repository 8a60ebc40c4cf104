"""Everything that a cloud does wrong while a machine is asked for, comes up, and runs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import pytest

from services.kit.settings import Settings
from services.planner.domain import Machine, Offer
from services.planner.resource_manager.base import Gone
from services.planner.service import provision_worker
from services.planner.states import ProvisionState
from tests.planner.resources import H100, Fake, World, gpus, refusal, world

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


async def test_no_capacity_moves_on_to_the_next_offer(here: World) -> None:
    dear = replace(H100, instance_type="dear", hourly_price_usd=9.0)
    here.cloud.offers = [dear, H100]
    here.cloud.fail("launch", refusal("NoCapacity"))
    manager = here.manager()
    running = await here.running(manager)
    assert (running.instance_type, running.hourly_price_usd) == ("dear", 9.0)
    assert here.cloud.counts["launch"] == 2
    assert running.machines[0].name.endswith("-1")


async def test_what_is_refused_everywhere_fails_with_the_reason(here: World) -> None:
    here.cloud.offers = [H100, replace(H100, region="south")]
    here.cloud.fail("launch", refusal("NoCapacity"), refusal("NoCapacity"))
    manager = here.manager()
    failed = await here.running(manager)
    assert (failed.status, failed.error_code, failed.retryable) == (S.RELEASED, "NoCapacity", True)
    assert failed.error_message == "fake: the cloud says NoCapacity"
    assert failed.cost_usd == 0
    assert here.cloud.counts["launch"] == 2


@pytest.mark.parametrize("code", ["QuotaExceeded", "InvalidCredential"])
async def test_a_refusal_of_the_account_ends_its_offers(here: World, code: str) -> None:
    here.cloud.offers = [H100, replace(H100, region="south")]
    here.cloud.fail("launch", refusal(code, retryable=False))
    other = Fake(here.cloud, name="other")
    manager = here.manager(fake=Fake(here.cloud), other=other)
    running = await here.running(manager)
    assert (running.provider, here.cloud.counts["launch"]) == ("other", 2)
    here.cloud.fail("launch", refusal(code, retryable=False), refusal(code, retryable=False))
    failed = await here.running(manager, "job/2")
    assert (failed.status, failed.error_code, failed.retryable) == (S.RELEASED, code, False)


async def test_a_wrong_request_ends_the_offers_of_its_provider(lite: World) -> None:
    """What one offer is refused for, and no other try mends, is no different for the provider's other offers."""
    lite.cloud.offers = [H100, replace(H100, region="south")]
    wrong = refusal("InvalidRequest", retryable=False)
    lite.cloud.fail("launch", wrong)
    both = {"fake": Fake(lite.cloud), "other": Fake(lite.cloud, name="other")}
    running = await lite.running(lite.manager(**both))
    assert (running.provider, lite.cloud.counts["launch"]) == ("other", 2)
    lite.cloud.fail("launch", wrong, refusal("NoCapacity"), refusal("NoCapacity"))
    failed = await lite.running(lite.manager(**both), "job/2")
    assert (failed.error_code, failed.retryable) == ("NoCapacity", True)
    assert failed.error_message == "other: the cloud says NoCapacity; fake: the cloud says InvalidRequest"
    lite.cloud.fail("launch", wrong, wrong)
    failed = await lite.running(lite.manager(**both), "job/3")
    assert (failed.error_code, failed.retryable) == ("InvalidRequest", False)


async def test_a_wrong_request_that_may_do_elsewhere_ends_one_offer(lite: World) -> None:
    lite.cloud.offers = [H100, replace(H100, region="south")]
    lite.cloud.fail("launch", refusal("InvalidRequest"))
    assert (await lite.running(lite.manager())).region == "south"
    lite.cloud.fail("launch", refusal("InvalidRequest"), refusal("InvalidRequest"))
    failed = await lite.running(lite.manager(), "job/2")
    assert (failed.error_code, failed.retryable) == ("InvalidRequest", False)


async def test_who_refused_altogether_is_not_waited_for(lite: World) -> None:
    lite.cloud.fail("launch", refusal("InvalidCredential", retryable=False))
    asked = 0

    class Once(Fake):
        async def catalog(self) -> list[Offer]:
            nonlocal asked
            asked += 1
            if asked > 1:
                raise refusal("ProviderUnavailable")
            return await super().catalog()

    failed = await lite.running(lite.manager(fake=Once(lite.cloud)))
    assert (failed.status, failed.error_code, asked) == (S.RELEASED, "InvalidCredential", 1)


async def test_a_cloud_that_may_choose_the_place_is_asked_once(lite: World) -> None:
    lite.cloud.offers = [replace(H100, region=name) for name in ("", "north", "south")]
    lite.cloud.fail("launch", refusal("NoCapacity"))
    failed = await lite.running(lite.manager())
    assert (failed.error_code, lite.cloud.counts["launch"]) == ("NoCapacity", 1)


async def test_one_cloud_without_a_key_does_not_end_a_job_that_another_will_take_later(lite: World) -> None:
    lite.cloud.offers = [replace(H100, available=False)]

    class Keyless(Fake):
        async def catalog(self) -> list[Offer]:
            raise refusal("InvalidCredential", retryable=False)

    failed = await lite.running(lite.manager(fake=Fake(lite.cloud), other=Keyless(lite.cloud, name="other")))
    assert (failed.error_code, failed.retryable) == ("NoCapacity", True)
    assert failed.error_message == "fake: no offer of 1 x H100 now; other: the cloud says InvalidCredential"


async def test_of_equal_offers_the_provider_that_is_named_first_is_taken(lite: World) -> None:
    class Slow(Fake):
        async def catalog(self) -> list[Offer]:
            for _ in range(10):
                await asyncio.sleep(0)
            return [replace(offer, provider="a lie") for offer in await super().catalog()]

    manager = lite.manager(slow=Slow(lite.cloud, name="slow"), fast=Fake(lite.cloud, name="fast"))
    assert (await lite.running(manager)).provider == "slow"


async def test_a_provider_that_is_busy_is_asked_again_later(here: World) -> None:
    busy = refusal("ProviderUnavailable")
    here.cloud.fail("launch", busy, busy)
    manager = here.manager()
    provision = await manager.provision("job/1", "p", gpus("H100"))
    await manager.work_due()
    assert await manager.work_due() == 0
    waiting = await manager.get(provision.id)
    assert (waiting.status, waiting.machines, waiting.cost_usd) == (S.PENDING, [], 0)
    running = await here.until(manager, provision.id, S.RUNNING)
    assert running.machines[0].name.endswith("-2")
    here.cloud.fail("launch", *[busy] * 10)
    failed = await here.running(manager, "job/2")
    assert (failed.status, failed.error_code, failed.retryable) == (S.RELEASED, "ProviderUnavailable", True)
    assert here.cloud.counts["launch"] == 3 + provision_worker.MOST_FAILURES


async def test_an_answer_that_never_came_is_found_by_name(here: World) -> None:
    here.cloud.lost.append(refusal("ProviderUnavailable", ambiguous=True))
    here.cloud.list_lag_s = 30
    here.cloud.fail("list", refusal("ProviderUnavailable"))
    manager = here.manager()
    running = await here.running(manager)
    assert running.machines[0].id == "m0"
    assert here.cloud.counts["launch"] == 1


async def test_an_answer_that_never_came_and_nothing_was_made(here: World) -> None:
    here.cloud.fail("launch", refusal("ProviderUnavailable", ambiguous=True))
    manager = here.manager()
    provision = await manager.provision("job/1", "p", gpus("H100"))
    await manager.work_due()
    since = here.clock.time
    running = await here.until(manager, provision.id, S.RUNNING)
    assert (here.clock.time - since).total_seconds() >= provision_worker.SETTLE_S
    assert [made.name for made in here.cloud.launched] == [f"aibrix-{provision.id}-1"]
    assert running.machines[0].name == f"aibrix-{provision.id}-1"


async def test_machines_that_never_appear_end_the_offer(here: World) -> None:
    here.cloud.fail("launch", *[refusal("ProviderUnavailable", ambiguous=True)] * 10)
    failed = await here.running(here.manager(), tick=10)
    assert (failed.status, failed.error_code) == (S.RELEASED, "ProviderUnavailable")
    assert here.cloud.counts["launch"] == provision_worker.MOST_FAILURES


async def test_a_machine_that_appears_too_late_is_released(here: World) -> None:
    """The cloud was slower than SETTLE_S: two were made, and the reconciler keeps the one that the store names."""
    here.cloud.lost.append(refusal("ProviderUnavailable", ambiguous=True))
    here.cloud.list_lag_s = 100
    manager = here.manager()
    running = await here.running(manager)
    assert len(here.cloud.machines) == 2
    here.clock.advance(100)
    await manager.reconcile()
    assert here.cloud.names() == [running.machines[0].name]


async def test_a_provider_that_breaks_or_hangs(here: World, monkeypatch: pytest.MonkeyPatch) -> None:
    here.cloud.lost.append(KeyError("a bug"))
    manager = here.manager()
    assert (await here.running(manager)).machines[0].id == "m0"
    monkeypatch.setattr(provision_worker, "LAUNCH_S", 0.01)
    here.cloud.on_launch = asyncio.Event().wait  # type: ignore[assignment]
    provision = await manager.provision("job/2", "p", gpus("H100"))
    await manager.work_due()
    here.cloud.on_launch = None
    running = await here.until(manager, provision.id, S.RUNNING)
    assert running.machines[0].name == f"aibrix-{provision.id}-1"


async def test_a_launch_that_says_nothing_is_looked_for(here: World, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Fake.launch

    async def mute(self: Fake, order: Any) -> Machine:
        await made(self, order)
        return Machine()

    monkeypatch.setattr(Fake, "launch", mute)
    running = await here.running(here.manager())
    assert (running.machines[0].id, here.cloud.counts["launch"]) == ("m0", 1)


async def test_one_that_never_becomes_ready_is_given_back(here: World) -> None:
    here.cloud.boot_s = 10**9
    manager = here.manager()
    provision = await manager.provision("job/1", "p", gpus("H100"))
    failed = await here.until(manager, provision.id, S.RELEASED, seconds=5000, tick=20)
    assert (failed.error_code, failed.retryable) == ("Timeout", True)
    assert failed.error_message == "it did not run in time: booting"
    assert here.cloud.machines == {}
    assert failed.cost_usd == pytest.approx(3.6, rel=0.02)


async def test_one_that_cannot_be_looked_at_is_given_back(lite: World) -> None:
    manager = lite.manager()
    provision = await manager.provision("job/1", "p", gpus("H100"))
    lite.cloud.fail("probe", *[refusal("ProviderUnavailable")] * 1000)
    failed = await lite.until(manager, provision.id, S.RELEASED, seconds=5000, tick=50)
    assert (failed.error_code, lite.cloud.machines) == ("Timeout", {})


@pytest.mark.parametrize(("code", "why"), [("Unhealthy", "CUDA does not start"), ("Lost", "it went away")])
async def test_one_that_comes_up_broken_is_given_back(here: World, code: str, why: str) -> None:
    here.cloud.gone["m0"] = Gone(code, why)
    failed = await here.running(here.manager())
    assert (failed.status, failed.error_code, failed.error_message) == (S.RELEASED, code, why)
    assert failed.retryable
    assert here.cloud.machines == {}


async def test_one_that_disappears_while_it_runs(here: World) -> None:
    manager = here.manager()
    running = await here.running(manager)
    here.cloud.machines.clear()
    failed = await here.until(manager, running.id, S.FAILED, S.RELEASED, seconds=60)
    assert (failed.error_code, failed.retryable) == ("Lost", True)
    assert (await here.ended(manager, running.id)).error_code == "Lost"


async def test_one_that_cannot_be_reached_while_it_runs(lite: World) -> None:
    manager = lite.manager()
    running = await lite.running(manager)
    lite.cloud.boot_s = 10**9
    lite.clock.advance(200)
    await manager.work_due()
    lite.cloud.boot_s = 1
    lite.clock.advance(500)
    await manager.work_due()
    assert (await manager.get(running.id)).machines == running.machines
    lite.cloud.boot_s = 10**9
    failed = await lite.until(manager, running.id, S.RELEASED, seconds=800, tick=10)
    assert (failed.error_code, lite.cloud.machines) == ("Unhealthy", {})
    assert "not reached for 600 s" in str(failed.error_message)


async def test_catalogs_that_do_not_answer_are_waited_for(here: World) -> None:
    here.cloud.fail("catalog", *[refusal("ProviderUnavailable")] * 3)
    assert (await here.running(here.manager())).status is S.RUNNING


async def test_a_wrong_key_is_not_waited_for(here: World) -> None:
    here.cloud.fail("catalog", refusal("InvalidCredential", retryable=False))
    failed = await here.running(here.manager())
    assert (failed.status, failed.error_code, failed.retryable) == (S.RELEASED, "InvalidCredential", False)


async def test_a_provider_that_is_silent_for_ever(lite: World) -> None:
    lite.cloud.fail("catalog", *[refusal("ProviderUnavailable")] * 1000)
    manager = lite.manager()
    provision = await manager.provision("job/1", "p", gpus("H100"))
    failed = await lite.until(manager, provision.id, S.RELEASED, seconds=5000, tick=20)
    assert (failed.error_code, failed.retryable) == ("ProviderUnavailable", True)
