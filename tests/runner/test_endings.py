"""Cancel, expiry and drain, at every phase of a batch."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest

from brix.metadata.v1 import leases_pb2 as pb
from services.kit.errors import IllegalTransition
from services.runner.engines.mock import MockEngine, mock_engine
from services.runner.engines.options import MockOptions
from tests.runner.platform import Platform, State, counts, custom_ids, eventually, some_lines
from tests.runner.test_takeover import commit

DAY_S = 86_400


async def test_cancel_while_requests_run_lets_them_end(p: Platform) -> None:
    async with mock_engine(MockOptions(latency_ms=300, record=True)) as engine, p.runner():
        id = await p.external(some_lines(100), engine.url, max_concurrency=10, adaptive_concurrency=False)
        await eventually(lambda: engine.requests.in_flight == 10)
        await p.cancel(id)
        batch = await p.ended(id)
    results = await p.results(batch)
    assert batch.state == State.CANCELLED
    total, completed, failed = counts(batch)
    assert (total, failed) == (100, 0)
    assert completed == engine.requests.count >= 10
    assert len(results.output) == completed
    assert results.codes() == {"batch_cancelled": 100 - completed}
    assert set(results.ids().values()) == {1}
    assert len(results.ids()) == 100


async def test_cancel_does_not_wait_for_ever(p: Platform, engine: MockEngine) -> None:
    engine.faults.add("hang")
    async with p.runner(drain_s=0.2):
        id = await p.external(some_lines(10), engine.url)
        await eventually(lambda: engine.requests.in_flight == 10)
        await p.cancel(id)
        batch = await p.ended(id)
    assert batch.state == State.CANCELLED
    assert (await p.results(batch)).codes() == {"batch_cancelled": 10}


async def test_cancel_before_any_runner_launches_nothing(p: Platform, engine: MockEngine) -> None:
    id = await p.external(some_lines(10), engine.url)
    await commit(p, lease := await p.lease(id), 1, [3])
    await p.leases.ReleaseLease(pb.ReleaseLeaseRequest(batch_id=id, token=lease.token))
    await p.cancel(id)
    async with p.runner():
        batch = await p.ended(id)
    assert batch.state == State.CANCELLED
    assert counts(batch) == (10, 1, 0)
    assert engine.requests.count == 0
    results = await p.results(batch)
    assert [line["custom_id"] for line in results.output] == ["line-3"]
    assert results.codes() == {"batch_cancelled": 9}


async def test_cancel_while_lines_wait_to_be_tried_again(p: Platform, engine: MockEngine) -> None:
    engine.faults.add("status", status=429, retry_after="60")
    async with p.runner():
        id = await p.external(some_lines(10), engine.url)
        await eventually(lambda: engine.requests.statuses[429] == 10)
        await p.cancel(id)
        batch = await p.ended(id)
    assert batch.state == State.CANCELLED
    assert (await p.results(batch)).codes() == {"batch_cancelled": 10}


async def test_cancel_while_no_endpoint_is_there(p: Platform) -> None:
    async with mock_engine() as gone:
        dead = gone.url
    async with p.runner():
        id = await p.external(some_lines(10), dead)

        async def running() -> bool:
            return (await p.get(id)).state == State.IN_PROGRESS

        await eventually(running)
        await p.cancel(id)
        batch = await p.ended(id)
    assert batch.state == State.CANCELLED


async def test_a_cancel_during_finalizing_wins_or_loses_whole(p: Platform, engine: MockEngine) -> None:
    async with p.runner():
        for _ in range(5):
            id = await p.external(some_lines(20), engine.url)
            await p.committed(id, 20)
            with suppress(IllegalTransition):
                await p.cancel(id)
            batch = await p.ended(id)
            assert batch.state in (State.COMPLETED, State.CANCELLED)
            assert counts(batch) == (20, 20, 0)
            assert len((await p.results(batch)).output) == 20


async def test_at_the_deadline_the_rest_expires(p: Platform) -> None:
    async with mock_engine(MockOptions(latency_ms=100)) as engine, p.runner():
        id = await p.external(some_lines(500), engine.url, max_concurrency=10, adaptive_concurrency=False)
        await p.committed(id, 10)
        p.clock.ahead_s = DAY_S
        batch = await p.ended(id)
    results = await p.results(batch)
    assert batch.state == State.EXPIRED
    _, completed, failed = counts(batch)
    assert failed == 0
    assert 10 <= completed < 500
    assert len(results.output) == completed
    assert results.codes() == {"batch_expired": 500 - completed}
    assert set(results.ids().values()) == {1}


async def test_a_batch_that_is_late_when_it_is_leased_launches_nothing(p: Platform, engine: MockEngine) -> None:
    id = await p.external(some_lines(10), engine.url)
    lease = await p.lease(id)
    await p.leases.ReleaseLease(pb.ReleaseLeaseRequest(batch_id=id, token=lease.token))
    p.clock.ahead_s = DAY_S
    async with p.runner():
        batch = await p.ended(id)
    assert batch.state == State.EXPIRED
    assert engine.requests.count == 0
    assert (await p.results(batch)).codes() == {"batch_expired": 10}


async def test_expiry_does_not_wait_for_an_engine_that_hangs(p: Platform, engine: MockEngine) -> None:
    engine.faults.add("hang")
    async with p.runner(drain_s=0.2):
        id = await p.external(some_lines(10), engine.url)
        await eventually(lambda: engine.requests.in_flight == 10)
        p.clock.ahead_s = DAY_S
        batch = await p.ended(id)
    assert batch.state == State.EXPIRED


async def test_drain_hands_back_and_nothing_committed_is_run_again(p: Platform) -> None:
    async with mock_engine(MockOptions(latency_ms=50, record=True)) as engine:
        id = await p.external(some_lines(200), engine.url, max_concurrency=20, adaptive_concurrency=False)
        async with p.runner():
            await p.committed(id, 40)
        held = await p.get(id)
        assert held.state == State.IN_PROGRESS
        # Requests in flight were waited for and committed.
        assert held.completed_count == engine.requests.count < 200
        async with p.runner():
            batch = await p.ended(id)
    assert counts(batch) == (200, 200, 0)
    assert set(custom_ids(engine.requests.recorded).values()) == {1}
    assert set((await p.results(batch)).ids().values()) == {1}


async def test_drain_gives_up_what_hangs(p: Platform, engine: MockEngine) -> None:
    engine.faults.add("hang", when=lambda body: b"question 5" in body)
    id = await p.external(some_lines(10), engine.url)
    async with p.runner(drain_s=0.2):
        await p.committed(id, 9)
    engine.faults.clear()
    assert (await p.get(id)).completed_count == 9
    async with p.runner():
        batch = await p.ended(id)
    assert counts(batch) == (10, 10, 0)


async def test_a_drained_batch_is_taken_over_at_once(p: Platform) -> None:
    async with mock_engine(MockOptions(latency_ms=20)) as engine, p.runner(slots=1):
        id = await p.external(some_lines(300), engine.url, max_concurrency=10, adaptive_concurrency=False)
        await p.committed(id, 20)
        async with asyncio.timeout(20), p.runner(slots=1):
            batch = await p.ended(id)
    assert counts(batch) == (300, 300, 0)


@pytest.mark.parametrize("count", [0, 3])
async def test_an_idle_runner_drains_at_once(p: Platform, engine: MockEngine, count: int) -> None:
    async with asyncio.timeout(10), p.runner():
        for _ in range(count):
            await p.ended(await p.external(some_lines(5), engine.url))
