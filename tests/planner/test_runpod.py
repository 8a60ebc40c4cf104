"""The RunPod provider against a server that follows RunPod's OpenAPI document."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from services.planner.domain import Machine, Offer
from services.planner.resource_manager import runpod
from services.planner.resource_manager.base import Gone, Order, Pending, ProviderError, Ready
from services.planner.resource_manager.runpod import RunPod
from services.planner.resource_manager.runpod_pod import boot_script
from tests.conftest import free_port
from tests.planner.runpod_fake import HOST_KEY, PUBLIC_KEY, FakeRunPod, Gpu, fake_runpod

H100 = "NVIDIA H100 80GB HBM3"
NAME = "aibrix-prov-abc123-0"
Pair = tuple[FakeRunPod, RunPod]


@pytest.fixture
async def pair(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Pair]:
    monkeypatch.setattr("services.planner.resource_manager.runpod_ready.LOG_IDLE_S", 0.2)
    async with fake_runpod() as both:
        yield both


def an_order(name: str = NAME, **offer: object) -> Order:
    given = {"provider": "runpod", "instance_type": H100, "memory_gb": 80, "gpus": 1} | offer
    return Order(name=name, offer=Offer(**given))  # type: ignore[arg-type]


async def running(pair: Pair) -> Machine:
    """A machine that is ready."""
    fake, provider = pair
    machine = await provider.launch(an_order())
    await fake.run(machine.id)
    probe = await provider.probe(machine)
    assert isinstance(probe, Ready)
    return probe.machine


# The catalog.


async def test_an_offer_is_a_number_of_gpus_of_a_type_in_a_place(pair: Pair) -> None:
    fake, provider = pair
    fake.gpus = [Gpu(most=2, secure=2.99, stock={"US-KS-2": "LOW", "EU-RO-1": "NONE"})]
    offers = await provider.catalog()
    assert [(offer.region, offer.gpus, offer.hourly_price_usd, offer.available) for offer in offers] == [
        ("", 1, 2.99, True),
        ("US-KS-2", 1, 2.99, True),
        ("", 2, 5.98, True),
        ("US-KS-2", 2, 5.98, True),
    ]
    assert {(offer.provider, offer.instance_type, offer.accelerator, offer.memory_gb) for offer in offers} == {
        ("runpod", H100, "H100-SXM-80GB", 80)
    }


async def test_a_gpu_that_is_in_no_table_is_offered_under_its_own_name(pair: Pair) -> None:
    fake, provider = pair
    fake.gpus = [Gpu(id="NVIDIA Feynman X", name="Feynman", memory=512, most=1)]
    assert {(offer.instance_type, offer.accelerator) for offer in await provider.catalog()} == {
        ("NVIDIA Feynman X", "NVIDIA Feynman X")
    }


async def test_the_operators_data_centers_are_the_only_regions() -> None:
    async with fake_runpod(runpod_data_centers=" EU-RO-1, US-KS-2 ") as (fake, provider):
        fake.gpus = [Gpu(most=1, stock={"US-KS-2": "HIGH"})]
        offers = [(offer.region, offer.available) for offer in await provider.catalog()]
        assert offers == [("EU-RO-1", False), ("US-KS-2", True)]


async def test_prices_are_those_of_the_cloud_type_and_what_is_not_in_it_is_left_out() -> None:
    async with fake_runpod(runpod_cloud_type="COMMUNITY") as (fake, provider):
        fake.gpus = [Gpu(most=1, community=2.49), Gpu(id="NVIDIA L4", name="L4", memory=24, community=0.0)]
        offers = await provider.catalog()
        assert {(offer.instance_type, offer.hourly_price_usd) for offer in offers} == {(H100, 2.49)}
        assert fake.queries == [{"include": "AVAILABILITY", "product": "POD", "cloud": "COMMUNITY"}]
        machine = await provider.launch(an_order())
        assert fake.pods[machine.id]["cloud"] == "COMMUNITY"


async def test_what_is_sold_out_is_listed_as_unavailable(pair: Pair) -> None:
    fake, provider = pair
    fake.gpus = [Gpu(most=1, stock={})]
    assert [offer.available for offer in await provider.catalog()] == [False]


async def test_the_catalog_is_read_once_in_a_few_seconds(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    fake, provider = pair
    await asyncio.gather(*(provider.catalog() for _ in range(5)))
    assert len(fake.sent("GET", "/catalog")) == 1
    monkeypatch.setattr(runpod, "CATALOG_S", 0.0)
    provider._offers_until = 0.0
    await provider.catalog()
    await provider.catalog()
    assert len(fake.sent("GET", "/catalog")) == 3


# Launch.


async def test_a_pod_is_asked_for_with_one_gpu_type_ssh_only_and_no_secret(pair: Pair) -> None:
    fake, provider = pair
    machine = await provider.launch(an_order(region="US-KS-2", gpus=2))
    assert machine == Machine(id=machine.id, name=NAME, state="PROVISIONING")
    (body,) = fake.sent("POST", "/pods")
    script = json.loads(body.pop("args"))
    assert body == {
        "name": NAME,
        "image": "vllm/vllm-openai:latest",
        "cloud": "SECURE",
        "gpu": {"id": H100, "count": 2},
        "dataCenterIds": ["US-KS-2"],
        "disk": 200,
        "ports": ["22/tcp"],
        "env": {"PUBLIC_KEY": PUBLIC_KEY, "MACHINE_NAME": NAME},
    }
    assert script["entrypoint"] == ["/bin/sh", "-c"]
    assert script["cmd"] == [boot_script()]


async def test_the_orders_image_wins_and_small_gpus_get_enough_disk(pair: Pair) -> None:
    fake, provider = pair
    await provider.launch(replace(an_order(memory_gb=0), image="acme/engine:3"))
    (body,) = fake.sent("POST", "/pods")
    assert (body["image"], body["dataCenterIds"]) == ("acme/engine:3", [])
    assert body["disk"] >= 20


async def test_a_machine_without_a_gpu_is_refused_here(pair: Pair) -> None:
    fake, provider = pair
    with pytest.raises(ProviderError) as failure:
        await provider.launch(an_order(gpus=0))
    assert (failure.value.code, failure.value.retryable) == ("InvalidRequest", False)
    assert fake.requests == []


async def test_capacity_that_is_gone_since_the_list(pair: Pair) -> None:
    fake, provider = pair
    (offer, *_) = await provider.catalog()
    assert offer.available
    fake.gpus[0].stock = {"US-KS-2": "NONE"}
    with pytest.raises(ProviderError) as failure:
        await provider.launch(Order(name=NAME, offer=offer))
    error = failure.value
    assert (error.code, error.retryable, error.ambiguous) == ("NoCapacity", True, False)
    assert "no longer any instances available" in error.message
    assert len(fake.sent("POST")) == 1


async def test_a_gpu_that_runpod_does_not_know(pair: Pair) -> None:
    _, provider = pair
    with pytest.raises(ProviderError) as failure:
        await provider.launch(an_order(instance_type="NVIDIA H9000"))
    assert (failure.value.code, failure.value.ambiguous) == ("NoGpuType", False)


# Readiness.


async def test_a_pod_becomes_ready_with_its_address_and_the_host_key_of_its_log(pair: Pair) -> None:
    fake, provider = pair
    machine = await provider.launch(an_order())
    for status in ("PROVISIONING", "STARTING"):
        fake.set(machine.id, status)
        assert await provider.probe(machine) == Pending(f"{status}, without an address", replace(machine, state=status))
    port = await fake.run(machine.id)
    ready = await provider.probe(machine)
    assert ready == Ready(
        Machine(
            id=machine.id,
            name=NAME,
            state="RUNNING",
            host="127.0.0.1",
            ssh_port=port,
            ssh_user="root",
            http_base_url=f"https://{machine.id}-8000.proxy.runpod.net",
            host_key=HOST_KEY,
        )
    )
    logs = len(fake.sent("GET", f"/pods/{machine.id}/logs"))
    assert await provider.probe(ready.machine) == ready
    assert len(fake.sent("GET", f"/pods/{machine.id}/logs")) == logs == 1


async def test_running_without_runtime_is_not_ready(pair: Pair) -> None:
    """As a live recording has it, right after a pod was made."""
    fake, provider = pair
    machine = await provider.launch(an_order())
    fake.set(machine.id, "RUNNING")
    assert isinstance(await provider.probe(machine), Pending)


async def test_an_address_is_not_used_before_the_pod_runs(pair: Pair) -> None:
    fake, provider = pair
    machine = await provider.launch(an_order())
    await fake.run(machine.id)
    fake.set(machine.id, "STARTING")
    assert isinstance(await provider.probe(machine), Pending)


async def test_the_port_is_found_in_the_runtime_where_ssh_direct_is_missing(pair: Pair) -> None:
    fake, provider = pair
    machine = await provider.launch(an_order())
    port = await fake.run(machine.id)
    fake.publish(machine.id, port, direct=False)
    probe = await provider.probe(machine)
    assert isinstance(probe, Ready)
    assert (probe.machine.host, probe.machine.ssh_port) == ("127.0.0.1", port)


@pytest.mark.parametrize("sshd", ["silent", "http"])
async def test_an_open_port_is_not_an_ssh_server(pair: Pair, sshd: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.planner.resource_manager.health.BANNER_S", 0.2)
    fake, provider = pair
    machine = await provider.launch(an_order())
    await fake.run(machine.id, sshd=sshd)
    probe = await provider.probe(machine)
    assert isinstance(probe, Pending)
    assert "no SSH server answers" in probe.detail
    assert probe.machine.host == ""


async def test_a_port_that_nobody_listens_on(pair: Pair) -> None:
    fake, provider = pair
    machine = await provider.launch(an_order())
    fake.publish(machine.id, free_port())
    assert isinstance(await provider.probe(machine), Pending)


@pytest.mark.parametrize(("status", "code"), [("ERROR", "Unhealthy"), ("EXITED", "Unhealthy"), ("TERMINATED", "Lost")])
async def test_a_pod_that_ended_is_gone(pair: Pair, status: str, code: str) -> None:
    fake, provider = pair
    machine = await running(pair)
    fake.set(machine.id, status)
    probe = await provider.probe(machine)
    assert isinstance(probe, Gone)
    assert probe.code == code


async def test_a_pod_that_disappeared_is_lost(pair: Pair) -> None:
    fake, provider = pair
    machine = await running(pair)
    del fake.pods[machine.id]
    probe = await provider.probe(machine)
    assert isinstance(probe, Gone)
    assert probe.code == "Lost"


async def test_a_state_that_nobody_knows_yet_is_waited_for(pair: Pair) -> None:
    fake, provider = pair
    machine = await provider.launch(an_order())
    pod = fake.pods[machine.id] | {"status": "HIBERNATING"}
    fake.fault("GET", "/pods", raw=json.dumps(pod).encode())
    probe = await provider.probe(machine)
    assert isinstance(probe, Pending)
    assert probe.machine.state == "HIBERNATING"


async def test_a_machine_whose_id_is_not_known_is_waited_for(pair: Pair) -> None:
    fake, provider = pair
    assert isinstance(await provider.probe(Machine(name=NAME)), Pending)
    assert fake.requests == []


async def test_a_dead_gpu_is_unhealthy(pair: Pair) -> None:
    fake, provider = pair
    machine = await provider.launch(an_order())
    await fake.run(machine.id, log=[f"CUDA {NAME} 802", f"HOSTKEY {NAME} {HOST_KEY}"])
    probe = await provider.probe(machine)
    assert isinstance(probe, Gone)
    assert probe.code == "Unhealthy"
    assert "802" in probe.why


# Release and list.


async def test_release_is_confirmed_when_runpod_does_not_know_the_pod_any_more(pair: Pair) -> None:
    fake, provider = pair
    machine = await running(pair)
    assert await provider.release(machine) is True
    assert fake.pods == {}
    assert await provider.release(machine) is True


async def test_a_delete_that_was_not_carried_out_yet_is_no_confirmation(pair: Pair) -> None:
    fake, provider = pair
    machine = await running(pair)
    fake.fault("DELETE", "/pods", raw=b"", status=204)
    assert await provider.release(machine) is False
    fake.fault("DELETE", "/pods", raw=b"", status=204)
    fake.set(machine.id, "TERMINATED")
    assert await provider.release(machine) is True


async def test_a_404_of_something_in_between_is_no_confirmation(pair: Pair) -> None:
    fake, provider = pair
    machine = await running(pair)
    fake.fault("DELETE", "/pods", raw=b"<html>not found</html>", status=404)
    with pytest.raises(ProviderError):
        await provider.release(machine)
    assert machine.id in fake.pods


async def test_release_without_an_id_ends_what_has_the_name(pair: Pair) -> None:
    fake, provider = pair
    await provider.launch(an_order())
    await provider.launch(an_order())
    await provider.launch(an_order("aibrix-prov-abc123-01"))
    assert await provider.release(Machine(name=NAME)) is True
    assert [pod["name"] for pod in fake.pods.values()] == ["aibrix-prov-abc123-01"]


async def test_list_has_what_may_cost_money_and_carries_our_prefix(pair: Pair) -> None:
    fake, provider = pair
    first, second, third = [await provider.launch(an_order(f"aibrix-prov-abc{n}-0")) for n in range(3)]
    foreign = await provider.launch(an_order("somebody-elses"))
    fake.set(second.id, "EXITED")
    fake.set(third.id, "TERMINATED")
    fake.set(foreign.id, "RUNNING")
    assert await provider.list() == [first, replace(second, state="EXITED")]


async def test_list_reads_every_page(pair: Pair) -> None:
    fake, provider = pair
    fake.page_size = 2
    made = [await provider.launch(an_order(f"aibrix-prov-abc{n}-0")) for n in range(5)]
    assert await provider.list() == made
    assert len(fake.sent("GET", "/pods")) == 3
