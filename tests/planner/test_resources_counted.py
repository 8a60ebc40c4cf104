"""What is there anyway: static endpoints and this machine. Never more is given than there is."""

from __future__ import annotations

import asyncio
import stat
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.kit.settings import Settings
from services.planner.domain import Machine, Offer, ProvisionSpec
from services.planner.resource_manager import local as local_module
from services.planner.resource_manager.base import Gone, Order, ProviderError
from services.planner.resource_manager.local import Gpu, Local, find_gpus, parse_query
from services.planner.resource_manager.static import Static
from services.planner.states import ProvisionState
from tests.planner.resources import World, abort_at, gpus, world

S = ProvisionState
ANY = ProvisionSpec()


def endpoint(name: str, capacity: int = 1, **fields: Any) -> dict[str, Any]:
    return {"name": name, "base_url": f"http://{name}.example:8000/v1", "capacity": capacity} | fields


@pytest.fixture
async def here(make_settings: Callable[..., Settings], database_url: str) -> AsyncIterator[World]:
    async with world(database_url, make_settings()) as made:
        yield made


def static(here: World, *endpoints: dict[str, Any]) -> Static:
    return Static(here.settings.model_copy(update={"static": type(here.settings.static)(endpoints=list(endpoints))}))


async def test_an_endpoint_is_taken_and_given_back(here: World) -> None:
    manager = here.manager(
        static=static(here, endpoint("a", hourly_price_usd=36.0, api_key_env="AIBRIX_ENDPOINT_KEY_A"))
    )
    provision = await manager.provision("job/1", "p", ANY)
    assert await manager.work_due() == 1
    running = await manager.get(provision.id)
    assert (running.status, running.provider, running.instance_type) == (S.RUNNING, "static", "a")
    assert [machine.http_base_url for machine in running.machines] == ["http://a.example:8000/v1"]
    assert manager.targets() == {"static": "External"}
    ((offer,), _) = await manager.catalog()
    assert not offer.available
    here.clock.advance(10)
    assert (await manager.get(provision.id)).cost_usd == pytest.approx(0.1)
    await manager.release(provision.id)
    await manager.work_due()
    assert (await manager.get(provision.id)).status is S.RELEASED
    ((offer,), _) = await manager.catalog()
    assert offer.available


async def test_a_full_endpoint_moves_on_and_all_full_fails(here: World) -> None:
    given = static(here, endpoint("a", 1), endpoint("b", 2, hourly_price_usd=1.0))
    managers = [here.manager(static=given) for _ in range(2)]
    made = await asyncio.gather(*(managers[n % 2].provision(f"job/{n}", "p", ANY) for n in range(5)))
    await asyncio.gather(*(manager.work_due() for manager in managers))
    found = [await managers[0].get(one.id) for one in made]
    assert sorted(one.instance_type for one in found if one.status is S.RUNNING) == ["a", "b", "b"]
    failed = [one for one in found if one.error_code]
    assert [(one.error_code, one.retryable) for one in failed] == [("NoCapacity", True)] * 2
    assert failed[0].error_message == "static: a: all 1 are taken; static: b: all 2 are taken"


async def test_an_endpoint_that_is_taken_out_of_the_settings(here: World) -> None:
    manager = here.manager(static=static(here, endpoint("a")))
    provision = await manager.provision("job/1", "p", ANY)
    await manager.work_due()
    other = here.manager(static=static(here, endpoint("b")))
    failed = await here.until(other, provision.id, S.RELEASED, seconds=60)
    assert (failed.error_code, failed.retryable) == ("Lost", True)
    assert failed.error_message == "the endpoint a is no longer in AIBRIX_STATIC__ENDPOINTS"


async def test_a_planner_that_dies_with_a_place_in_its_hands(here: World) -> None:
    """Wherever it is cancelled, the next one goes on with the same place, and in the end all are free."""
    given = static(here, endpoint("a", 1))
    for number in range(1, 100):
        manager = here.manager(static=given)
        provision = await manager.provision(f"job/{number}", "p", ANY)

        async def work(manager: Any = manager, id: str = provision.id) -> None:
            for held in await manager.ledger.lease_due(10):
                await manager.dispatcher.held(held)
            await manager.release(id)
            for held in await manager.ledger.lease_due(10):
                await manager.dispatcher.held(held)

        cancelled = await abort_at(number, work)
        here.clock.advance(20)
        manager = here.manager(static=given)
        if (await manager.get(provision.id)).status is not S.RELEASED:
            found = await here.until(manager, provision.id, S.RUNNING, S.RELEASED, seconds=60)
            assert (found.instance_type, found.error_code) == ("a", None)
            await manager.release(provision.id)
            await here.ended(manager, provision.id)
        ((offer,), _) = await manager.catalog()
        assert offer.available
        if not cancelled:
            break
    assert number > 5


@settings(max_examples=25)
@given(
    st.lists(st.integers(1, 3), min_size=1, max_size=3),
    st.lists(st.tuples(st.integers(0, 1), st.sampled_from(["ask", "give back", "work", "both work"])), max_size=25),
)
def test_never_more_than_there_is(
    make_settings: Callable[..., Settings], tmp_path_factory: pytest.TempPathFactory, capacities: list[int], steps: Any
) -> None:
    """Two planners share the endpoints; whatever they do in whatever order, no endpoint has more than its capacity."""
    asyncio.run(
        _never_more(make_settings(), f"sqlite+aiosqlite:///{tmp_path_factory.mktemp('x')}/x.db", capacities, steps)
    )


@pytest.mark.parametrize("capacity", [1, 7])
async def test_never_more_than_there_is_under_rivals(
    make_settings: Callable[..., Settings], postgres_url: str, capacity: int
) -> None:
    steps = [(number % 2, "ask") for number in range(20)] + [(0, "both work")]
    await _never_more(make_settings(), postgres_url, [capacity], steps, exactly=capacity)


async def _never_more(given: Settings, url: str, capacities: list[int], steps: Any, exactly: int | None = None) -> None:
    async with world(url, given) as here:
        most = {f"e{number}": capacity for number, capacity in enumerate(capacities)}
        provider = static(here, *(endpoint(name, capacity) for name, capacity in most.items()))
        managers = [here.manager(static=provider) for _ in range(2)]
        ids: list[str] = []
        for which, what in steps:
            if what == "ask":
                ids.append((await managers[which].provision(f"job/{len(ids)}", "p", ANY)).id)
            elif what == "give back" and ids:
                await managers[which].release(ids[len(ids) // 2])
            elif what == "work":
                await managers[which].work_due()
            elif what == "both work":
                await asyncio.gather(*(manager.work_due() for manager in managers))
            found = [await managers[0].get(id) for id in ids]
            taken = [one.instance_type for one in found if one.status in (S.PROVISIONING, S.RUNNING)]
            assert all(taken.count(name) <= capacity for name, capacity in most.items())
        assert exactly is None or len(taken) == exactly


@pytest.mark.parametrize(
    ("endpoints", "message"),
    [
        ([], "AIBRIX_STATIC__ENDPOINTS is empty"),
        ([{"name": "a"}], r"AIBRIX_STATIC__ENDPOINTS: 0\.base_url: Field required"),
        ([endpoint("a"), endpoint("a")], "AIBRIX_STATIC__ENDPOINTS: two endpoints are called 'a'"),
        ([endpoint("a", capacity=0)], r"AIBRIX_STATIC__ENDPOINTS: 0\.capacity: "),
        ([endpoint("a", capacity="2")], r"AIBRIX_STATIC__ENDPOINTS: 0\.capacity: "),
        ([endpoint("a", base_url="ftp://x")], r"AIBRIX_STATIC__ENDPOINTS: 0\.base_url: .*http or https URL"),
        ([endpoint("a", base_url="http://user:pass@x")], r"AIBRIX_STATIC__ENDPOINTS: 0\.base_url: "),
        ([endpoint("a", api_key_env="PATH")], r"AIBRIX_STATIC__ENDPOINTS: 0\.api_key_env: "),
        ([endpoint("a", hourly_price_usd=-1)], r"AIBRIX_STATIC__ENDPOINTS: 0\.hourly_price_usd: "),
        ([endpoint("a", labels={"x": 1})], r"AIBRIX_STATIC__ENDPOINTS: 0\.labels\.x: "),
        ([endpoint("a", more=1)], r"AIBRIX_STATIC__ENDPOINTS: 0\.more: "),
        ([endpoint("")], r"AIBRIX_STATIC__ENDPOINTS: 0\.name: "),
        ([endpoint("a"), endpoint("b", region=7)], r"AIBRIX_STATIC__ENDPOINTS: 1\.region: "),
    ],
)
def test_wrong_endpoints_stop_the_start(
    make_settings: Callable[..., Settings], endpoints: list[dict[str, Any]], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as stopped:
        Static(make_settings(static={"endpoints": endpoints}))
    assert "pass" not in str(stopped.value)


async def test_static_calls_are_harmless(make_settings: Callable[..., Settings]) -> None:
    provider = Static(make_settings(static={"endpoints": [endpoint("a")]}))
    assert await provider.list() == []
    assert await provider.release(Machine(id="unknown"))
    assert isinstance(await provider.probe(Machine(id="unknown")), Gone)
    with pytest.raises(ProviderError, match="there is no endpoint x any more"):
        await provider.launch(Order(name="n", offer=Offer(provider="static", instance_type="x")))
    assert provider.capacity(Offer(provider="static", instance_type="x")) == 0
    await provider.close()


# This machine.


@pytest.fixture
def gpus_here(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def have(*found: Gpu) -> None:
        async def look() -> list[Gpu]:
            return list(found)

        monkeypatch.setattr(local_module, "find_gpus", look)

    have()
    return have


async def test_a_cpu_has_one_place(here: World, gpus_here: Callable[..., None]) -> None:
    manager = here.manager(local=Local(here.settings))
    made = [await manager.provision(f"job/{n}", "p", ANY) for n in range(2)]
    await manager.work_due()
    first, second = [await manager.get(one.id) for one in made]
    assert {first.status, second.status} == {S.RUNNING, S.FAILED}
    assert manager.targets() == {"local": "Local"}
    wanted = await manager.provision("job/3", "p", gpus("H100"))
    await manager.work_due()
    assert (await manager.get(wanted.id)).error_code == "NoGpuType"


async def test_gpus_are_counted(here: World, gpus_here: Callable[..., None]) -> None:
    gpus_here(*[Gpu("H100-SXM-80GB", 80)] * 4, Gpu("L4", 24))
    manager = here.manager(local=Local(here.settings))
    asked = [
        gpus("H100", count=3),
        gpus("H100", count=2),
        gpus("H100", count=1, memory=80),
        gpus("L4"),
        gpus("L4", memory=48),
        ANY,
        gpus("H100", count=5),
    ]
    found = []
    for number, spec in enumerate(asked):
        provision = await manager.provision(f"job/{number}", "p", spec)
        await manager.work_due()
        found.append(await manager.get(provision.id))
    assert [one.status is S.RUNNING for one in found] == [True, False, True, True, False, True, False]
    assert [one.error_code for one in found] == [None, "NoCapacity", None, None, "NoGpuType", None, "NoGpuType"]
    assert [one.gpus_per_replica for one in found if not one.error_code] == [3, 1, 1, 0]
    await manager.release(found[0].id)
    await here.ended(manager, found[0].id)
    again = await manager.provision("job/again", "p", gpus("H100", count=3))
    await manager.work_due()
    assert (await manager.get(again.id)).status is S.RUNNING


async def test_another_planners_machine_is_not_ours(here: World, gpus_here: Callable[..., None]) -> None:
    """What one planner had chosen of its own machine, before it died, another cannot launch."""
    first, second = Local(here.settings), Local(here.settings)
    first.host, second.host = "one", "two"
    dying = here.manager(local=first)
    provision = await dying.provision("job/1", "p", ANY)
    (work,) = await dying.ledger.lease_due(1)
    await dying.ledger.reserve(work, (await first.catalog())[0], 1)
    here.clock.advance(20)
    running = await here.until(here.manager(local=second), provision.id, S.RUNNING)
    assert running.instance_type == "two/cpu"
    assert await second.list() == []
    assert await second.release(running.machines[0])
    await second.close()


def test_what_nvidia_smi_says() -> None:
    text = "NVIDIA H100 80GB HBM3, 81559\nNVIDIA L4, 23034\nNVIDIA H200, 143771\nNVIDIA A100-SXM4-40GB, 40960\n\nTesla, odd, [N/A]\n"
    assert parse_query(text) == [
        Gpu("NVIDIA H100 80GB HBM3", 80),
        Gpu("NVIDIA L4", 24),
        Gpu("NVIDIA H200", 141),
        Gpu("NVIDIA A100-SXM4-40GB", 40),
        Gpu("Tesla, odd", 0),
    ]
    assert parse_query("") == []


def program(folder: Path, script: str) -> None:
    path = folder / "nvidia-smi"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


async def test_nvidia_smi_is_asked_and_else_the_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = tmp_path / "gpus"
    for number, text in enumerate(["Model: \t\t NVIDIA L4\nIRQ: 7\n", "IRQ: 8\n"]):
        (driver / str(number)).mkdir(parents=True)
        (driver / str(number) / "information").write_text(text)
    monkeypatch.setattr(local_module, "DRIVER", driver)
    monkeypatch.setattr(local_module, "QUERY_S", 0.2)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    shown = [Gpu("NVIDIA L4", 0)]
    program(tmp_path, 'echo "NVIDIA H200, 143771"')
    assert await find_gpus() == [Gpu("NVIDIA H200", 141)]
    program(tmp_path, "exit 9")
    assert await find_gpus() == shown
    program(tmp_path, "exec sleep 60")
    assert await find_gpus() == shown
    (tmp_path / "nvidia-smi").unlink()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert await find_gpus() == shown
    monkeypatch.setattr(local_module, "DRIVER", tmp_path / "none")
    assert await find_gpus() == []
