"""What the Lambda Cloud provider does when the cloud refuses, hurries, hangs, loses an answer or lies."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from services.kit.settings import Settings
from services.planner.domain import Machine
from services.planner.resource_manager import lambda_client
from services.planner.resource_manager.base import Pending, ProviderError, Ready
from services.planner.resource_manager.lambda_cloud import HostKey, LambdaCloud
from services.planner.resource_manager.lambda_wire import CODES
from tests.conftest import free_port
from tests.planner.lambda_fake import KEY, FakeLambda, fake_lambda
from tests.planner.test_lambda import LAUNCH, NAME, TERMINATE, an_order, public_half

Pair = tuple[FakeLambda, LambdaCloud]


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    async with fake_lambda() as both:
        yield both
        assert both[0].violations == []
        assert both[0].hurried == 0


async def refusal(provider: LambdaCloud) -> ProviderError:
    with pytest.raises(ProviderError) as failure:
        await provider.launch(an_order())
    return failure.value


async def found(fake: FakeLambda, provider: LambdaCloud) -> Machine:
    """The machine that a lost answer was about, as the caller finds it; it can be used."""
    (machine,) = [one for one in await provider.list() if one.name == NAME]
    assert machine.host_key == public_half(fake.sent(LAUNCH)[0]["user_data"])
    fake.run(machine.id)
    assert isinstance(await provider.probe(machine), Ready)
    return machine


# Refusals.


@pytest.mark.parametrize(
    ("status", "code", "ours", "retryable", "ambiguous"),
    [
        (400, "instance-operations/launch/insufficient-capacity", "NoCapacity", True, False),
        (400, "instance-operations/launch/file-system-in-wrong-region", "InvalidRequest", False, False),
        (400, "global/invalid-parameters", "InvalidRequest", False, False),
        (400, "global/quota-exceeded", "QuotaExceeded", False, False),
        (400, "global/object-does-not-exist", "InvalidRequest", False, False),
        (404, "global/object-does-not-exist", "InvalidRequest", False, False),
        (401, "global/invalid-api-key", "InvalidCredential", False, False),
        (403, "global/account-inactive", "InvalidCredential", False, False),
        (403, "global/invalid-address", "InvalidCredential", False, False),
        (409, "global/conflict", "ProviderUnavailable", True, False),
        (409, "global/internal-error", "ProviderUnavailable", True, True),
        (500, "global/internal-error", "ProviderUnavailable", True, True),
        (409, "provider/internal-unavailable", "ProviderUnavailable", True, True),
        (402, "global/something-new", "InvalidRequest", False, False),
        (500, "", "ProviderUnavailable", True, True),
        (502, "", "ProviderUnavailable", True, True),
        (408, "", "ProviderUnavailable", True, True),
        (403, "", "InvalidCredential", False, False),
        (302, "", "InvalidRequest", False, False),
    ],
)
async def test_a_refused_launch_is_told_by_its_code_and_never_repeated(
    pair: Pair, status: int, code: str, ours: str, retryable: bool, ambiguous: bool
) -> None:
    fake, provider = pair
    fake.fault("POST", LAUNCH, status=status, code=code)
    error = await refusal(provider)
    assert (error.code, error.retryable, error.ambiguous) == (ours, retryable, ambiguous)
    assert (code or f"status {status}") in error.message
    assert len(fake.sent(LAUNCH)) == 1
    assert fake.instances == {}


def test_every_error_of_the_document_has_its_row() -> None:
    schemas = FakeLambda().spec.content["components"]["schemas"]
    codes = {schema["properties"]["code"]["const"] for name, schema in schemas.items() if name.startswith("ApiError")}
    launch = FakeLambda().spec.content["paths"]["/api/v1/instance-operations/launch"]["post"]["responses"]
    named = {name for name in schemas if f"schemas/{name}" in json.dumps(launch)}
    used = {schemas[name]["properties"]["code"]["const"] for name in named if name.startswith("ApiError")}
    assert len(used) >= 7
    assert used <= set(CODES)
    assert codes - set(CODES) <= {code for code in codes if code.startswith(("firewall-", "filesystems/", "tickets/"))}


async def test_capacity_that_is_gone_between_list_and_launch(pair: Pair) -> None:
    fake, provider = pair
    offer = next(offer for offer in await provider.catalog() if offer.instance_type == "gpu_1x_h100_sxm5")
    fake.kinds["gpu_1x_h100_sxm5"].regions.clear()
    with pytest.raises(ProviderError) as failure:
        await provider.launch(an_order(region=offer.region))
    assert (failure.value.code, failure.value.retryable, failure.value.ambiguous) == ("NoCapacity", True, False)
    # The next look is a fresh one.
    assert not [offer for offer in await provider.catalog() if offer.instance_type == offer.accelerator]
    assert [o.available for o in await provider.catalog() if o.instance_type == "gpu_1x_h100_sxm5"] == [False]


async def test_a_wrong_ssh_key_name_is_a_wrong_request() -> None:
    async with fake_lambda(lambda_cloud_ssh_keys="somebody-elses") as (_, provider):
        error = await refusal(provider)
    assert (error.code, error.retryable) == ("InvalidRequest", False)


async def test_a_wrong_key_is_told_at_once() -> None:
    async with fake_lambda(lambda_cloud_api_key="wrong") as (fake, provider):
        with pytest.raises(ProviderError) as failure:
            await provider.catalog()
        assert len(fake.requests) == 1
    assert (failure.value.code, failure.value.retryable) == ("InvalidCredential", False)


# Lost answers.


async def test_a_timeout_after_the_machine_was_made(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lambda_client, "LAUNCH_S", 0.3)
    fake, provider = pair
    fake.fault("POST", LAUNCH, done=True, hang=True)
    error = await refusal(provider)
    assert (error.code, error.retryable, error.ambiguous) == ("ProviderUnavailable", True, True)
    await found(fake, provider)
    assert len(fake.sent(LAUNCH)) == 1


@pytest.mark.parametrize("fault", [{"status": 500}, {"drop": True}, {"status": 503, "code": "global/internal-error"}])
async def test_an_answer_that_got_lost_after_the_machine_was_made(pair: Pair, fault: dict[str, Any]) -> None:
    fake, provider = pair
    fake.fault("POST", LAUNCH, done=True, **fault)
    assert (await refusal(provider)).ambiguous
    machine = await found(fake, provider)
    assert await provider.release(machine) is False
    fake.end(machine.id)
    assert await provider.release(machine) is True


async def test_a_launch_that_never_left_made_nothing(pair: Pair) -> None:
    fake, _ = pair
    settings = Settings(
        lambda_cloud_api_key=KEY,
        lambda_cloud_ssh_keys="planner",
        lambda_cloud_base_url=f"http://127.0.0.1:{free_port()}/api/v1",
    )
    provider = LambdaCloud(settings, clock=fake.clock)
    error = await refusal(provider)
    await provider.close()
    assert (error.code, error.retryable, error.ambiguous) == ("ProviderUnavailable", True, False)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"<html>",
        b"[]",
        b'{"data": {}}',
        b'{"data": {"instance_ids": []}}',
        b'{"data": {"instance_ids": [7]}}',
        b'{"data": {"instance_ids": ["../../ssh-keys"]}}',
        b'{"data": {"instance_ids": "abc"}}',
        b"[" * 100_000,
    ],
)
async def test_a_launch_with_an_answer_that_is_none_may_have_made_a_machine(pair: Pair, raw: bytes) -> None:
    fake, provider = pair
    fake.fault("POST", LAUNCH, raw=raw)
    error = await refusal(provider)
    assert (error.code, error.retryable, error.ambiguous) == ("ProviderUnavailable", True, True)


async def test_more_machines_than_were_asked_for_are_found_by_their_name(pair: Pair) -> None:
    fake, provider = pair

    def twice(answer: Any) -> Any:
        extra = fake.add(NAME, status="booting")
        return {"data": {"instance_ids": [*answer["data"]["instance_ids"], extra]}}

    fake.fault("POST", LAUNCH, change=twice)
    machine = await provider.launch(an_order())
    listed = await provider.list()
    assert {one.name for one in listed} == {NAME}
    assert machine.id in {one.id for one in listed}
    assert len(listed) == 2


# Repeats of what does no harm.


@pytest.mark.parametrize("fault", [{"status": 500}, {"status": 503}, {"drop": True}, {"status": 429}])
async def test_looking_is_repeated(pair: Pair, fault: dict[str, Any]) -> None:
    fake, provider = pair
    machine = await provider.launch(an_order())
    for _ in range(2):
        fake.fault("GET", "/instances", **fault)
    assert isinstance(await provider.probe(machine), Pending)
    for _ in range(2):
        fake.fault("GET", "/instances", **fault)
    assert [one.id for one in await provider.list()] == [machine.id]


async def test_looking_is_not_repeated_for_ever(pair: Pair) -> None:
    fake, provider = pair
    for _ in range(5):
        fake.fault("GET", "/instances", status=500)
    with pytest.raises(ProviderError) as failure:
        await provider.list()
    assert (failure.value.code, failure.value.retryable, failure.value.ambiguous) == (
        "ProviderUnavailable",
        True,
        False,
    )
    assert len(fake.requests) == 3


async def test_a_look_that_hangs_ends(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lambda_client, "GET_S", 0.2)
    fake, provider = pair
    fake.fault("GET", "/instance-types", hang=True)
    assert await provider.catalog()


async def test_a_terminate_is_repeated(pair: Pair) -> None:
    fake, provider = pair
    machine = await provider.launch(an_order())
    fake.fault("POST", TERMINATE, status=500)
    fake.fault("POST", TERMINATE, drop=True)
    assert await provider.release(machine) is False
    assert fake.instances[machine.id]["status"] == "terminating"


async def test_a_terminate_whose_answer_got_lost_is_not_sent_again(pair: Pair) -> None:
    """A second terminate of an instance that is ending is an error."""
    fake, provider = pair
    machine = await provider.launch(an_order())
    fake.fault("POST", TERMINATE, done=True, status=502)
    with pytest.raises(ProviderError) as failure:
        await provider.release(machine)
    assert "global/unknown" in failure.value.message
    assert await provider.release(machine) is False
    fake.end(machine.id)
    assert await provider.release(machine) is True


async def test_a_machine_that_vanishes_before_its_terminate_is_gone(pair: Pair) -> None:
    fake, provider = pair
    machine = await provider.launch(an_order())
    fake.fault("POST", TERMINATE, status=404, code="global/object-does-not-exist")
    assert await provider.release(machine) is True


# Lies.


async def test_a_terminate_that_says_nothing_is_looked_after(pair: Pair) -> None:
    fake, provider = pair
    machine = await provider.launch(an_order())
    fake.fault("POST", TERMINATE, raw=b'{"data": {"terminated_instances": []}}')
    assert await provider.release(machine) is False
    assert fake.instances[machine.id]["status"] == "booting"


async def test_a_path_that_is_missing_is_no_machine_that_is_gone(pair: Pair) -> None:
    """A proxy's 404, or a wrong base URL, must not pass for the end of a machine."""
    fake, provider = pair
    machine = await provider.launch(an_order())
    for fault in ({"status": 404}, {"status": 404, "raw": b'{"error": {"code": "global/not-found", "message": ""}}'}):
        for ask in (provider.release, provider.probe):
            fake.fault("GET", "/instances", **fault)
            with pytest.raises(ProviderError) as failure:
                await ask(machine)
            assert failure.value.code == "InvalidRequest"


async def test_an_answer_about_another_machine_is_none(pair: Pair) -> None:
    fake, provider = pair
    machine = await provider.launch(an_order())
    for _ in range(2):
        fake.fault("GET", "/instances", change=lambda answer: {"data": {**answer["data"], "id": "another"}})
        with pytest.raises(ProviderError) as failure:
            await provider.probe(machine)
        assert failure.value.code == "ProviderUnavailable"


@pytest.mark.parametrize("ip", ["", "not-an-address", "198.51.100.2:22", "a.example", None])
async def test_an_address_that_is_none_is_waited_for(pair: Pair, ip: str | None) -> None:
    fake, provider = pair
    machine = await provider.launch(an_order())
    fake.set(machine.id, "active")
    fake.fault("GET", "/instances", change=lambda answer: {"data": {**answer["data"], "ip": ip}})
    found = await provider.probe(machine)
    assert isinstance(found, Pending)
    assert found.machine.host == ""


async def test_a_host_key_that_we_made_is_kept_and_a_strange_one_not_taken(pair: Pair) -> None:
    fake, provider = pair
    machine = await provider.launch(an_order())
    fake.run(machine.id)
    for tags in ([], [{"key": "aibrix:host-key", "value": HostKey.generate().public}]):
        fake.instances[machine.id]["tags"] = tags
        ready = await provider.probe(machine)
        assert isinstance(ready, Ready)
        assert ready.machine.host_key == machine.host_key
    fake.instances[machine.id]["tags"] = [{"key": "aibrix:host-key", "value": "ssh-ed25519 AAAA\nmore"}]
    (listed,) = await provider.list()
    assert listed.host_key == ""


async def test_an_instance_whose_host_key_nobody_knows_is_not_used(pair: Pair) -> None:
    """It was found in the list, since its launch was never answered, and its tags are gone. The check is only for a hello."""
    fake, provider = pair
    machine = await provider.launch(an_order())
    fake.run(machine.id)
    tags, fake.instances[machine.id]["tags"] = fake.instances[machine.id]["tags"], []
    (listed,) = await provider.list()
    probe = await provider.probe(listed)
    assert isinstance(probe, Pending)
    assert "host key" in probe.detail
    fake.instances[machine.id]["tags"] = tags
    assert await provider.probe(listed) == await provider.probe(machine)
    assert isinstance(await provider.probe(listed), Ready)


@pytest.mark.parametrize("raw", [b"", b"{}", b'{"data": {}}', b'{"data": [{"name": "aibrix-x-1"}]}', b'{"data": [7]}'])
async def test_a_list_that_is_none_is_not_an_empty_one(pair: Pair, raw: bytes) -> None:
    fake, provider = pair
    fake.fault("GET", "/instances", raw=raw)
    with pytest.raises(ProviderError) as failure:
        await provider.list()
    assert (failure.value.code, failure.value.retryable) == ("ProviderUnavailable", True)


async def test_a_list_with_an_id_that_is_none_is_refused(pair: Pair) -> None:
    fake, provider = pair
    fake.add(NAME)
    fake.fault("GET", "/instances", change=lambda answer: {"data": [{**answer["data"][0], "id": "../x"}]})
    with pytest.raises(ProviderError):
        await provider.list()
    with pytest.raises(ProviderError) as failure:
        await provider.probe(Machine(id="../ssh-keys", name=NAME))
    assert failure.value.code == "InvalidRequest"


async def test_an_answer_without_end_is_cut(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lambda_client, "MOST_BYTES", 1000)
    fake, provider = pair
    for _ in range(3):
        fake.fault("GET", "/instances", raw=b" " * 2000)
    with pytest.raises(ProviderError) as failure:
        await provider.list()
    assert failure.value.code == "ProviderUnavailable"
