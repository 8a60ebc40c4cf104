"""The Lambda Cloud provider against a server that follows Lambda's OpenAPI document."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
import yaml
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_ssh_private_key

from services.kit.settings import Settings
from services.planner.domain import Machine, Offer
from services.planner.resource_manager import health
from services.planner.resource_manager.base import Gone, Order, Pending, Probe, ProviderError, Ready
from services.planner.resource_manager.lambda_cloud import LambdaCloud
from tests.conftest import free_port
from tests.planner.lambda_fake import KEY, FakeLambda, Kind, fake_lambda

NAME = "aibrix-prov-abc123-0"
LAUNCH = "/instance-operations/launch"
TERMINATE = "/instance-operations/terminate"
Pair = tuple[FakeLambda, LambdaCloud]


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    async with fake_lambda() as both:
        yield both
        assert both[0].violations == []
        assert both[0].hurried == 0


def an_order(name: str = NAME, labels: tuple[tuple[str, str], ...] = (), **offer: object) -> Order:
    given = {"provider": "lambdaCloud", "region": "us-east-1", "instance_type": "gpu_1x_h100_sxm5", "gpus": 1} | offer
    return Order(name=name, labels=labels, offer=Offer(**given))  # type: ignore[arg-type]


def public_half(user_data: str) -> str:
    """Of the private key that a machine was sent."""
    sent = yaml.safe_load(user_data)["ssh_keys"]
    key = load_ssh_private_key(sent["ed25519_private"].encode(), password=None)
    public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
    assert public == sent["ed25519_public"]
    return public


# The catalog.


async def test_an_offer_is_an_instance_type_in_a_region(pair: Pair) -> None:
    _, provider = pair
    offers = await provider.catalog()
    assert [(o.instance_type, o.region, o.accelerator, o.memory_gb, o.gpus, o.hourly_price_usd) for o in offers] == [
        ("gpu_1x_a10", "us-west-1", "A10-24GB", 24, 1, 1.29),
        ("gpu_1x_a10", "us-east-1", "A10-24GB", 24, 1, 1.29),
        ("gpu_1x_h100_sxm5", "us-east-1", "H100-SXM-80GB", 80, 1, 4.29),
        ("gpu_8x_a100", "", "A100-SXM-40GB", 40, 8, 15.92),
    ]
    assert [offer.available for offer in offers] == [True, True, True, False]
    assert {offer.provider for offer in offers} == {"lambdaCloud"}


async def test_the_operators_region_is_the_only_one() -> None:
    async with fake_lambda(lambda_cloud_region="us-west-1") as (_, provider):
        offers = await provider.catalog()
    assert [(offer.instance_type, offer.region, offer.available) for offer in offers] == [
        ("gpu_1x_a10", "us-west-1", True),
        ("gpu_1x_h100_sxm5", "us-west-1", False),
        ("gpu_8x_a100", "us-west-1", False),
    ]


@pytest.mark.parametrize(
    ("name", "kind", "accelerator"),
    [
        ("gpu_1x_a100", Kind("A100 (40 GB PCIe)", 1, 199, ["r"]), "A100-PCIE-40GB"),
        ("gpu_1x_a100", Kind("Something (40 GB)", 1, 199, ["r"]), "A100-40GB"),
        ("gpu_1x_x900", Kind("X900 (400 GB SXM9)", 1, 999, ["r"]), "gpu_1x_x900"),
        ("gpu_1x_h400_new", Kind("H100 (80 GB SXM5)", 1, 999, ["r"]), "H100-SXM-80GB"),
        ("cpu_4x_general", Kind("N/A", 0, 10, ["r"]), ""),
    ],
)
async def test_the_description_says_which_gpu_then_the_name(
    pair: Pair, name: str, kind: Kind, accelerator: str
) -> None:
    fake, provider = pair
    fake.kinds = {name: kind}
    (offer,) = await provider.catalog()
    assert offer.accelerator == accelerator


async def test_entries_that_make_no_sense_are_left_out(pair: Pair) -> None:
    fake, provider = pair
    fake.kinds["gpu_8x_h100_sxm5"] = Kind("A10 (24 GB PCIe)", 8, 100, ["us-east-1"])  # which of the two is it?
    fake.kinds["gpu_2x_a6000"] = Kind("A6000 (48 GB)", 2, 0, ["us-east-1"])  # for nothing?

    def spoil(answer: dict[str, dict[str, dict[str, object]]]) -> object:
        answer["data"]["gpu_1x_a10"]["instance_type"] = "an A10"
        answer["data"]["gpu_1x_gh200"] = answer["data"]["gpu_1x_h100_sxm5"]
        return answer

    fake.fault("GET", "/instance-types", change=spoil)
    offers = await provider.catalog()
    assert {offer.instance_type for offer in offers} == {"gpu_1x_h100_sxm5", "gpu_8x_a100"}


async def test_the_catalog_is_asked_for_once_in_a_while(pair: Pair) -> None:
    fake, provider = pair
    await provider.catalog()
    fake.kinds["gpu_1x_a10"].regions.clear()
    await provider.catalog()
    assert len(fake.requests) == 1
    fake.clock.time += 6
    assert not any(o.available for o in await provider.catalog() if o.instance_type == "gpu_1x_a10")


# Launch.


async def test_a_launch_asks_for_one_machine_with_one_ssh_key() -> None:
    async with fake_lambda(lambda_cloud_ssh_keys=" planner , other") as (fake, provider):
        machine = await provider.launch(an_order())
        (sent,) = fake.sent(LAUNCH)
        assert fake.violations == []
    assert sent["region_name"] == "us-east-1"
    assert sent["instance_type_name"] == "gpu_1x_h100_sxm5"
    assert sent["ssh_key_names"] == ["planner"]
    assert sent["name"] == NAME
    (id,) = fake.instances
    host_key = public_half(sent["user_data"])
    assert machine == Machine(
        id=id, name=NAME, state="booting", ssh_port=fake.ssh_port, ssh_user="ubuntu", host_key=host_key
    )


async def test_the_machine_gets_a_host_key_of_its_own(pair: Pair) -> None:
    fake, provider = pair
    one, other = await provider.launch(an_order()), await provider.launch(an_order())
    assert one.host_key != other.host_key
    for sent in fake.sent(LAUNCH):
        assert sent["user_data"].startswith("#cloud-config\n")
        config = yaml.safe_load(sent["user_data"])
        assert config["ssh_deletekeys"] is True
        assert config["ssh_genkeytypes"] == []
        assert "-----BEGIN OPENSSH PRIVATE KEY-----\n" in config["ssh_keys"]["ed25519_private"]


async def test_tags_say_whose_it_is(pair: Pair) -> None:
    fake, provider = pair
    labels = (("Team/Größe", "x" * 200), ("aibrix:provision", "mine"))
    machine = await provider.launch(an_order(labels=labels))
    (sent,) = fake.sent(LAUNCH)
    assert {tag["key"]: tag["value"] for tag in sent["tags"]} == {
        "aibrix:provision": "prov-abc123",
        "aibrix:host-key": machine.host_key,
        "label:team-gr--e": "x" * 128,
        "label:aibrix:provision": "mine",
    }


@pytest.mark.parametrize("name", ["aibrix-" + "x" * 58, "another-1"])
async def test_a_name_that_cannot_be_is_not_sent(pair: Pair, name: str) -> None:
    fake, provider = pair
    with pytest.raises(ProviderError) as failure:
        await provider.launch(an_order(name))
    assert (failure.value.code, failure.value.retryable, failure.value.ambiguous) == ("InvalidRequest", False, False)
    assert fake.requests == []


async def test_what_is_nowhere_to_be_had_is_not_asked_for(pair: Pair) -> None:
    fake, provider = pair
    with pytest.raises(ProviderError) as failure:
        await provider.launch(an_order(region=""))
    assert (failure.value.code, failure.value.retryable) == ("NoCapacity", True)
    assert fake.requests == []


# Probe.


async def launched(pair: Pair) -> Machine:
    return await pair[1].launch(an_order())


async def test_a_machine_is_ready_when_it_is_active_and_has_an_address_and_an_ssh_server(pair: Pair) -> None:
    fake, provider = pair
    machine = await launched(pair)
    assert await provider.probe(machine) == Pending("booting", machine)
    fake.set(machine.id, "active")
    assert await provider.probe(machine) == Pending("active, without an address", replace(machine, state="active"))
    fake.run(machine.id)
    ready = replace(machine, state="active", host="127.0.0.1", ssh_port=fake.ssh_port, ssh_user="ubuntu")
    assert await provider.probe(machine) == Ready(ready)
    assert await provider.probe(ready) == Ready(ready)


@pytest.mark.parametrize("greeting", [None, b"", b"HTTP/1.1 400 Bad Request\r\n\r\n"])
async def test_an_open_port_is_not_an_ssh_server(
    pair: Pair, greeting: bytes | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "BANNER_S", 0.2)
    fake, provider = pair
    machine = await launched(pair)
    fake.run(machine.id)
    provider._ssh_port = free_port() if greeting is None else await fake.listen(greeting)
    found = await provider.probe(machine)
    assert isinstance(found, Pending)
    assert found.detail == f"no SSH server answers on 127.0.0.1:{provider._ssh_port}"


async def test_an_ssh_server_may_say_other_lines_first(pair: Pair) -> None:
    fake, provider = pair
    machine = await launched(pair)
    fake.run(machine.id)
    provider._ssh_port = await fake.listen(b"All connections are logged.\r\nSSH-2.0-x\r\n")
    assert isinstance(await provider.probe(machine), Ready)


@pytest.mark.parametrize(
    ("status", "code"),
    [("unhealthy", "Unhealthy"), ("terminated", "Lost"), ("terminating", "Lost"), ("preempted", "Lost")],
)
async def test_what_ended_does_not_come_back(pair: Pair, status: str, code: str) -> None:
    fake, provider = pair
    machine = await launched(pair)
    fake.set(machine.id, status, ip="127.0.0.1")
    found = await provider.probe(machine)
    assert isinstance(found, Gone)
    assert found.code == code
    assert machine.id in found.why


async def test_a_machine_that_disappears_is_lost(pair: Pair) -> None:
    fake, provider = pair
    machine = await launched(pair)
    fake.end(machine.id)
    found = await provider.probe(machine)
    assert found == Gone("Lost", f"instance {machine.id} does not exist any more")
    assert await provider.probe(replace(machine, id="")) == Gone("Lost", f"instance {NAME} does not exist any more")


async def test_a_machine_that_stays_booting_stays_pending(pair: Pair) -> None:
    _, provider = pair
    machine = await launched(pair)
    for _ in range(20):
        assert isinstance(await provider.probe(machine), Pending)


async def test_active_with_a_dead_gpu_is_what_the_health_check_says() -> None:
    seen: list[Machine] = []

    async def cuda(machine: Machine) -> Probe:
        seen.append(machine)
        return Gone("Unhealthy", "CUDA error 802: system not yet initialized")

    async with fake_lambda() as (fake, plain):
        machine = await plain.launch(an_order())
        fake.run(machine.id)
        settings = Settings(lambda_cloud_api_key=KEY, lambda_cloud_ssh_keys="planner", lambda_cloud_base_url=fake.url)
        provider = LambdaCloud(settings, health=cuda, clock=fake.clock)
        fake.clock.time += 60
        assert await provider.probe(machine) == Gone("Unhealthy", "CUDA error 802: system not yet initialized")
        await provider.close()
    (asked,) = seen
    assert (asked.host, asked.ssh_port, asked.ssh_user, asked.host_key) == ("127.0.0.1", 22, "ubuntu", machine.host_key)


async def test_a_status_that_is_not_known_is_waited_for(pair: Pair) -> None:
    fake, provider = pair
    machine = await launched(pair)

    def newer(answer: dict[str, dict[str, object]]) -> object:
        return {"data": {**answer["data"], "status": "hibernating"}}

    fake.fault("GET", "/instances", change=newer)
    assert await provider.probe(machine) == Pending("hibernating", replace(machine, state="hibernating"))


# Release and list.


async def test_a_machine_is_released_when_lambda_no_longer_has_it(pair: Pair) -> None:
    fake, provider = pair
    machine = await launched(pair)
    fake.run(machine.id)
    assert await provider.release(machine) is False
    assert fake.instances[machine.id]["status"] == "terminating"
    assert [one.state for one in await provider.list()] == ["terminating"]
    assert await provider.release(machine) is False
    fake.end(machine.id)
    assert await provider.release(machine) is True
    assert await provider.list() == []
    assert fake.sent(TERMINATE) == [{"instance_ids": [machine.id]}]


@pytest.mark.parametrize("status", ["terminated", "preempted"])
async def test_what_ended_by_itself_is_released(pair: Pair, status: str) -> None:
    fake, provider = pair
    machine = await launched(pair)
    fake.set(machine.id, status)
    assert await provider.release(machine) is True
    assert fake.sent(TERMINATE) == []


async def test_an_unhealthy_machine_is_terminated(pair: Pair) -> None:
    fake, provider = pair
    machine = await launched(pair)
    fake.set(machine.id, "unhealthy")
    assert await provider.release(machine) is False
    assert fake.instances[machine.id]["status"] == "terminating"


async def test_without_an_id_all_of_that_name_are_released(pair: Pair) -> None:
    fake, provider = pair
    ours = [fake.add(NAME), fake.add(NAME, status="booting")]
    other = fake.add("aibrix-prov-abc123-01")
    assert await provider.release(Machine(name=NAME)) is False
    assert [fake.instances[id]["status"] for id in (*ours, other)] == ["terminating", "terminating", "active"]
    for id in ours:
        fake.end(id)
    assert await provider.release(Machine(name=NAME)) is True


async def test_the_list_has_what_is_ours_and_may_cost_money(pair: Pair) -> None:
    fake, provider = pair
    machine = await launched(pair)
    for name in (None, "", "my-notebook", "my-aibrix-1"):
        fake.add(name)
    for status in ("unhealthy", "terminating", "terminated", "preempted"):
        fake.add(f"aibrix-prov-x-{status}", status=status)
    listed = await provider.list()
    assert {one.name for one in listed} == {NAME, "aibrix-prov-x-unhealthy", "aibrix-prov-x-terminating"}
    # Its host key is in its tags: a machine whose launch was never answered can be used all the same.
    assert machine in listed


# Settings.


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"lambda_cloud_api_key": ""}, "LAMBDA_CLOUD_API_KEY"),
        ({"lambda_cloud_api_key": "two words"}, "LAMBDA_CLOUD_API_KEY"),
        ({"lambda_cloud_ssh_keys": ""}, "LAMBDA_CLOUD_SSH_KEYS"),
        ({"lambda_cloud_ssh_keys": " , "}, "LAMBDA_CLOUD_SSH_KEYS"),
        ({"lambda_cloud_base_url": "http://cloud.example/api/v1"}, "LAMBDA_CLOUD_BASE_URL"),
        ({"lambda_cloud_base_url": "cloud"}, "LAMBDA_CLOUD_BASE_URL"),
        ({"lambda_cloud_base_url": "https://[::1"}, "LAMBDA_CLOUD_BASE_URL"),
    ],
)
def test_what_is_missing_or_wrong_is_named_at_start(change: dict[str, str], named: str) -> None:
    given = {"lambda_cloud_api_key": KEY, "lambda_cloud_ssh_keys": "planner"} | change
    with pytest.raises(ValueError, match=named) as failure:
        LambdaCloud(Settings(**given))  # type: ignore[arg-type]
    assert KEY not in str(failure.value)


def test_names() -> None:
    assert (LambdaCloud.name, LambdaCloud.target) == ("lambdaCloud", "LambdaCloud")
