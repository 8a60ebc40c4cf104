"""A batch from lease to files, with engines that answer well, badly, late or not at all."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from typing import Any

import pytest

from services.runner.engines.mock import MockEngine, mock_engine
from services.runner.engines.options import MockOptions
from tests.runner.platform import (
    Platform,
    State,
    a_line,
    counts,
    custom_ids,
    eventually,
    execution_of,
    some_lines,
)


def every_line_once(ids: Counter[str], count: int) -> bool:
    return ids == Counter(f"line-{number}" for number in range(count))


async def test_every_line_comes_out_once(p: Platform, engine: MockEngine) -> None:
    async with p.runner():
        batch = await p.ended(await p.external(some_lines(500), engine.url))
    results = await p.results(batch)
    assert batch.state == State.COMPLETED
    assert counts(batch) == (500, 500, 0)
    assert every_line_once(results.ids(), 500)
    assert not results.error
    assert not batch.error_file_id
    assert every_line_once(custom_ids(engine.requests.recorded), 500)
    used = [line["response"]["body"]["usage"] for line in results.output]
    assert batch.usage.input_tokens == sum(usage["prompt_tokens"] for usage in used) > 0
    assert batch.usage.output_tokens == sum(usage["completion_tokens"] for usage in used) > 0
    assert batch.usage.total_tokens == batch.usage.input_tokens + batch.usage.output_tokens


async def test_the_answer_belongs_to_the_question(p: Platform, engine: MockEngine) -> None:
    async with p.runner():
        results = await p.results(await p.ended(await p.external(some_lines(100), engine.url)))
    for line in results.output:
        question = line["custom_id"].replace("line-", "question ")
        assert line["response"]["body"]["choices"][0]["message"]["content"].endswith(question)


async def test_what_is_sent_is_what_stands_in_the_line(p: Platform, engine: MockEngine) -> None:
    body = b'{"model":"mock", "messages":[{"role":"user","content":"caf\\u00e9"}], "temperature":1.0}'
    line = b'{"custom_id":"a","method":"POST","url":"/v1/chat/completions","body": %b }\n' % body
    async with p.runner():
        await p.ended(await p.external(line, engine.url))
    (request,) = engine.requests.recorded
    assert request.body == body
    assert request.headers["Content-Type"] == "application/json"


async def test_several_batches_at_once(p: Platform, engine: MockEngine) -> None:
    async with p.runner(slots=3):
        ids = [await p.external(some_lines(50), engine.url) for _ in range(6)]
        batches = [await p.ended(id) for id in ids]
    assert [counts(batch) for batch in batches] == [(50, 50, 0)] * 6


async def test_many_segments_become_one_file(p: Platform, engine: MockEngine) -> None:
    async with p.runner(segment_lines=3):
        batch = await p.ended(await p.external(some_lines(400), engine.url))
    results = await p.results(batch)
    assert every_line_once(results.ids(), 400)


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        ({"kind": "html"}, "invalid_response"),
        ({"kind": "empty"}, "invalid_response"),
        ({"kind": "half"}, "invalid_response"),
        ({"kind": "redirect"}, "invalid_response"),
        ({"kind": "close"}, "connection_error"),
        ({"kind": "hang"}, "request_timeout"),
        ({"kind": "status", "status": 500}, "http"),
        ({"kind": "status", "status": 400}, "http"),
        ({"kind": "status", "status": 429, "retry_after": "0.05"}, "http"),
    ],
)
async def test_a_line_that_never_works_ends_in_the_error_file(
    p: Platform, engine: MockEngine, fault: dict[str, Any], code: str
) -> None:
    engine.faults.add(**fault, when=lambda body: b"question 7" in body)
    async with p.runner(request_timeout_s=0.3):
        batch = await p.ended(await p.external(some_lines(10), engine.url))
    results = await p.results(batch)
    assert batch.state == State.COMPLETED
    assert counts(batch) == (10, 9, 1)
    assert every_line_once(results.ids(), 10)
    assert results.codes() == {code: 1}
    (line,) = results.error
    assert line["custom_id"] == "line-7"
    if code == "http":
        assert line["response"]["status_code"] == fault["status"]
        assert line["response"]["body"]["error"]["message"] == "The engine has a fault."
        assert line["error"] is None
    else:
        assert line["response"] is None
    tried = custom_ids(engine.requests.recorded)["line-7"]
    assert tried == (1 if fault["kind"] == "redirect" or fault.get("status") == 400 else 4)


@pytest.mark.parametrize("kind", ["html", "empty", "half", "close", "status"])
async def test_what_goes_wrong_for_a_while_costs_no_line(p: Platform, engine: MockEngine, kind: Any) -> None:
    engine.faults.add(kind, times=2, status=503, when=lambda body: b"question 7" in body)
    async with p.runner():
        batch = await p.ended(await p.external(some_lines(10), engine.url))
    assert counts(batch) == (10, 10, 0)


async def test_a_server_that_closes_every_connection_costs_no_line(p: Platform, engine: MockEngine) -> None:
    for number in range(100):
        engine.faults.add("close", times=1, when=lambda body, n=number: b'"question %d"' % n in body)
    async with p.runner():
        batch = await p.ended(await p.external(some_lines(100), engine.url))
    assert counts(batch) == (100, 100, 0)


async def test_an_error_page_stands_in_the_error_line_as_an_object(p: Platform) -> None:
    async with mock_engine(MockOptions(models=("other",))) as engine, p.runner():
        batch = await p.ended(await p.external(some_lines(3), engine.url))
    results = await p.results(batch)
    assert batch.state == State.COMPLETED
    assert counts(batch) == (3, 0, 3)
    assert not batch.output_file_id
    assert {line["response"]["status_code"] for line in results.error} == {404}


async def test_an_engine_that_refuses_what_is_too_much_loses_nothing(p: Platform) -> None:
    async with mock_engine(MockOptions(capacity=20, latency_ms=5, retry_after_s=0)) as engine, p.runner():
        batch = await p.ended(await p.external(some_lines(600), engine.url, retry={"max_retries": 50}))
    assert counts(batch) == (600, 600, 0)
    assert engine.requests.statuses[429] > 0


async def test_retry_after_is_waited_for(p: Platform, engine: MockEngine) -> None:
    engine.faults.add("status", status=429, retry_after="1", times=1)
    start = time.monotonic()
    async with p.runner():
        batch = await p.ended(await p.external(some_lines(1), engine.url))
    assert counts(batch) == (1, 1, 0)
    assert time.monotonic() - start >= 1.0


async def test_the_cap_holds(p: Platform) -> None:
    async with mock_engine(MockOptions(latency_ms=10)) as engine, p.runner():
        id = await p.external(some_lines(300), engine.url, max_concurrency=7, adaptive_concurrency=False)
        batch = await p.ended(id)
    assert counts(batch) == (300, 300, 0)
    assert engine.requests.max_in_flight == 7


async def test_the_cap_holds_over_all_endpoints(p: Platform) -> None:
    async with (
        mock_engine(MockOptions(latency_ms=10)) as one,
        mock_engine(MockOptions(latency_ms=10)) as two,
    ):
        both = p.with_settings(default_endpoint=f"{one.url},{two.url}/v1")
        async with both as platform, platform.runner():
            limits = {"max_concurrency": 9, "adaptive_concurrency": False}
            batch = await platform.ended(await platform.submit(some_lines(300), client=limits))
    assert counts(batch) == (300, 300, 0)
    assert one.requests.max_in_flight + two.requests.max_in_flight <= 10
    assert min(one.requests.count, two.requests.count) > 100


async def test_a_dead_endpoint_of_two_costs_no_line(p: Platform, engine: MockEngine) -> None:
    async with mock_engine() as gone:
        dead = gone.url
    async with p.with_settings(default_endpoint=f"{dead},{engine.url}") as platform, platform.runner():
        batch = await platform.ended(await platform.submit(some_lines(200)))
    assert counts(batch) == (200, 200, 0)


async def test_no_endpoint_for_too_long_ends_each_line(p: Platform) -> None:
    async with mock_engine() as gone:
        dead = gone.url
    async with p.runner():
        batch = await p.ended(await p.external(some_lines(20), dead, retry={"no_endpoint_max_retries": 3}))
    results = await p.results(batch)
    assert batch.state == State.COMPLETED
    assert counts(batch) == (20, 0, 20)
    assert every_line_once(results.ids(), 20)
    assert set(results.codes()) <= {"no_endpoint", "connection_error"}
    assert results.codes()["no_endpoint"] > 0


async def test_an_endpoint_that_comes_late_costs_no_line(p: Platform) -> None:
    async with mock_engine() as first:
        url = first.url
    port = int(url.rpartition(":")[2])
    async with p.runner() as status:
        id = await p.external(some_lines(50), url)

        async def is_down() -> bool:
            found = await execution_of(status)
            return bool(found and found.endpoints and not found.endpoints[0].healthy)

        await eventually(is_down)
        async with mock_engine(MockOptions(port=port)):
            batch = await p.ended(id)
    assert counts(batch) == (50, 50, 0)


async def test_status_shows_what_is_going_on(p: Platform, engine: MockEngine) -> None:
    engine.faults.add("hang")
    async with p.runner(drain_s=0.1) as status:
        id = await p.external(some_lines(100), engine.url, max_concurrency=12, adaptive_concurrency=False)

        async def full() -> Any:
            found = await execution_of(status)
            return found if found and found.in_flight == 12 else None

        found = await eventually(full)
        assert (found.batch_id, found.target, found.phase, found.limit) == (id, "External", "dispatching", 12)
        assert found.client.max_concurrency == 12
        assert found.client.max_retries == 3
        assert [endpoint.url for endpoint in found.endpoints] == [engine.url]
        assert found.endpoints[0].in_flight == 12


async def test_with_latency_the_cap_is_in_flight_within_a_second(p: Platform) -> None:
    async with mock_engine(MockOptions(latency_ms=200)) as engine, p.runner():
        id = await p.external(some_lines(2000), engine.url)
        await eventually(lambda: engine.requests.count > 0)
        start = time.monotonic()
        await eventually(lambda: engine.requests.max_in_flight == 256)
        took = time.monotonic() - start
        batch = await p.ended(id)
    assert counts(batch) == (2000, 2000, 0)
    assert took < 3.0  # one second on a machine that does nothing else


async def test_a_large_line_and_a_large_answer_pass(p: Platform, engine: MockEngine) -> None:
    lines = a_line(0, text="x" * 3_000_000) + a_line(1)
    async with p.runner():
        batch = await p.ended(await p.external(lines, engine.url))
    assert counts(batch) == (2, 2, 0)
    assert max(len(request.body) for request in engine.requests.recorded) > 3_000_000


async def test_an_answer_that_is_too_long_is_an_error_line(p: Platform, engine: MockEngine) -> None:
    async with p.runner(max_answer_bytes=100):
        batch = await p.ended(await p.external(some_lines(2), engine.url))
    assert (await p.results(batch)).codes() == {"invalid_response": 2}


async def test_memory_is_bounded_by_bytes_not_by_lines(p: Platform, engine: MockEngine) -> None:
    """An engine that never answers: only what may be in flight is read."""
    engine.faults.add("hang")
    lines = b"".join(a_line(number, text=f"{number} " + "x" * 100_000) for number in range(200))
    async with p.runner(in_flight_bytes=4 * 1024 * 1024, drain_s=0.1):
        await p.external(lines, engine.url)
        await eventually(lambda: engine.requests.in_flight >= 30)
        seen = 0
        while seen != engine.requests.count:
            seen = engine.requests.count
            await asyncio.sleep(0.2)
    assert 30 <= seen <= 42


async def test_models_of_default_endpoints_are_reported(p: Platform) -> None:
    async with (
        mock_engine(MockOptions(models=("llama", "qwen"))) as engine,
        p.with_settings(default_endpoint=engine.url) as platform,
    ):
        async with platform.runner():
            assert sorted(await eventually(platform.models)) == ["llama", "qwen"]
        assert await platform.models() == []
