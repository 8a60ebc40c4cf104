"""What the RunPod provider makes of refusals, lost answers, rate limits and lies."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.planner.domain import Machine, Offer
from services.planner.resource_manager import runpod_client
from services.planner.resource_manager.base import Order, Pending, ProviderError, Ready
from services.planner.resource_manager.runpod import RunPod
from services.planner.resource_manager.runpod_client import Pace, refused
from services.planner.resource_manager.runpod_wire import decode_gpus, decode_pod, decode_pods, read
from tests.conftest import free_port
from tests.planner.runpod_fake import KEY, NO_CAPACITY, FakeRunPod, fake_runpod

NAME = "aibrix-prov-abc123-0"
ORDER = Order(name=NAME, offer=Offer(provider="runpod", instance_type="NVIDIA H100 80GB HBM3", memory_gb=80, gpus=1))
Pair = tuple[FakeRunPod, RunPod]
Call = Callable[[RunPod], Awaitable[Any]]


@pytest.fixture
async def pair(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Pair]:
    monkeypatch.setattr(runpod_client, "BACKOFF_S", 0.01)
    monkeypatch.setattr("services.planner.resource_manager.runpod_ready.LOG_IDLE_S", 0.2)
    async with fake_runpod() as both:
        yield both


async def fails(call: Awaitable[Any]) -> ProviderError:
    with pytest.raises(ProviderError) as failure:
        await call
    assert KEY not in repr(failure.value) + failure.value.message
    return failure.value


# What a refusal means.


@pytest.mark.parametrize(
    ("status", "detail", "code", "retryable", "ambiguous"),
    [
        (400, NO_CAPACITY, "NoCapacity", True, False),
        (400, "There are no instances currently available", "NoCapacity", True, False),
        (400, "gpu.id not found: NVIDIA H9000", "NoGpuType", True, False),
        (400, "exactly one of gpu or cpu must be set", "InvalidRequest", True, False),
        (401, "missing bearer token", "InvalidCredential", False, False),
        (402, "insufficient balance", "QuotaExceeded", False, False),
        (403, "access denied", "NoGpuType", True, False),
        (404, "template not found", "InvalidRequest", False, False),
        (405, "method not allowed", "InvalidRequest", False, False),
        (408, "timeout", "ProviderUnavailable", True, True),
        (409, "wrong state", "ProviderUnavailable", True, False),
        (410, "gone", "InvalidRequest", False, False),
        (413, "request body too large", "InvalidRequest", False, False),
        (422, "$: additional properties 'bogus' not allowed", "InvalidRequest", False, False),
        (422, "$.gpu: additional properties 'gpuTypeId' not allowed", "InvalidRequest", False, False),
        (429, "slow down", "ProviderUnavailable", True, False),
        (500, "boom", "ProviderUnavailable", True, True),
        (503, "capacity", "ProviderUnavailable", True, True),
        (524, "", "ProviderUnavailable", True, True),
    ],
)
def test_a_refused_launch(status: int, detail: str, code: str, retryable: bool, ambiguous: bool) -> None:
    error = refused("POST", status, detail)
    assert (error.code, error.retryable, error.ambiguous) == (code, retryable, ambiguous)
    assert str(status) in error.message


@pytest.mark.parametrize(
    ("status", "code", "retryable"),
    [
        (400, "InvalidRequest", False),
        (401, "InvalidCredential", False),
        (403, "InvalidCredential", False),
        (409, "ProviderUnavailable", True),
        (429, "ProviderUnavailable", True),
        (500, "ProviderUnavailable", True),
    ],
)
def test_a_refused_question(status: int, code: str, retryable: bool) -> None:
    error = refused("GET", status, "capacity")
    assert (error.code, error.retryable, error.ambiguous) == (code, retryable, False)


@pytest.mark.parametrize("status", [400, 402, 403, 413, 422])
async def test_a_launch_that_is_refused_is_not_repeated(pair: Pair, status: int) -> None:
    fake, provider = pair
    fake.fault("POST", "/pods", status=status, detail="no")
    error = await fails(provider.launch(ORDER))
    assert not error.ambiguous
    assert len(fake.sent("POST")) == 1
    assert fake.pods == {}


async def test_a_key_that_runpod_does_not_take() -> None:
    async with fake_runpod(runpod_api_key="rpa_another") as (fake, provider):
        error = await fails(provider.catalog())
        assert (error.code, error.retryable) == ("InvalidCredential", False)
        assert "missing bearer token" in error.message
        assert len(fake.requests) == 1


async def test_a_body_that_breaks_the_contract_is_told_as_it_is(pair: Pair) -> None:
    """The fake checks it against the document, so this proves that the other tests are checked, too."""
    fake, provider = pair
    error = await fails(provider.launch(Order(name="", offer=ORDER.offer)))
    assert (error.code, error.retryable) == ("InvalidRequest", False)
    assert "$.name" in error.message
    assert len(fake.violations) == 1
    fake.violations.clear()


async def test_a_body_over_the_limit(pair: Pair) -> None:
    _, provider = pair
    error = await fails(provider.launch(Order(name=NAME, offer=ORDER.offer, image="x" * 110_000)))
    assert (error.code, error.retryable) == ("InvalidRequest", False)


# Answers that do not come.


async def test_a_500_before_the_pod_was_made(pair: Pair) -> None:
    fake, provider = pair
    fake.fault("POST", "/pods", status=500)
    error = await fails(provider.launch(ORDER))
    assert (error.code, error.retryable, error.ambiguous) == ("ProviderUnavailable", True, True)
    assert len(fake.sent("POST")) == 1
    assert await provider.list() == []


@pytest.mark.parametrize(
    "fault",
    [
        {"status": 500},
        {"hang": True},
        {"drop": True},
        {"raw": b"{", "status": 201},
        {"raw": b"", "status": 201},
        {"raw": b'{"id": 7}', "status": 201},
        {"raw": b'{"id": "../x", "name": "", "status": "RUNNING"}', "status": 201},
        {"change": lambda pod: {name: pod[name] for name in pod if name != "id"}, "status": 201},
        {"change": lambda pod: [pod], "status": 201},
    ],
    ids=["500", "timeout", "lost", "cut", "empty", "number", "path", "without-id", "list"],
)
async def test_a_pod_that_was_made_though_the_answer_does_not_say_so(
    pair: Pair, fault: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runpod_client, "POST_S", 0.3)
    fake, provider = pair
    fake.fault("POST", "/pods", done=True, **fault)
    error = await fails(provider.launch(ORDER))
    assert (error.code, error.retryable, error.ambiguous) == ("ProviderUnavailable", True, True)
    assert len(fake.sent("POST")) == 1
    # It is found by its name, and can be adopted.
    (found,) = await provider.list()
    assert (found.name, found.id) == (NAME, next(iter(fake.pods)))
    assert isinstance(await provider.probe(found), Pending)


async def test_a_service_that_cannot_be_reached_made_nothing() -> None:
    url = f"http://127.0.0.1:{free_port()}/v2"
    async with fake_runpod(runpod_base_url=url) as (_, provider):
        error = await fails(provider.launch(ORDER))
        assert (error.code, error.retryable, error.ambiguous) == ("ProviderUnavailable", True, False)


@pytest.mark.parametrize("fault", [{"status": 500}, {"status": 502}, {"drop": True}, {"hang": True}])
async def test_questions_and_deletes_are_tried_again(
    pair: Pair, fault: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runpod_client, "GET_S", 0.3)
    fake, provider = pair
    machine = await provider.launch(ORDER)
    for method, path in [("GET", "/catalog"), ("GET", "/pods"), ("DELETE", "/pods")]:
        fake.fault(method, path, **fault)
        fake.fault(method, path, **fault)
    assert await provider.catalog()
    assert await provider.list() == [machine]
    assert await provider.release(machine) is True
    assert fake.faults == []


async def test_a_delete_that_was_done_before_its_answer_was_lost(pair: Pair) -> None:
    fake, provider = pair
    machine = await provider.launch(ORDER)
    fake.fault("DELETE", "/pods", done=True, drop=True)
    assert await provider.release(machine) is True
    assert len(fake.sent("DELETE")) == 2


CALLS: list[tuple[str, Call]] = [
    ("/catalog", lambda provider: provider.catalog()),
    ("/pods", lambda provider: provider.list()),
    ("/pods", lambda provider: provider.probe(Machine(id="pod1", name=NAME))),
]


@pytest.mark.parametrize(("path", "call"), CALLS, ids=["catalog", "list", "probe"])
async def test_a_service_that_is_down_is_given_up_on(pair: Pair, path: str, call: Call) -> None:
    fake, provider = pair
    for _ in range(10):
        fake.fault("GET", path, status=503)
    error = await fails(call(provider))
    assert (error.code, error.retryable, error.ambiguous) == ("ProviderUnavailable", True, False)
    assert len(fake.requests) == runpod_client.ATTEMPTS


# The rate limit.


async def test_a_429_is_waited_for_even_by_a_launch(pair: Pair) -> None:
    fake, provider = pair
    fake.fault("POST", "/pods", status=429, headers={"Retry-After": "1"}, detail="rate limit exceeded")
    started = time.monotonic()
    machine = await provider.launch(ORDER)
    assert time.monotonic() - started >= 1.0
    assert list(fake.pods) == [machine.id]
    assert len(fake.sent("POST")) == 2


async def test_a_pause_that_is_too_long_is_told_at_once_and_kept_by_every_call(pair: Pair) -> None:
    fake, provider = pair
    fake.fault("POST", "/pods", status=429, headers={"Retry-After": "120"})
    for call in (provider.launch(ORDER), provider.launch(ORDER), provider.list(), provider.catalog()):
        error = await fails(call)
        assert (error.code, error.retryable, error.ambiguous) == ("ProviderUnavailable", True, False)
    assert len(fake.requests) == 1


async def test_a_window_without_a_request_left_is_waited_out(pair: Pair) -> None:
    fake, provider = pair
    exhausted = {"RateLimit": '"minute";r=0;t=1, "hour";r=2800;t=1812, "day";r=49500;t=45012'}
    fake.fault("GET", "/pods", status=200, raw=b'{"pods": []}', headers=exhausted)
    await provider.list()
    started = time.monotonic()
    await provider.list()
    assert time.monotonic() - started >= 0.9


@pytest.mark.parametrize(
    ("status", "headers", "pause"),
    [
        (200, {}, 0),
        (200, {"Retry-After": "30"}, 0),
        (200, {"RateLimit": '"minute";r=59;t=12'}, 0),
        (200, {"RateLimit": '"minute";r=0;t=12, "hour";r=0;t=100'}, 100),
        (200, {"RateLimit": '"day";r=0;t=45012'}, runpod_client.MOST_PAUSE_S),
        (200, {"RateLimit": 'r=0,,;t="x";r=-0;r=0'}, 0),
        (429, {"Retry-After": "12"}, 12),
        (429, {}, runpod_client.PAUSE_S),
        (429, {"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"}, runpod_client.PAUSE_S),
        (429, {"Retry-After": "-1"}, runpod_client.PAUSE_S),
        (429, {"Retry-After": "999999999"}, runpod_client.MOST_PAUSE_S),
    ],
)
def test_how_long_an_answer_makes_us_wait(status: int, headers: dict[str, str], pause: float) -> None:
    pace = Pace()
    pace.note(status, headers)
    assert pace.wait_s() == pytest.approx(pause, abs=0.5)


def test_a_later_answer_does_not_shorten_the_pause() -> None:
    pace = Pace()
    pace.note(429, {"Retry-After": "20"})
    pace.note(200, {})
    assert pace.wait_s() > 19


# Lies: answers that break the document.


def without(name: str) -> Callable[[Any], Any]:
    def change(answer: Any) -> Any:
        (one,) = answer.values()
        return {key: [{k: v for k, v in item.items() if k != name} for item in one] for key in answer}

    return change


@pytest.mark.parametrize(
    "lie",
    [
        {"raw": b""},
        {"raw": b"null"},
        {"raw": b"[]"},
        {"raw": b"<html>welcome</html>"},
        {"raw": b"[" * 100_000},
        {"raw": b"\xff\xfe"},
        {"raw": b'{"pods": null, "gpus": null}'},
        {"raw": b'{"pods": [{}], "gpus": [{}]}'},
        {"raw": b'{"pods": [1], "gpus": [1]}'},
        {"done": True, "change": without("id")},
        {"raw": b'{"pods": [], "gpus": []}' + b" " * runpod_client.MOST_BYTES},
    ],
    ids=["empty", "null", "list", "html", "deep", "binary", "nulls", "bare", "numbers", "without-id", "huge"],
)
@pytest.mark.parametrize(("path", "call"), CALLS[:2], ids=["catalog", "list"])
async def test_an_answer_that_breaks_the_document(pair: Pair, path: str, call: Call, lie: dict[str, Any]) -> None:
    fake, provider = pair
    await provider.launch(ORDER)
    for _ in range(runpod_client.ATTEMPTS):
        fake.fault("GET", path, **lie)
    error = await fails(call(provider))
    assert (error.code, error.retryable, error.ambiguous) == ("ProviderUnavailable", True, False)
    # The next one is believed again.
    fake.faults.clear()
    assert await call(provider)


@pytest.mark.parametrize(
    "lie",
    [
        {"status": None},
        {"id": ""},
        {"ssh": {"direct": {"host": "", "port": 22}}},
        {"ssh": {"direct": {"host": "h", "port": 0}}},
        {"ssh": {"direct": {"host": "h", "port": 65536}}},
        {"ssh": {"direct": {"host": "h", "port": "22"}}},
        {"ssh": []},
        {"runtime": {"ports": [{"private": 22, "type": "tcp", "public": 99999, "ip": "1.2.3.4"}]}},
    ],
)
async def test_a_pod_that_breaks_the_document(pair: Pair, lie: dict[str, Any]) -> None:
    fake, provider = pair
    machine = await provider.launch(ORDER)
    fake.set(machine.id, "RUNNING")
    fake.fault("GET", "/pods", done=True, change=lambda pod: pod | lie)
    error = await fails(provider.probe(machine))
    assert error.code == "ProviderUnavailable"


async def test_a_price_below_zero_is_no_offer(pair: Pair) -> None:
    fake, provider = pair
    fake.gpus[0].secure = -1.0
    fake.gpus[0].most = 8
    assert (await fails(provider.catalog())).code == "ProviderUnavailable"


async def test_a_machine_with_a_million_gpus_makes_no_million_offers(pair: Pair) -> None:
    fake, provider = pair
    fake.gpus[0].most = 1_000_000
    assert len(await provider.catalog()) <= 64


@pytest.mark.parametrize("cursor", [None, "", "0"])
async def test_a_list_that_does_not_end(pair: Pair, cursor: str | None) -> None:
    fake, provider = pair
    page = json.dumps({"pods": [], "pagination": {"hasNextPage": True, "nextCursor": cursor}}).encode()
    for _ in range(3):
        fake.fault("GET", "/pods", raw=page)
    assert (await fails(provider.list())).code == "ProviderUnavailable"


async def test_a_list_that_always_has_another_page(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.planner.resource_manager.runpod.MOST_PAGES", 5)
    fake, provider = pair
    for number in range(10):
        page = {"pods": [], "pagination": {"hasNextPage": True, "nextCursor": f"c{number}"}}
        fake.fault("GET", "/pods", raw=json.dumps(page).encode())
    assert (await fails(provider.list())).code == "ProviderUnavailable"
    assert len(fake.requests) == 5


async def test_a_pod_of_somebody_else_that_is_odd_does_not_hide_ours(pair: Pair) -> None:
    fake, provider = pair
    machine = await provider.launch(ORDER)
    odd = {"id": "cpu-pod/7", "name": "theirs", "status": "NEW", "ssh": 7, "runtime": "x"}
    fake.fault("GET", "/pods", done=True, change=lambda answer: {"pods": [odd, *answer["pods"]]})
    assert await provider.list() == [machine]


async def test_a_redirect_is_not_followed(pair: Pair) -> None:
    fake, provider = pair
    fake.fault("GET", "/catalog", raw=b"", status=307, headers={"Location": f"{fake.url}/pods"})
    assert (await fails(provider.catalog())).code == "InvalidRequest"
    assert len(fake.requests) == 1


@pytest.mark.parametrize(
    "log",
    [
        [b"HOSTKEY", b"\x00\x1b[31m", b"{}"],
        [b"data: {", b"data: []", b'data: {"line": 7}', b"data:", b"event: x"],
        [b"data: " + b"x" * 200_000],
    ],
)
async def test_a_log_that_is_not_one(pair: Pair, log: list[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.planner.resource_manager.runpod.HOST_KEY_S", 0.0)
    fake, provider = pair
    machine = await provider.launch(ORDER)
    await fake.run(machine.id)
    fake.fault("GET", f"/pods/{machine.id}/logs", raw=b"\n".join(log))
    probe = await provider.probe(machine)
    assert isinstance(probe, Ready)
    assert probe.machine.host_key == ""


@given(st.binary(max_size=300) | st.from_type(dict).map(lambda value: json.dumps(value, default=str).encode()))
def test_any_bytes_are_read_or_refused(body: bytes) -> None:
    for decode in (decode_pod, decode_pods, decode_gpus):
        with contextlib.suppress(ProviderError):
            read(decode, body)


# Secrets.


async def test_the_key_is_in_no_message_repr_or_log(pair: Pair, capsys: pytest.CaptureFixture[str]) -> None:
    fake, provider = pair
    machine = await provider.launch(ORDER)
    fake.fault("GET", "/pods", status=400, detail=f"bad token {KEY} in\r\nrequest \x1b[31m" + "y" * 5000)
    with pytest.raises(ProviderError) as failure:
        await provider.probe(machine)
    message = failure.value.message
    assert "bad token *** in request" in message
    assert message.isprintable()
    assert len(message) < 500
    captured = capsys.readouterr()
    for text in (repr(vars(provider)), repr(vars(provider._client)), captured.out, captured.err):
        assert KEY not in text
        assert "MACHINE_NAME" not in text


async def test_a_key_at_the_end_of_a_long_message_is_not_cut_in_two(pair: Pair) -> None:
    fake, provider = pair
    fake.fault("GET", "/pods", status=400, detail="y" * (runpod_client.MOST_DETAIL - 10) + KEY)
    assert KEY[:5] not in (await fails(provider.list())).message


async def test_a_problem_without_a_document_repeats_nothing_of_the_page(pair: Pair) -> None:
    fake, provider = pair
    fake.fault("POST", "/pods", raw=b"<html>secret</html>", status=400)
    error = await fails(provider.launch(ORDER))
    assert error.message == "RunPod answered 400"
