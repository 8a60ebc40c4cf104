from __future__ import annotations

import asyncio
import time

import pytest

from brix.metadata.v1 import batches_pb2, files_pb2, leases_pb2
from brix.type.v1 import batch_pb2
from services.kit.errors import (
    GoalChanged,
    IllegalTransition,
    InvalidArgument,
    LinesOverlap,
    NotFound,
    ProtocolMismatch,
    StaleLease,
)
from services.kit.lines import LineSet
from tests.metadata.conftest import State, a_commit, eventually, some_lines

DAY = 86_400
TTL = 10


def release(metadata, lease, retry_after_ms=0, handed_over=False):
    return metadata.leases.ReleaseLease(
        leases_pb2.ReleaseLeaseRequest(
            batch_id=lease.batch.id,
            token=lease.token,
            reason="drain",
            retry_after_ms=retry_after_ms,
            handed_over=handed_over,
        )
    )


def save(metadata, lease, runtime_json):
    return metadata.leases.SaveRuntimeState(
        leases_pb2.SaveRuntimeStateRequest(batch_id=lease.batch.id, token=lease.token, runtime_json=runtime_json)
    )


def segments(metadata, lease, **fields):
    request = leases_pb2.ListSegmentsRequest(batch_id=lease.batch.id, token=lease.token, **fields)
    return metadata.leases.ListSegments(request)


async def file(metadata, id):
    return await metadata.files.GetFile(files_pb2.GetFileRequest(project_id="default", id=id))


async def test_what_a_lease_says(metadata):
    block = '{"client": {"max_concurrency": 7, "retry_policy": {"max_retries": 0}}}'
    lease = await metadata.leased(10, aibrix_json=block)
    assert (lease.batch.total_count, lease.batch.model) == (10, "m")
    assert (lease.token, lease.ttl_ms, lease.goal) == (2, TTL * 1000, leases_pb2.RUN)
    assert (lease.next_sequence, lease.attempt, lease.deadline_ms) == (1, 0, DAY * 1000)
    assert (lease.client.max_concurrency, lease.client.max_retries, lease.client.base_delay_seconds) == (7, 0, 0.5)
    assert list(lease.default_endpoints) == ["http://127.0.0.1:9"]
    assert not lease.HasField("runtime_json")
    assert len(await metadata.store.get(lease.index_key)) == 10 * 12
    assert (await metadata.store.head(lease.input_key)).bytes == lease.input_bytes


async def test_a_batch_has_one_holder(metadata):
    batches = {(await metadata.running(1)).id for _ in range(3)}
    leases = await asyncio.gather(*(metadata.acquire(f"runner-{n}") for n in range(6)))
    held = [lease.batch.id for lease in leases if lease]
    assert len(held) == len(set(held))
    while lease := await metadata.acquire("late"):
        held.append(lease.batch.id)
    assert sorted(held) == sorted(batches)


async def test_takeover_fences_the_holder_before(metadata):
    old = await metadata.leased(4)
    await metadata.commit(old, 1, [0, 1])
    await save(metadata, old, '{"pid": 4711}')
    metadata.clock.advance(TTL - 1)
    assert await metadata.acquire("other") is None
    metadata.clock.advance(1)
    new = await metadata.acquire("other")
    assert new is not None
    assert (new.token, new.attempt, new.runtime_json) == (old.token + 1, 1, '{"pid": 4711}')
    assert set(LineSet.from_bytes(new.committed.bits, new.committed.first)) == {0, 1}
    calls = [
        metadata.renew(old),
        metadata.commit(old, 1, [0, 1]),
        metadata.commit(old, 2, [2]),
        save(metadata, old, None),
        segments(metadata, old, page_size=10),
        metadata.finalize(old),
        metadata.finish(old, State.FAILED, errors=[batch_pb2.BatchError(code="x", message="y")]),
    ]
    before = await metadata.get(old.batch.id)
    for call in calls:
        with pytest.raises(StaleLease):
            await call
    await release(metadata, old)
    assert await metadata.get(old.batch.id) == before
    assert (await metadata.renew(new)).state == State.IN_PROGRESS
    await save(metadata, new, None)
    await release(metadata, new)
    again = await metadata.acquire()
    assert again is not None
    assert not again.HasField("runtime_json")


async def test_a_late_holder_goes_on_if_nobody_came(metadata):
    lease = await metadata.leased(2)
    metadata.clock.advance(5 * TTL)
    await metadata.commit(lease, 1, [0])
    assert await metadata.acquire("other") is None
    metadata.clock.advance(5 * TTL)
    await metadata.renew(lease)
    assert await metadata.acquire("other") is None


async def test_release(metadata):
    lease = await metadata.leased(1)
    await release(metadata, lease, retry_after_ms=30_000)
    await release(metadata, lease)
    with pytest.raises(StaleLease):
        await metadata.renew(lease)
    assert await metadata.acquire() is None
    metadata.clock.advance(30)
    again = await metadata.acquire()
    assert again is not None
    assert again.token == lease.token + 1


async def test_a_cancel_does_not_wait_for_the_rest(metadata):
    lease = await metadata.leased(1)
    await release(metadata, lease, retry_after_ms=3_600_000)
    await metadata.cancel(lease.batch.id)
    again = await metadata.acquire()
    assert again is not None
    assert again.goal == leases_pb2.CANCEL


async def test_acquirers_hear_of_new_work_at_once(metadata):
    file = await metadata.file(some_lines(1))
    waiting = asyncio.gather(metadata.acquire(wait_ms=30_000))
    await asyncio.sleep(0.1)
    started = time.monotonic()
    await metadata.batch(input_file_id=file.id)
    (lease,) = await waiting
    assert lease is not None
    assert time.monotonic() - started < 0.9


async def test_protocol_version(metadata):
    with pytest.raises(ProtocolMismatch) as raised:
        await metadata.acquire(protocol_version=2)
    assert raised.value.context == {"runner_version": "2", "server_version": "1"}
    assert "version 2" in raised.value.message
    assert "version 1" in raised.value.message


async def test_only_what_a_runner_can_run(metadata):
    batch = await metadata.running(1)
    assert await metadata.acquire(targets=["Local"]) is None
    with pytest.raises(NotFound):
        await metadata.acquire(batch_id="batch_other")
    # To close a batch for which nothing was launched takes no runtime.
    await metadata.cancel(batch.id)
    lease = await metadata.acquire(targets=[])
    assert lease is not None
    await save(metadata, lease, '{"pid": 1}')
    await release(metadata, lease)
    assert await metadata.acquire(targets=["Local"]) is None
    assert await metadata.acquire(targets=["External"]) is not None


async def test_order(metadata):
    late = await metadata.running(1, completion_window="20h")
    urgent = await metadata.running(1, completion_window="30min")
    crowded = [await metadata.running(1, completion_window="10h") for _ in range(2)]
    await metadata.cancel(late.id)
    other_file = await metadata.file(some_lines(1), project_id="other")
    other = await metadata.batch(project_id="other", input_file_id=other_file.id, completion_window="24h")

    async def validated():
        request = batches_pb2.GetBatchRequest(project_id="other", id=other.id)
        return (await metadata.batches.GetBatch(request)).state == State.IN_PROGRESS

    await eventually(validated)
    found = [(await metadata.acquire()).batch.id for _ in range(5)]
    assert found[:3] == [late.id, urgent.id, other.id]
    assert set(found[3:]) == {batch.id for batch in crowded}


async def test_counters_are_sums(metadata):
    lease = await metadata.leased(10)
    answer = await metadata.commit(lease, 1, [0, 2], [9], tokens=5)
    assert answer.committed_count == 3
    assert answer.status.goal == leases_pb2.RUN
    answer = await metadata.commit(lease, 2, [1], [3, 4], tokens=7)
    assert answer.committed_count == 6
    batch = await metadata.get(lease.batch.id)
    assert (batch.completed_count, batch.failed_count, batch.usage.input_tokens) == (3, 3, 12)


async def test_the_same_commit_again(metadata):
    lease = await metadata.leased(10)
    commit = a_commit(lease, 1, [0, 1], [2], 5)
    answers = await asyncio.gather(*(metadata.leases.CommitSegment(commit) for _ in range(5)))
    assert {answer.committed_count for answer in answers} == {3}
    # Another way to write the same set is the same set.
    padded = leases_pb2.CommitSegmentRequest()
    padded.CopyFrom(commit)
    padded.lines.bits += b"\0\0"
    assert (await metadata.leases.CommitSegment(padded)).committed_count == 3
    with pytest.raises(LinesOverlap):
        await metadata.commit(lease, 1, [5])
    with pytest.raises(LinesOverlap):
        await metadata.commit(lease, 2, [2, 3])
    batch = await metadata.get(lease.batch.id)
    assert (batch.completed_count, batch.failed_count, batch.usage.total_tokens) == (2, 1, 5)


@pytest.mark.parametrize(
    "change",
    [
        {"lines": leases_pb2.LineSet(first=1 << 60, bits=b"\7")},
        {"lines": leases_pb2.LineSet(first=-1, bits=b"\7")},
        {"lines": leases_pb2.LineSet(first=9, bits=b"\7")},
        {"lines": leases_pb2.LineSet(bits=b"\3")},
        {"lines": leases_pb2.LineSet()},
        {"usage": batch_pb2.Usage(input_tokens=-1)},
        {"segment": {"sequence": 0}},
        {"segment": {"output_key": "files/x"}},
        {"segment": {"error_key": "segments/x"}},
        {"segment": {"failed_count": -1}},
    ],
)
async def test_commits_that_make_no_sense(metadata, change):
    lease = await metadata.leased(10)
    commit = a_commit(lease, 1, [0, 1, 2], [])
    for name, value in change.items():
        part = getattr(commit, name)
        if isinstance(value, dict):
            for key, item in value.items():
                setattr(part, key, item)
        else:
            part.CopyFrom(value)
    with pytest.raises(InvalidArgument):
        await metadata.leases.CommitSegment(commit)
    assert (await metadata.get(lease.batch.id)).completed_count == 0


async def test_segments_in_pages(metadata):
    lease = await metadata.leased(10)
    for sequence in (1, 2, 10):
        await metadata.commit(lease, sequence, [sequence - 1])
    metadata.clock.advance(TTL + 1)
    lease = await metadata.acquire()
    await metadata.commit(lease, 1, [5], [6])
    first = await segments(metadata, lease, page_size=3)
    assert [(s.token, s.sequence) for s in first.segments] == [(2, 1), (2, 2), (2, 10)]
    assert first.has_more
    rest = await segments(metadata, lease, page_size=3, after_token=2, after_sequence=10)
    assert [(s.token, s.sequence, s.completed_count, s.failed_count) for s in rest.segments] == [(3, 1, 1, 1)]
    assert not rest.has_more


async def test_the_whole_way(metadata):
    lease = await metadata.leased(3, output_expires_after_s=7200)
    with pytest.raises(IllegalTransition):
        await metadata.finalize(lease)
    await metadata.commit(lease, 1, [0, 2], [1])
    with pytest.raises(IllegalTransition):
        await metadata.finish(lease, State.COMPLETED, output=2, error=1)
    assert (await metadata.finalize(lease)).state == State.FINALIZING
    assert (await metadata.finalize(lease)).state == State.FINALIZING
    with pytest.raises(InvalidArgument):
        await metadata.finish(lease, State.COMPLETED, output=3)
    with pytest.raises(InvalidArgument):
        await metadata.finish(lease, State.COMPLETED, output=2)
    batch = await metadata.finish(lease, State.COMPLETED, output=2, error=1)
    assert batch.state == State.COMPLETED
    for kind in ("output", "error"):
        made = await file(metadata, getattr(batch, f"{kind}_file_id"))
        assert (made.filename, made.purpose) == (f"{batch.id}_{kind}.jsonl", "batch_output")
        assert (made.expire_time.ToDatetime() - made.create_time.ToDatetime()).total_seconds() == 7200
    assert await metadata.finish(lease, State.COMPLETED, output=2, error=1) == batch
    for call in (metadata.renew(lease), metadata.commit(lease, 1, [0, 2], [1])):
        with pytest.raises(StaleLease):
            await call
    assert await metadata.get(batch.id) == batch


async def test_a_result_must_be_there_and_whole(metadata):
    lease = await metadata.leased(1)
    await metadata.commit(lease, 1, [0])
    await metadata.finalize(lease)
    result = await metadata.result(lease, "output", 1)
    for wrong in (
        leases_pb2.ResultFile(object_key=result.object_key, bytes=99, line_count=1),
        leases_pb2.ResultFile(object_key=f"results/{lease.batch.id}/1/output.jsonl", bytes=3, line_count=1),
        leases_pb2.ResultFile(object_key=result.object_key, bytes=3, line_count=0),
    ):
        request = leases_pb2.FinishBatchRequest(
            batch_id=lease.batch.id, token=lease.token, outcome=State.COMPLETED, output=wrong
        )
        with pytest.raises(InvalidArgument):
            await metadata.leases.FinishBatch(request)
    for outcome in (State.STATE_UNSPECIFIED, State.IN_PROGRESS, 99):
        with pytest.raises(InvalidArgument):
            await metadata.finish(lease, outcome, output=1)


async def test_a_cancel_that_came_first_wins(metadata):
    lease = await metadata.leased(2)
    await metadata.commit(lease, 1, [0, 1])
    await metadata.finalize(lease)
    await metadata.cancel(lease.batch.id)
    with pytest.raises(GoalChanged):
        await metadata.finish(lease, State.COMPLETED, output=2)
    with pytest.raises(GoalChanged):
        await metadata.finish(lease, State.FAILED, errors=[batch_pb2.BatchError(code="x", message="y")])
    assert (await metadata.renew(lease)).goal == leases_pb2.CANCEL
    assert (await metadata.finish(lease, State.CANCELLED, output=2)).state == State.CANCELLED


async def test_cancel(metadata):
    lease = await metadata.leased(4)
    await metadata.commit(lease, 1, [0])
    await metadata.cancel(lease.batch.id)
    # What was in flight is still committed, and the rest are lines of their own in the error file.
    answer = await metadata.commit(lease, 2, [], [3])
    assert answer.status.goal == leases_pb2.CANCEL
    assert (await metadata.finalize(lease)).state == State.CANCELLING
    with pytest.raises(InvalidArgument):
        await metadata.finish(lease, State.CANCELLED, output=1, error=1)
    batch = await metadata.finish(lease, State.CANCELLED, output=1, error=3)
    assert (batch.completed_count, batch.failed_count, batch.total_count) == (1, 1, 4)
    assert batch.HasField("cancelled_time")


async def test_nobody_finishes_as_cancelled_or_expired_by_himself(metadata):
    lease = await metadata.leased(1)
    for outcome in (State.CANCELLED, State.EXPIRED):
        with pytest.raises(IllegalTransition):
            await metadata.finish(lease, outcome, error=1)


async def test_the_deadline(metadata):
    lease = await metadata.leased(3)
    await metadata.commit(lease, 1, [0])
    metadata.clock.advance(DAY)
    status = await metadata.renew(lease)
    assert (status.goal, status.deadline_ms) == (leases_pb2.EXPIRE, 0)
    assert (await metadata.finalize(lease)).state == State.FINALIZING
    with pytest.raises(IllegalTransition):
        await metadata.commit(lease, 2, [1])
    with pytest.raises(GoalChanged):
        await metadata.finish(lease, State.COMPLETED, output=1)
    batch = await metadata.finish(lease, State.EXPIRED, output=1, error=2)
    assert (batch.state, batch.completed_count, batch.failed_count) == (State.EXPIRED, 1, 0)


async def test_what_is_done_at_the_deadline_is_completed(metadata):
    lease = await metadata.leased(1)
    await metadata.commit(lease, 1, [0])
    metadata.clock.advance(DAY)
    assert (await metadata.renew(lease)).goal == leases_pb2.RUN
    await metadata.finalize(lease)
    assert (await metadata.finish(lease, State.COMPLETED, output=1)).state == State.COMPLETED


async def test_a_runtime_that_never_comes_up(metadata):
    lease = await metadata.leased(1)
    with pytest.raises(InvalidArgument):
        await metadata.finish(lease, State.FAILED)
    errors = [batch_pb2.BatchError(code="runtime_failed", message="the engine exited", param="runtime")]
    batch = await metadata.finish(lease, State.FAILED, errors=errors)
    assert (batch.state, list(batch.errors)) == (State.FAILED, errors)
    assert await metadata.finish(lease, State.FAILED, errors=errors) == batch


async def test_of_cancel_and_completion_one_wins(metadata):
    for _ in range(5):
        lease = await metadata.leased(1)
        await metadata.commit(lease, 1, [0])
        await metadata.finalize(lease)
        cancelled, finished = await asyncio.gather(
            metadata.cancel(lease.batch.id),
            metadata.finish(lease, State.COMPLETED, output=1),
            return_exceptions=True,
        )
        batch = await metadata.get(lease.batch.id)
        if isinstance(finished, GoalChanged):
            assert (batch.state, cancelled.state) == (State.CANCELLING, State.CANCELLING)
        else:
            assert isinstance(cancelled, IllegalTransition)
            assert batch.state == State.COMPLETED


async def test_a_batch_that_rests_is_leased_by_its_id_only(metadata):
    """So a runner hands a batch to one that was started for it: nobody else takes it in between."""
    batch = await metadata.running(1)
    lease = await metadata.acquire()
    await release(metadata, lease, retry_after_ms=60_000, handed_over=True)
    assert await metadata.acquire() is None
    again = await metadata.acquire(batch_id=batch.id)
    assert (again.batch.id, again.attempt, again.token) == (batch.id, 0, lease.token + 1)
    # Held, it is nobody else's, whoever asks.
    assert await metadata.acquire(batch_id=batch.id) is None


async def test_attempts_count_but_those_that_handed_over(metadata):
    batch = await metadata.running(1)
    seen = []
    for handed_over in (False, False, True, False):
        lease = await metadata.acquire(batch_id=batch.id)
        seen.append(lease.attempt)
        await release(metadata, lease, handed_over=handed_over)
    assert seen == [0, 1, 2, 0]


async def test_which_batches_have_ended(metadata):
    live, over = await metadata.running(1), await metadata.running(1)
    lease = await metadata.acquire(batch_id=over.id)
    await metadata.cancel(over.id)
    asked = leases_pb2.ListEndedRequest(batch_ids=[live.id, over.id, "batch_nobody"])
    assert list((await metadata.leases.ListEnded(asked)).batch_ids) == []
    await metadata.finish(lease, State.CANCELLED, error=1)
    assert list((await metadata.leases.ListEnded(asked)).batch_ids) == [over.id]
    with pytest.raises(InvalidArgument):
        await metadata.leases.ListEnded(leases_pb2.ListEndedRequest(batch_ids=["b"] * 1001))
