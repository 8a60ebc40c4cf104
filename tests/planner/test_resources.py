"""The resource manager over a cloud in memory: the whole way, and everything that a cloud does wrong."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import pytest

from services.kit.errors import AlreadyExists, InvalidArgument, NotFound
from services.kit.settings import Settings
from services.planner.domain import Group, Machine, Offer, ProvisionSpec
from services.planner.resource_manager.base import Gone, ProviderError
from services.planner.service import provision_asking, provision_worker
from services.planner.states import ProvisionState
from tests.planner.resources import H100, Fake, Process, World, gpus, refusal, world

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


@pytest.mark.parametrize(
    ("spec", "param", "code"),
    [
        (gpus("H100", spot=True), "resource_request.spot", "invalid_value"),
        (gpus(), "resource_request.groups.0.accelerator_preference.preferred_types", "missing_required_parameter"),
        (gpus("H100", providers=["runpod"]), "resource_request.providers", "invalid_value"),
        (gpus("H100", providers=["fake", "fake"]), "resource_request.providers", "invalid_value"),
        (gpus("H100", providers=[""]), "resource_request.providers.0", "invalid_value"),
        (gpus("H100", regions=["x"] * 33), "resource_request.regions", "invalid_value"),
        (gpus("H100", regions=["a\0b"]), "resource_request.regions.0", "invalid_value"),
        (gpus("H100", max_hourly_price_usd=-1.0), "resource_request.max_hourly_price_usd", "invalid_value"),
        (gpus("H100", max_hourly_price_usd=float("nan")), "resource_request.max_hourly_price_usd", "invalid_value"),
        (gpus("H100", labels={"a": "x" * 129}), "resource_request.labels.a", "invalid_value"),
        (gpus("H100", labels={"\n": "x"}), "resource_request.labels", "invalid_value"),
        (gpus("H100", image="x" * 513), "resource_request.image", "invalid_value"),
        (gpus("H100", count=65), "resource_request.groups.0.gpus_per_replica", "invalid_value"),
        (gpus("H100", count=-1), "resource_request.groups.0.gpus_per_replica", "invalid_value"),
        (gpus("H100", count=0), "resource_request.groups.0.gpus_per_replica", "invalid_value"),
        (gpus("H100", memory=-1), "resource_request.groups.0.accelerator_preference.min_memory_gb", "invalid_value"),
        (gpus("H100", " "), "resource_request.groups.0.accelerator_preference.preferred_types.1", "invalid_value"),
        (ProvisionSpec(groups=[Group(replicas=2)]), "resource_request.groups.0.replicas", "invalid_value"),
        (ProvisionSpec(groups=[Group(), Group()]), "resource_request.groups", "invalid_value"),
    ],
)
async def test_what_is_refused(lite: World, spec: ProvisionSpec, param: str, code: str) -> None:
    manager = lite.manager()
    with pytest.raises(InvalidArgument) as refused:
        await manager.provision("job/1", "p", spec)
    assert refused.value.context == {"param": param, "code": code}
    assert await manager.list() == ([], False)


async def test_the_refusal_of_a_provider_lists_the_configured_ones(lite: World) -> None:
    manager = lite.manager(one=Fake(lite.cloud, name="one"), two=Fake(lite.cloud, name="two"))
    with pytest.raises(InvalidArgument, match=r"'RunPod' is not configured here\. Configured are: one, two\."):
        await manager.provision("job/1", "p", gpus("H100", providers=["RunPod"]))


@pytest.mark.parametrize(("key", "project", "param"), [("", "p", "idempotency_key"), ("k", "", "project_id")])
async def test_what_must_be_there(lite: World, key: str, project: str, param: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        await lite.manager().provision(key, project, gpus("H100"))
    assert refused.value.context == {"param": param, "code": "missing_required_parameter"}


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
    assert (failed.error_code, failed.retryable) == ("Timeout", True)


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
        await ours.reconcile()
        await theirs.reconcile()
        assert len(a.cloud.machines) == 2


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
            while (await manager.get(id)).status not in states:
                await asyncio.wait_for(manager.changed.listen().wait(), 20)

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
