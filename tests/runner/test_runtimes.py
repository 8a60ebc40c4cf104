"""Runtimes that come up late, never, or go away: what the loop makes of it. `Scripted` is a runtime that does as told."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, ClassVar, Literal

import orjson
import pytest

from brix.metadata.v1 import batches_pb2 as batches_pb
from brix.metadata.v1 import leases_pb2 as pb
from brix.metadata.v1 import leases_pb2_grpc
from brix.type.v1 import batch_pb2
from services.kit.lifecycle import background
from services.kit.server import channel
from services.runner.engines.mock import MockEngine, mock_engine
from services.runner.engines.options import MockOptions
from services.runner.leases import Leases
from services.runner.loop import LeaseLoop
from services.runner.runtimes.base import Endpoint, Gone, Handle, Pending, Probe, Ready, RuntimeFailed, Spec
from services.runner.service import RunnerService
from tests.runner.platform import Platform, State, counts, custom_ids, eventually, platform, settings_for, some_lines
from tests.runner.test_takeover import commit


class Scripted:
    """Stands in for External. `state` is what every allocation is in; `launched` and `released` say what was asked."""

    target: ClassVar[str] = "External"

    def __init__(self, state: Probe) -> None:
        self.state = state
        self.launch_failures: list[Exception] = []
        self.launched: list[Handle] = []
        self.probed: list[Handle] = []
        self.released: list[Handle] = []
        self.existing: list[Handle] = []

    async def launch(self, spec: Spec) -> Handle:
        if self.launch_failures:
            raise self.launch_failures.pop(0)
        handle = {"key": spec.key, "number": len(self.launched) + 1}
        self.launched.append(handle)
        return handle

    async def probe(self, spec: Spec, handle: Handle) -> Probe:
        self.probed.append(handle)
        return self.state

    async def release(self, handle: Handle) -> None:
        self.released.append(handle)

    async def list(self) -> list[Handle]:
        return self.existing

    async def close(self) -> None:
        """Nothing is held."""


def ready(engine: MockEngine) -> Ready:
    return Ready((Endpoint(base_url=engine.url, health_path="/health"),))


@asynccontextmanager
async def looping(p: Platform, runtime: Any, **changes: Any) -> AsyncIterator[RunnerService]:
    """A runner with this runtime alone."""
    settings = p.settings.runner.model_copy(update=changes)
    service = RunnerService("scripted", [runtime.target], settings.slots)
    async with channel(p.settings.metadata_addr) as metadata:
        leases = Leases(leases_pb2_grpc.LeaseServiceStub(metadata), service.runner_id)
        loop = LeaseLoop(service, leases, p.store, {runtime.target: runtime}, settings)
        async with background(loop.run()):
            try:
                yield service
            finally:
                await loop.drain()


async def test_the_handle_is_saved_before_it_is_relied_on_and_released_at_the_end(
    p: Platform, engine: MockEngine
) -> None:
    runtime = Scripted(Pending("loading"))
    id = await p.submit(some_lines(10))
    async with looping(p, runtime) as service:
        await eventually(lambda: runtime.probed)
        (execution,) = service.executions
        assert execution.status().phase == "launching"
        assert engine.requests.count == 0
        runtime.state = ready(engine)
        batch = await p.ended(id)
    assert counts(batch) == (10, 10, 0)
    assert runtime.launched == runtime.released == [{"key": id, "number": 1}]


async def test_a_later_holder_finds_the_engine_again(p: Platform, engine: MockEngine) -> None:
    id = await p.submit(some_lines(10))
    lease = await p.lease(id)
    handle = {"key": id, "number": 7}
    saved = orjson.dumps({"target": "External", "handle": handle, "failure_count": 0}).decode()
    await p.leases.SaveRuntimeState(pb.SaveRuntimeStateRequest(batch_id=id, token=lease.token, runtime_json=saved))
    await p.leases.ReleaseLease(pb.ReleaseLeaseRequest(batch_id=id, token=lease.token))
    runtime = Scripted(ready(engine))
    async with looping(p, runtime):
        await p.ended(id)
    assert runtime.launched == []
    assert runtime.probed[0] == handle
    assert runtime.released == [handle]


async def test_a_drained_batch_keeps_its_engine_for_the_next_holder(p: Platform) -> None:
    async with mock_engine() as engine:
        engine.faults.add("hang")
        runtime = Scripted(ready(engine))
        id = await p.submit(some_lines(10))
        async with looping(p, runtime, drain_s=0.1):
            await eventually(lambda: engine.requests.in_flight == 10)
        engine.faults.clear()
        assert runtime.released == []
        async with looping(p, runtime):
            batch = await p.ended(id)
    assert counts(batch) == (10, 10, 0)
    assert len(runtime.launched) == 1


async def test_what_a_cancelled_batch_had_launched_is_released(p: Platform, engine: MockEngine) -> None:
    id = await p.submit(some_lines(10))
    lease = await p.lease(id)
    saved = orjson.dumps({"target": "External", "handle": {"number": 7}, "failure_count": 0}).decode()
    await p.leases.SaveRuntimeState(pb.SaveRuntimeStateRequest(batch_id=id, token=lease.token, runtime_json=saved))
    await p.leases.ReleaseLease(pb.ReleaseLeaseRequest(batch_id=id, token=lease.token))
    await p.cancel(id)
    runtime = Scripted(ready(engine))
    async with looping(p, runtime):
        batch = await p.ended(id)
    assert batch.state == State.CANCELLED
    assert runtime.launched == []
    assert runtime.released == [{"number": 7}]
    assert engine.requests.count == 0


@pytest.mark.parametrize("state", ["cancel", "expire"])
async def test_an_end_while_it_launches_is_an_end(p: Platform, state: str) -> None:
    runtime = Scripted(Pending("loading"))
    id = await p.submit(some_lines(10))
    async with looping(p, runtime):
        await eventually(lambda: runtime.probed)
        if state == "cancel":
            await p.cancel(id)
        else:
            p.clock.ahead_s = 86_400
        batch = await p.ended(id)
    assert batch.state == (State.CANCELLED if state == "cancel" else State.EXPIRED)
    assert len(runtime.released) == 1


async def test_a_launch_that_never_works_fails_the_batch_in_the_end(p: Platform) -> None:
    runtime = Scripted(Pending("never"))
    runtime.launch_failures = [RuntimeFailed("no port is free", retryable=True)] * 5
    id = await p.submit(some_lines(10))
    async with looping(p, runtime, launch_attempts=2):
        batch = await p.ended(id)
    assert batch.state == State.FAILED
    assert [(error.code, error.message) for error in batch.errors] == [("runtime_failed", "no port is free")]
    assert len(runtime.launch_failures) == 3


async def test_a_launch_that_works_the_second_time_is_fine(p: Platform, engine: MockEngine) -> None:
    runtime = Scripted(ready(engine))
    runtime.launch_failures = [RuntimeFailed("no port is free", retryable=True)]
    id = await p.submit(some_lines(10))
    async with looping(p, runtime):
        batch = await p.ended(id)
    assert counts(batch) == (10, 10, 0)


async def test_a_wrong_option_fails_the_batch_at_once(p: Platform) -> None:
    runtime = Scripted(Pending("never"))
    runtime.launch_failures = [RuntimeFailed("no such variable", retryable=False)]
    id = await p.submit(some_lines(10))
    async with looping(p, runtime):
        batch = await p.ended(id)
    assert batch.state == State.FAILED
    assert batch.errors[0].message == "no such variable"


async def test_a_runtime_with_a_bug_fails_the_batch_and_not_the_runner(p: Platform, engine: MockEngine) -> None:
    runtime = Scripted(ready(engine))
    runtime.launch_failures = [KeyError("oops")]
    first = await p.submit(some_lines(10))
    async with looping(p, runtime, launch_attempts=1):
        batch = await p.ended(first)
        assert batch.state == State.FAILED
        assert "oops" not in batch.errors[0].message
        assert (await p.ended(await p.submit(some_lines(10)))).state == State.COMPLETED


async def test_what_was_done_before_a_failure_is_kept(p: Platform) -> None:
    runtime = Scripted(Pending("never"))
    runtime.launch_failures = [RuntimeFailed("gone", retryable=False)]
    id = await p.submit(some_lines(10))
    lease = await p.lease(id)
    await commit(p, lease, 1, [2, 3])
    await p.leases.ReleaseLease(pb.ReleaseLeaseRequest(batch_id=id, token=lease.token))
    async with looping(p, runtime):
        batch = await p.ended(id)
    results = await p.results(batch)
    assert batch.state == State.FAILED
    assert sorted(line["custom_id"] for line in results.output) == ["line-2", "line-3"]
    assert results.codes() == {"runtime_failed": 8}


async def test_an_engine_that_dies_is_launched_again(p: Platform) -> None:
    async with mock_engine(MockOptions(record=True)) as second:
        runtime = Scripted(Gone("not yet"))
        id = await p.submit(some_lines(60), client={"max_concurrency": 10, "adaptive_concurrency": False})
        async with mock_engine() as first:
            first.faults.add("hang", when=lambda body: b"question 1" in body)
            runtime.state = ready(first)
            async with asyncio.timeout(30), looping(p, runtime):
                await p.committed(id, 5)
                runtime.state = Gone("exited with code 1")
                await eventually(lambda: len(runtime.released) >= 1)
                runtime.state = ready(second)
                batch = await p.ended(id)
    assert counts(batch) == (60, 60, 0)
    assert len(runtime.launched) >= 2
    assert set((await p.results(batch)).ids().values()) == {1}
    assert set(custom_ids(second.requests.recorded).values()) == {1}


async def test_an_engine_that_keeps_dying_fails_the_batch(p: Platform) -> None:
    async with mock_engine() as engine:
        engine.faults.add("hang")
        runtime = Scripted(ready(engine))
        id = await p.submit(some_lines(10))
        async with looping(p, runtime, launch_attempts=2, drain_s=0.1):
            await eventually(lambda: engine.requests.in_flight == 10)
            runtime.state = Gone("exited with code 1")
            batch = await p.ended(id)
    assert batch.state == State.FAILED
    assert batch.errors[0].message == "exited with code 1"


class Owned(Scripted):
    """As Local: nobody else can end what it started."""

    owned_by_runner: ClassVar[Literal[True]] = True


@pytest.mark.parametrize(("kind", "released"), [(Scripted, 0), (Owned, 1)])
async def test_a_lost_lease_ends_what_nobody_else_can_end(tmp_path: Path, kind: Any, released: int) -> None:
    async with platform(settings_for(tmp_path, ttl_s=1.0)) as p, mock_engine() as engine:
        engine.faults.add("hang")
        runtime = kind(ready(engine))
        id = await p.submit(some_lines(3))
        async with looping(p, runtime) as service:
            await eventually(lambda: engine.requests.in_flight == 3)
            (execution,) = service.executions
            token = execution.status().token
            # As if a pause of the process had let the lease run out: it is handed back, and somebody else takes it.
            await p.leases.ReleaseLease(pb.ReleaseLeaseRequest(batch_id=id, token=token, retry_after_ms=60_000))
            await eventually(lambda: not service.executions)
    assert len(runtime.released) == released


async def test_orphans_are_released_at_start(p: Platform) -> None:
    runtime = Scripted(Pending(""))
    runtime.existing = [{"number": 1}, {"number": 2}]
    async with looping(p, runtime):
        await eventually(lambda: len(runtime.released) == 2)
    assert runtime.released == runtime.existing


async def test_a_full_or_broken_object_store_pauses_the_batch_and_loses_nothing(tmp_path: Path) -> None:
    """The folder of segments cannot be made: a file is in its place. Then it is taken away."""
    async with (
        platform(settings_for(tmp_path, segment_lines=10)) as p,
        mock_engine() as engine,
        p.runner() as _,
    ):
        blocker = p.settings.data_dir / "objects" / "segments"
        blocker.write_bytes(b"")
        id = await p.external(some_lines(300), engine.url, max_concurrency=5, adaptive_concurrency=False)

        async def stands() -> bool:
            before = engine.requests.count
            await asyncio.sleep(0.3)
            return 0 < before == engine.requests.count < 300

        await eventually(stands)
        assert counts(await p.get(id)) == (300, 0, 0)
        blocker.unlink()
        batch = await p.ended(id)
    assert counts(batch) == (300, 300, 0)
    assert engine.requests.count == 300


@pytest.mark.parametrize("planned", [True, False])
async def test_a_machine_that_is_lost(p: Platform, monkeypatch: pytest.MonkeyPatch, planned: bool) -> None:
    """Where a planner follows the batch it waits for another machine; otherwise it fails, with what was done."""
    monkeypatch.setattr("services.runner.allocation.WATCH_S", 0.05)
    why = "192.0.2.7 does not answer"

    def block(number: int) -> dict[str, Any]:
        planner = {"job_id": "job_1", "resource_allocation": {"provision_id": f"prov-{number}"}} if planned else {}
        return {"client": {"max_concurrency": 4, "adaptive_concurrency": False}, **planner}

    async with mock_engine(MockOptions(latency_ms=20)) as engine:
        runtime = Scripted(ready(engine))
        id = await p.submit(some_lines(100), **block(1))
        async with looping(p, runtime, segment_seconds=0.05):
            await p.committed(id, 8)
            runtime.state = Gone(why, machine_lost=True)
            if planned:
                lost = await eventually(lambda: is_lost(p, id))
                assert (lost.state, lost.compute_lost) == (State.IN_PROGRESS, why)
                runtime.state = ready(engine)
                await p.batches.ReplaceCompute(
                    batches_pb.ReplaceComputeRequest(
                        project_id="default", id=id, aibrix_json=orjson.dumps(block(2)).decode()
                    )
                )
            batch = await p.ended(id)
        if planned:
            assert counts(batch) == (100, 100, 0)
            assert len(runtime.launched) == 2
            assert engine.requests.count < 150  # what was committed is not run again
        else:
            assert (batch.state, batch.errors[0].code, batch.errors[0].message) == (State.FAILED, "machine_lost", why)
            assert 8 <= batch.completed_count < 100
            assert len(runtime.launched) == 1
        assert (await p.results(batch)).ids() == Counter({f"line-{number}": 1 for number in range(100)})


async def is_lost(p: Platform, id: str) -> batch_pb2.Batch | None:
    batch = await p.get(id)
    return batch if batch.HasField("compute_lost") else None
