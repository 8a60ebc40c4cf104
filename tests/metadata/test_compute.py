"""A batch whose machine is gone: it rests, keeps what is committed, and goes on elsewhere."""

from __future__ import annotations

import asyncio

import orjson
import pytest

from brix.metadata.v1 import batches_pb2, leases_pb2
from brix.type.v1 import batch_pb2
from services.kit.errors import IllegalTransition, InvalidArgument, NotFound, StaleLease
from services.kit.lines import LineSet
from tests.metadata.conftest import a_commit

State = batch_pb2.Batch
WHY = "The machine 192.0.2.1 does not answer any more."


def block(host: str, **allocation: object) -> str:
    runtime = {"target": "External", "options": {"base_url": f"https://{host}.example"}}
    said = {"provision_id": f"prov-{host}", **allocation}
    return orjson.dumps({"runtime": runtime, "resource_allocation": said}).decode()


async def lose(metadata, lease, reason: str = WHY) -> None:
    request = leases_pb2.LoseComputeRequest(batch_id=lease.batch.id, token=lease.token, reason=reason)
    await metadata.leases.LoseCompute(request)


async def replace(metadata, id: str, aibrix_json: str, project_id: str = "default") -> batch_pb2.Batch:
    request = batches_pb2.ReplaceComputeRequest(project_id=project_id, id=id, aibrix_json=aibrix_json)
    return await metadata.batches.ReplaceCompute(request)


async def test_it_rests_and_goes_on_elsewhere_from_its_commits(metadata):
    lease = await metadata.leased(4)
    await metadata.commit(lease, 1, [0, 2])
    await lose(metadata, lease)
    lost = await metadata.get(lease.batch.id)
    assert (lost.state, lost.compute_lost, lost.phase) == (State.IN_PROGRESS, WHY, "")
    with pytest.raises(StaleLease):
        await metadata.commit(lease, 2, [1])
    metadata.clock.advance(3600)
    assert await metadata.acquire() is None
    new = block("two")
    replaced = await replace(metadata, lease.batch.id, new)
    assert (replaced.aibrix_json, replaced.HasField("compute_lost")) == (new, False)
    again = await metadata.acquire()
    assert again is not None
    assert (again.batch.aibrix_json, again.HasField("runtime_json")) == (new, False)
    assert again.token > lease.token
    assert set(LineSet.from_bytes(again.committed.bits, again.committed.first)) == {0, 2}


async def test_losing_it_twice_or_late_changes_nothing(metadata):
    lease = await metadata.leased(1)
    await lose(metadata, lease)
    await replace(metadata, lease.batch.id, block("two"))
    await lose(metadata, lease, "late")
    assert not (await metadata.get(lease.batch.id)).HasField("compute_lost")


async def test_replacing_shuts_out_who_runs_it_elsewhere(metadata):
    """The planner may know that a machine is gone before its runner does."""
    lease = await metadata.leased(2)
    await replace(metadata, lease.batch.id, block("two"))
    with pytest.raises(StaleLease):
        await metadata.commit(lease, 1, [0])
    again = await metadata.acquire()
    assert again is not None
    repeated = await replace(metadata, lease.batch.id, block("two"))
    assert repeated.aibrix_json == block("two")
    await metadata.commit(again, 1, [0])  # a repeated call shuts nobody out


async def test_with_every_line_committed_it_needs_no_machine(metadata):
    """Its machine went with the last answer, or was given back too early: nobody rents another one for that."""
    lease = await metadata.leased(2)
    segment = a_commit(lease, 1, [0, 1], [], 0)
    await metadata.store.put(segment.segment.output_key, b"{}\n" * 2)
    await metadata.leases.CommitSegment(segment)
    await lose(metadata, lease)
    assert not (await metadata.get(lease.batch.id)).HasField("compute_lost")
    again = await metadata.acquire()
    assert again is not None
    await metadata.finalize(again)
    assert (await metadata.finish(again, State.COMPLETED, output=2)).state == State.COMPLETED


async def test_a_repeated_call_does_not_find_a_lost_machine_again(metadata):
    """The planner died after the call, and by the time of its next the new machine is gone as well."""
    lease = await metadata.leased(1)
    await lose(metadata, lease)
    await replace(metadata, lease.batch.id, block("two"))
    await lose(metadata, await metadata.acquire(), "gone, too")
    repeated = await replace(metadata, lease.batch.id, block("two"))
    assert repeated.compute_lost == "gone, too"
    assert await metadata.acquire() is None


@pytest.mark.parametrize("is_held", [True, False])
async def test_a_planner_that_was_taken_over_does_not_bring_an_older_machine_back(metadata, is_held):
    lease = await metadata.leased(1)
    await replace(metadata, lease.batch.id, block("three", attempt=3))
    held = await metadata.acquire() if is_held else None
    with pytest.raises(IllegalTransition, match="newer compute"):
        await replace(metadata, lease.batch.id, block("two", attempt=2))
    assert (await metadata.get(lease.batch.id)).aibrix_json == block("three", attempt=3)
    if held is not None:
        await metadata.commit(held, 1, [0])
    await replace(metadata, lease.batch.id, block("four", attempt=4))


async def test_of_machines_that_come_at_once_the_newest_stays(metadata):
    lease = await metadata.leased(1)
    numbers = [2, 5, 3, 4]
    calls = (replace(metadata, lease.batch.id, block(f"m{number}", attempt=number)) for number in numbers)
    answers = await asyncio.gather(*calls, return_exceptions=True)
    assert {type(one) for one in answers} <= {batch_pb2.Batch, IllegalTransition}
    assert (await metadata.get(lease.batch.id)).aibrix_json == block("m5", attempt=5)


GOALS = {"cancel": leases_pb2.CANCEL, "complete": leases_pb2.RUN, "expire": leases_pb2.EXPIRE}


async def at_once(metadata, end: str) -> None:
    lease = await metadata.leased(1)
    id = lease.batch.id
    calls = [lose(metadata, lease), replace(metadata, id, block("two"))]
    if end == "cancel":
        calls.append(metadata.cancel(id))
    elif end == "complete":
        await metadata.commit(lease, 1, [0])
        calls.append(metadata.finalize(lease))
    else:
        metadata.clock.advance(86_400)
    answers = await asyncio.gather(*calls, return_exceptions=True)
    refused = {type(one) for one in answers if isinstance(one, Exception)}
    assert refused <= {StaleLease, IllegalTransition}
    again = await metadata.acquire(targets=["Elsewhere", "External"], batch_id=id)
    if again is None:  # its runner was first, and puts the results together
        assert (await metadata.get(id)).state == State.FINALIZING
        await metadata.renew(lease)
        return
    assert again.token > lease.token
    assert again.goal == GOALS[end]
    with pytest.raises(StaleLease):
        await metadata.renew(lease)


@pytest.mark.parametrize("end", list(GOALS))
async def test_what_comes_at_once_leaves_a_batch_that_ends_or_goes_on(metadata, end):
    """Its runner loses the machine, the planner has another one, and the batch ends: in any order."""
    for _ in range(8):
        await at_once(metadata, end)


@pytest.mark.parametrize("how", ["cancel", "expire"])
async def test_while_it_rests_it_can_end(metadata, how):
    lease = await metadata.leased(2)
    await metadata.commit(lease, 1, [0])
    await lose(metadata, lease)
    if how == "cancel":
        await metadata.cancel(lease.batch.id)
    else:
        metadata.clock.advance(86_400)
    closing = await metadata.acquire("anyone", targets=["Elsewhere"])
    assert closing is not None
    assert closing.goal == (leases_pb2.CANCEL if how == "cancel" else leases_pb2.EXPIRE)


async def test_what_is_ending_gets_no_other_compute(metadata):
    lease = await metadata.leased(1)
    await metadata.cancel(lease.batch.id)
    with pytest.raises(IllegalTransition):
        await replace(metadata, lease.batch.id, block("two"))


async def test_what_is_wrong_with_it_is_said(metadata):
    lease = await metadata.leased(1)
    with pytest.raises(NotFound):
        await replace(metadata, "batch_unknown", block("two"))
    with pytest.raises(NotFound):
        await replace(metadata, lease.batch.id, block("two"), project_id="other")
    with pytest.raises(InvalidArgument) as error:
        await replace(metadata, lease.batch.id, '{"runtime": {"target": "External", "wrong": 1}}')
    assert error.value.context["param"] == "aibrix.runtime.wrong"
