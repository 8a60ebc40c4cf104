"""What a profile asks of a runner: a limit on results, a time for each attempt, a limit on requests in flight."""

from __future__ import annotations

from typing import Any

from brix.metadata.v1 import leases_pb2 as pb
from services.runner.engines.mock import MockEngine, mock_engine
from services.runner.engines.options import MockOptions
from tests.runner.platform import Platform, State, client, counts, eventually, execution_of, some_lines

GIB = 1024**3


def order(url: str, scheduling: dict[str, Any] | None = None, quota: dict[str, Any] | None = None) -> dict[str, Any]:
    return {
        "runtime": {"target": "External", "options": {"base_url": url}},
        "client": client(),
        "profile": {"name": "p", "spec": {"scheduling": scheduling or {}, "quota": quota or {}}},
    }


def a_segment(lease: pb.Lease, key: str, size: int) -> pb.CommitSegmentRequest:
    """The first line, said to be of this size."""
    segment = pb.Segment(token=lease.token, sequence=1, output_key=key, completed_count=1, output_bytes=size)
    return pb.CommitSegmentRequest(batch_id=lease.batch.id, segment=segment, lines=pb.LineSet(first=0, bits=b"\x01"))


async def test_a_batch_is_stopped_when_its_results_are_too_large(p: Platform, engine: MockEngine) -> None:
    limit = 20_000
    block = order(engine.url, {"max_concurrency": 4}, {"max_output_size_gb": limit / GIB})
    async with p.runner(segment_lines=5):
        batch = await p.ended(await p.submit(some_lines(1000), **block))
    results = await p.results(batch)
    assert batch.state == State.FAILED
    assert [error.code for error in batch.errors] == ["output_limit_exceeded"]
    assert len(results.ids()) == 1000
    assert results.codes() == {"output_limit_exceeded": 1000 - len(results.output)}
    assert batch.completed_count == len(results.output) > 0
    # What was in flight may come on top; nothing was sent after that.
    assert len(engine.requests.recorded) <= len(results.output) + 4
    largest = limit + 10 * 1000
    assert sum(len(str(line)) for line in results.output) < largest


async def test_the_last_line_may_pass_the_quota(p: Platform, engine: MockEngine) -> None:
    async with p.runner():
        batch = await p.ended(await p.submit(some_lines(1), **order(engine.url, quota={"max_output_size_gb": 1 / GIB})))
    assert (batch.state, counts(batch)) == (State.COMPLETED, (1, 1, 0))


async def test_who_takes_over_knows_what_was_used_up(p: Platform, engine: MockEngine) -> None:
    block = order(engine.url, {"max_concurrency": 1}, {"max_output_size_gb": 2000 / GIB})
    id = await p.submit(some_lines(50), **block)
    lease = await p.lease(id)
    key = f"segments/{id}/{lease.token}-1.out.jsonl"
    await p.store.put(key, b'{"custom_id": "line-0"}\n')
    await p.leases.CommitSegment(a_segment(lease, key, 3000))
    p.clock.ahead_s = 3600
    async with p.runner():
        batch = await p.ended(id)
    assert [error.code for error in batch.errors] == ["output_limit_exceeded"]
    assert not engine.requests.recorded


async def test_the_time_of_an_attempt_and_what_is_in_flight(p: Platform) -> None:
    scheduling = {"request_timeout_seconds": 1, "max_concurrency": 3}
    async with mock_engine(MockOptions(latency_ms=5000)) as slow, p.runner() as status:
        block = order(slow.url, scheduling)
        block["client"]["retry_policy"]["max_retries"] = 0
        id = await p.submit(some_lines(2), **block)
        execution = await eventually(lambda: execution_of(status))
        policy = execution.client
        assert (policy.request_timeout_seconds, policy.max_concurrency) == (1, 3)
        assert (execution.profile, execution.template) == ("p", "")
        results = await p.results(await p.ended(id))
    assert results.codes() == {"request_timeout": 2}


async def test_without_a_profile_the_runners_own_time_holds(p: Platform, engine: MockEngine) -> None:
    engine.faults.add(kind="hang")
    async with p.runner(request_timeout_s=77) as status:
        id = await p.external(some_lines(1), engine.url)
        execution = await eventually(lambda: execution_of(status))
        assert execution.client.request_timeout_seconds == 77
        await p.cancel(id)
        await p.ended(id)


async def test_what_is_complete_is_completed_by_whoever_takes_over(p: Platform, engine: MockEngine) -> None:
    """The last line went beyond the quota, and its runner died before it could end the batch."""
    id = await p.submit(some_lines(1), **order(engine.url, quota={"max_output_size_gb": 10 / GIB}))
    lease = await p.lease(id)
    key = f"segments/{id}/{lease.token}-1.out.jsonl"
    line = b'{"custom_id": "line-0"}\n'
    await p.store.put(key, line)
    await p.leases.CommitSegment(a_segment(lease, key, len(line)))
    p.clock.ahead_s = 3600
    async with p.runner():
        batch = await p.ended(id)
    assert (batch.state, counts(batch)) == (State.COMPLETED, (1, 1, 0))
    assert not engine.requests.recorded
