"""Holders that die, pause or come back too late."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from brix.metadata.v1 import leases_pb2 as pb
from brix.type.v1 import batch_pb2
from services.kit.errors import LinesOverlap, StaleLease
from services.kit.lines import LineSet
from services.runner.engines.mock import MockEngine
from tests.runner.platform import (
    Platform,
    State,
    counts,
    custom_ids,
    eventually,
    execution_of,
    platform,
    settings_for,
    some_lines,
)


async def commit(p: Platform, lease: pb.Lease, sequence: int, numbers: list[int]) -> None:
    """Do and commit some lines, as a runner would."""
    key = f"segments/{lease.batch.id}/{lease.token}-{sequence}.out.jsonl"
    line = '{"id":"batch_req_%d","custom_id":"line-%d","response":{"status_code":200,"request_id":"","body":{}},"error":null}\n'
    data = "".join(line % (number, number) for number in numbers).encode()
    await p.store.put(key, data)
    segment = pb.Segment(
        token=lease.token, sequence=sequence, output_key=key, completed_count=len(numbers), output_bytes=len(data)
    )
    lines = pb.LineSet(first=0, bits=LineSet.of(numbers).to_bytes())
    usage = batch_pb2.Usage(input_tokens=1, output_tokens=1, total_tokens=2)
    await p.leases.CommitSegment(
        pb.CommitSegmentRequest(batch_id=lease.batch.id, segment=segment, lines=lines, usage=usage)
    )


@pytest.fixture
async def quick(tmp_path: Path) -> AsyncIterator[Platform]:
    """Leases that end after a second."""
    async with platform(settings_for(tmp_path, ttl_s=1.0)) as running:
        yield running


async def test_what_a_dead_runner_committed_is_not_run_again(quick: Platform, engine: MockEngine) -> None:
    p = quick
    id = await p.external(some_lines(100), engine.url)
    lease = await p.lease(id, "dies")
    await commit(p, lease, 1, list(range(0, 100, 2)))
    async with p.runner():
        batch = await p.ended(id)
    results = await p.results(batch)
    assert counts(batch) == (100, 100, 0)
    assert len(results.ids()) == 100
    assert set(results.ids().values()) == {1}
    assert custom_ids(engine.requests.recorded) == {f"line-{number}": 1 for number in range(1, 100, 2)}


async def test_a_zombie_changes_nothing(quick: Platform, engine: MockEngine) -> None:
    p = quick
    engine.faults.add("hang")
    id = await p.external(some_lines(10), engine.url)
    zombie = await p.lease(id, "zombie")
    await commit(p, zombie, 1, [0, 1])
    async with p.runner(drain_s=0.2) as status:
        await eventually(lambda: engine.requests.in_flight == 8)
        with pytest.raises(StaleLease):
            await commit(p, zombie, 2, [2, 3])
        with pytest.raises(StaleLease):
            await p.leases.FinishBatch(pb.FinishBatchRequest(batch_id=id, token=zombie.token, outcome=State.CANCELLED))
        with pytest.raises(StaleLease):
            await p.leases.SaveRuntimeState(
                pb.SaveRuntimeStateRequest(batch_id=id, token=zombie.token, runtime_json="{}")
            )
        assert counts(await p.get(id)) == (10, 2, 0)
        assert await execution_of(status) is not None


async def test_a_zombie_after_the_end_changes_nothing(quick: Platform, engine: MockEngine) -> None:
    p = quick
    id = await p.external(some_lines(10), engine.url)
    zombie = await p.lease(id, "zombie")
    async with p.runner():
        batch = await p.ended(id)
    before = await p.results(batch)
    with pytest.raises(StaleLease):
        await commit(p, zombie, 1, [0, 1])
    assert await p.get(id) == batch
    assert await p.results(batch) == before


async def test_the_same_commit_twice_counts_once(p: Platform, engine: MockEngine) -> None:
    id = await p.external(some_lines(10), engine.url)
    lease = await p.lease(id)
    await commit(p, lease, 1, [0, 1])
    await commit(p, lease, 1, [0, 1])
    with pytest.raises(LinesOverlap):
        await commit(p, lease, 2, [1, 2])
    assert counts(await p.get(id)) == (10, 2, 0)
    await p.leases.ReleaseLease(pb.ReleaseLeaseRequest(batch_id=id, token=lease.token, reason="test"))
    async with p.runner():
        batch = await p.ended(id)
    assert set((await p.results(batch)).ids().values()) == {1}


class Cable:
    """A TCP connection to metadata that can be cut: what is sent then goes nowhere, and no answer comes."""

    def __init__(self, target: str) -> None:
        self.host, _, self.port = target.rpartition(":")
        self.whole = asyncio.Event()
        self.whole.set()
        self.address = ""

    @classmethod
    @asynccontextmanager
    async def to(cls, target: str) -> AsyncIterator[Cable]:
        cable = cls(target)
        server = await asyncio.start_server(cable._connected, "127.0.0.1", 0)
        cable.address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with server:
            yield cable

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(self.host, int(self.port))
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._copy(reader, back))
                group.create_task(self._copy(there, writer))
        except* OSError:
            pass
        finally:
            writer.close()
            back.close()

    async def _copy(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        while data := await source.read(65_536):
            await self.whole.wait()
            target.write(data)
            await target.drain()
        target.close()


async def test_a_runner_that_is_cut_off_stops_by_itself_and_another_finishes(
    quick: Platform, engine: MockEngine
) -> None:
    p = quick
    engine.faults.add("hang", when=lambda body: b"question 1" in body)
    id = await p.external(some_lines(30), engine.url)
    async with (
        Cable.to(p.settings.metadata_addr) as cable,
        p.runner(drain_s=0.1, metadata_addr=cable.address) as status,
    ):
        await p.committed(id, 19)
        before = await execution_of(status)
        assert before is not None
        cable.whole.clear()

        async def gave_up() -> bool:
            return await execution_of(status) is None

        await eventually(gave_up)
        assert engine.requests.in_flight == 0
        engine.faults.clear()
        async with p.runner():
            batch = await p.ended(id)
        cable.whole.set()
    assert counts(batch) == (30, 30, 0)
    assert set((await p.results(batch)).ids().values()) == {1}
    seen = custom_ids(engine.requests.recorded)
    assert all(seen[f"line-{number}"] == 1 for number in (0, *range(2, 10), *range(20, 30)))


async def test_one_lost_renewal_is_no_drama(quick: Platform, engine: MockEngine) -> None:
    p = quick
    engine.faults.add("hang")
    await p.external(some_lines(5), engine.url)
    async with (
        Cable.to(p.settings.metadata_addr) as cable,
        p.runner(drain_s=0.2, metadata_addr=cable.address) as status,
    ):
        await eventually(lambda: engine.requests.in_flight == 5)
        found = await execution_of(status)
        assert found is not None
        for _ in range(3):
            cable.whole.clear()
            await asyncio.sleep(0.3)  # longer than a renewal may take, shorter than the lease
            cable.whole.set()
            await asyncio.sleep(0.5)
        still = await execution_of(status)
        assert still is not None
        assert still.token == found.token
