"""The account's limits, and secrets, of the Lambda Cloud provider."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from itertools import pairwise
from typing import Any

import pytest
import structlog
import yaml

from services.planner.resource_manager.base import ProviderError
from services.planner.resource_manager.lambda_client import LAUNCH_EVERY_S, LONGEST_WAIT_S, Pace
from services.planner.resource_manager.lambda_cloud import HostKey, LambdaCloud
from tests.planner.lambda_fake import KEY, FakeLambda, VirtualClock, fake_lambda
from tests.planner.test_lambda import LAUNCH, an_order

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


# The account's limits.


async def test_a_launch_that_came_too_early_is_repeated_when_lambda_says(pair: Pair) -> None:
    fake, provider = pair
    fake.fault("POST", LAUNCH, status=429, headers={"Retry-After": "40"})
    machine = await provider.launch(an_order())
    assert list(fake.instances) == [machine.id]
    (first, second) = [at for path, at in fake.times if path == LAUNCH]
    assert 40 <= second - first < 60


@pytest.mark.parametrize("header", [{}, {"Retry-After": "soon"}, {"Retry-After": "-5"}])
async def test_without_a_number_a_whole_interval_passes(pair: Pair, header: dict[str, str]) -> None:
    fake, provider = pair
    fake.fault("GET", "/instances", status=429, headers=header)
    await provider.list()
    (first, second) = [at for _, at in fake.times]
    assert second - first >= LAUNCH_EVERY_S


async def test_a_launch_that_is_always_too_early_certainly_made_nothing(pair: Pair) -> None:
    fake, provider = pair
    for _ in range(3):
        fake.fault("POST", LAUNCH, status=429)
    error = await refusal(provider)
    assert (error.code, error.retryable, error.ambiguous) == ("ProviderUnavailable", True, False)
    assert len(fake.sent(LAUNCH)) == 3


async def test_a_rest_that_is_too_long_is_told_at_once(pair: Pair) -> None:
    fake, provider = pair
    fake.fault("GET", "/instance-types", status=429, headers={"Retry-After": "100000"})
    with pytest.raises(ProviderError) as failure:
        await provider.catalog()
    assert (failure.value.code, failure.value.retryable) == ("ProviderUnavailable", True)
    assert "rate limit" in failure.value.message
    assert len(fake.requests) == 1


async def test_a_day_of_work_hurries_nobody(pair: Pair) -> None:
    fake, provider = pair
    machines = []
    for number in range(4):
        await provider.catalog()
        machines.append(await provider.launch(an_order(f"aibrix-prov-{number}-0")))
        await provider.list()
    for machine in machines:
        await provider.probe(machine)
        await provider.release(machine)
    assert fake.hurried == 0
    launches = [at for path, at in fake.times if path == LAUNCH]
    assert min(b - a for a, b in pairwise(launches)) >= 12


async def test_the_limits_hold_for_everybody_together() -> None:
    clock = VirtualClock()
    pace = Pace(clock)
    calls: list[float] = []
    launches: list[float] = []

    async def one(launch: bool) -> None:
        await pace.turn(launch=launch)
        calls.append(clock.now())
        if launch:
            launches.append(clock.now())

    start = clock.now()
    async with asyncio.TaskGroup() as group:
        for number in range(40):
            group.create_task(one(launch=number % 5 == 0))
    calls.sort()
    launches.sort()
    assert len(calls) == 40
    assert len(launches) == 8
    assert min(b - a for a, b in pairwise(calls)) >= 1
    assert min(b - a for a, b in pairwise(launches)) >= 12
    # Launches that wait hold up nobody else.
    assert max(set(calls) - set(launches)) - start < 50
    assert launches[-1] - start < 120


async def test_a_turn_that_is_given_up_hurries_nobody() -> None:
    clock = VirtualClock()
    pace = Pace(clock)
    await pace.turn(launch=True)
    waiting = asyncio.create_task(pace.turn(launch=True))
    await asyncio.sleep(0)
    waiting.cancel()
    first = clock.now()
    await pace.turn(launch=True)
    assert clock.now() - first >= 12


async def test_who_would_wait_too_long_is_told() -> None:
    clock = VirtualClock()
    pace = Pace(clock)
    outcomes = await asyncio.gather(*(pace.turn(launch=True) for _ in range(20)), return_exceptions=True)
    refused = [outcome for outcome in outcomes if outcome is not None]
    assert len(refused) == 20 - 1 - int(LONGEST_WAIT_S / (LAUNCH_EVERY_S + 0.1))
    assert all(isinstance(error, ProviderError) and error.retryable and not error.ambiguous for error in refused)


# Secrets.


async def test_secrets_are_in_no_log_message_or_repr(pair: Pair, caplog: pytest.LogCaptureFixture) -> None:
    fake, provider = pair
    texts: list[str] = []
    with structlog.testing.capture_logs() as logs:
        machine = await provider.launch(an_order())
        fake.run(machine.id)
        texts += [repr(await provider.probe(machine)), repr(await provider.list()), repr(vars(provider))]
        user_data = fake.sent(LAUNCH)[0]["user_data"]
        for echo in (user_data, KEY, user_data[80:200], json.dumps({"authorization": f"Bearer {KEY}"})):
            fake.fault("POST", LAUNCH, status=400, code="global/invalid-parameters", detail=f"invalid: {echo}")
            error = await refusal(provider)
            texts.append(error.message + repr(error))
        for _ in range(3):
            fake.fault("GET", "/instances", status=500, code="global/internal-error", detail=KEY)
        with pytest.raises(ProviderError) as failure:
            await provider.list()
        texts.append(failure.value.message)
    texts += [repr(logs), caplog.text, repr(HostKey.generate())]
    private = yaml.safe_load(user_data)["ssh_keys"]["ed25519_private"].splitlines()
    assert len(private) > 4
    for text in texts:
        assert KEY not in text
        assert "jupyter-secret-token" not in text
        assert "PRIVATE KEY" not in text
        assert not any(line in text for line in private[2:-1])
    assert any(line["event"] == "instance made" for line in logs)


async def test_an_error_that_repeats_the_request_keeps_its_code_only(pair: Pair) -> None:
    fake, provider = pair

    def echo(_: Any) -> Any:
        sent = fake.sent(LAUNCH)[-1]["user_data"]
        return {"error": {"code": "global/invalid-parameters", "message": f"user_data: {sent}"}}

    fake.fault("POST", LAUNCH, change=echo, status=400)
    error = await refusal(provider)
    assert error.code == "InvalidRequest"
    assert error.message == (
        "Lambda Cloud refused: global/invalid-parameters: its text is left out, for it repeats what was sent"
    )


async def test_redirects_are_not_followed(pair: Pair) -> None:
    """They would take the key elsewhere."""
    fake, provider = pair
    fake.fault("GET", "/instance-types", status=307, headers={"Location": fake.url + "/instances"})
    with pytest.raises(ProviderError):
        await provider.catalog()
    assert len(fake.requests) == 1


async def test_a_call_that_is_cancelled_leaves_a_provider_that_works(pair: Pair) -> None:
    fake, provider = pair
    fake.fault("GET", "/instance-types", hang=True)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await provider.catalog()
    assert await provider.catalog()
