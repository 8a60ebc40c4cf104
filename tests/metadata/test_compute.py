"""A batch whose machine is gone: it rests, keeps what is committed, and goes on elsewhere."""

from __future__ import annotations

import orjson
import pytest

from brix.metadata.v1 import batches_pb2, leases_pb2
from brix.type.v1 import batch_pb2
from services.kit.errors import IllegalTransition, InvalidArgument, NotFound, StaleLease
from services.kit.lines import LineSet

State = batch_pb2.Batch
WHY = "The machine 192.0.2.1 does not answer any more."


def block(host: str) -> str:
    runtime = {"target": "External", "options": {"base_url": f"https://{host}.example"}}
    return orjson.dumps({"runtime": runtime, "resource_allocation": {"provision_id": f"prov-{host}"}}).decode()


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
