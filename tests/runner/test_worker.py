"""The runner in a KubernetesJob, as a real process with the environment of its manifest: what it does, and how it exits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from brix.metadata.v1 import leases_pb2 as pb
from services.runner.engines.mock import MockEngine, mock_engine
from services.runner.engines.options import MockOptions
from tests.conftest import free_port
from tests.runner.platform import (
    Platform,
    State,
    client,
    counts,
    custom_ids,
    eventually,
    platform,
    settings_for,
    some_lines,
)
from tests.runner.worker_process import worker
from tests.runtimes.kubernetes.support import template

LINES = 200


@pytest.fixture
async def p(tmp_path: Path) -> AsyncIterator[Platform]:
    async with platform(settings_for(tmp_path / "data", ttl_s=2.0)) as running:
        yield running


@pytest.fixture
async def engine() -> AsyncIterator[MockEngine]:
    async with mock_engine(MockOptions(record=True, latency_ms=30)) as running:
        yield running


async def submit(p: Platform, lines: int = LINES) -> str:
    return await p.submit(
        some_lines(lines),
        runtime={"target": "KubernetesJob"},
        model_template={"name": "tiny", "spec": template("mock", **{"accelerator.type": "cpu"})},
        client=client(max_concurrency=4, adaptive_concurrency=False, retry={"no_endpoint_max_retries": 20}),
    )


async def lease(p: Platform, id: str) -> pb.Lease:
    """Take the batch, as another runner."""
    request = pb.AcquireLeaseRequest(
        runner_id="test", targets=["KubernetesJob"], wait_ms=20_000, protocol_version=1, batch_id=id
    )
    response = await p.leases.AcquireLease(request)
    assert response.HasField("lease")
    return response.lease


async def complete(p: Platform, id: str) -> None:
    batch = await p.ended(id)
    assert batch.state == State.COMPLETED, batch.errors
    assert counts(batch) == (LINES, LINES, 0)
    assert set((await p.results(batch)).ids().values()) == {1}


async def test_it_runs_its_batch_and_no_other(p: Platform, engine: MockEngine, tmp_path: Path) -> None:
    other, id = await submit(p), await submit(p)
    async with worker(p.settings, id, engine.url, tmp_path / "w") as running:
        assert await running.ended() == 0, running.log()
        assert running.last_words() == ""
        assert "question" not in running.log(), "prompts are not logged"
    await complete(p, id)
    assert custom_ids(engine.requests.recorded).total() == LINES
    assert (await p.get(other)).completed_count == 0


async def test_an_engine_that_is_never_ready(p: Platform, tmp_path: Path) -> None:
    id = await submit(p)
    async with worker(
        p.settings, id, f"http://127.0.0.1:{free_port()}", tmp_path / "w", AIBRIX_WORKER__ENGINE_READY_S="0.5"
    ) as running:
        assert await running.ended() == 69
        assert running.last_words() == "the engine was not ready within 0.5 s: its health check does not answer"
    assert (await p.get(id)).state == State.IN_PROGRESS, "how the batch ends is the runner's to say"


async def test_an_engine_that_does_not_come_back(p: Platform, tmp_path: Path) -> None:
    id = await submit(p)
    async with mock_engine(MockOptions(latency_ms=30)) as engine:
        running = worker(p.settings, id, engine.url, tmp_path / "w", AIBRIX_WORKER__ENGINE_READY_S="2")
        process = await running.__aenter__()
        await p.committed(id, 10)
    assert await process.ended() == 69
    await running.__aexit__(None, None, None)
    batch = await p.get(id)
    assert batch.state == State.IN_PROGRESS
    assert batch.failed_count == 0, "no line pays for it"
    async with asyncio.timeout(5):
        assert (await lease(p, id)).attempt == 1


async def test_a_batch_that_is_not_there(p: Platform, engine: MockEngine, tmp_path: Path) -> None:
    async with worker(p.settings, "batch_unknown", engine.url, tmp_path / "w") as running:
        assert await running.ended() == 78
        assert running.last_words().startswith("metadata refuses the batch batch_unknown: ")


async def test_a_batch_that_has_ended(p: Platform, engine: MockEngine, tmp_path: Path) -> None:
    id = await submit(p)
    await p.cancel(id)
    async with p.runner():
        await p.ended(id)
    async with worker(p.settings, id, engine.url, tmp_path / "w") as running:
        assert await running.ended() == 0
    assert engine.requests.count == 0


async def test_settings_that_are_wrong(p: Platform, engine: MockEngine, tmp_path: Path) -> None:
    async with worker(p.settings, "batch_1", engine.url, tmp_path / "w", AIBRIX_RUNNER__DRAIN_S="soon") as running:
        assert await running.ended() == 78
        assert "AIBRIX_RUNNER__DRAIN_S" in running.log()


async def test_an_address_that_is_taken(p: Platform, engine: MockEngine, tmp_path: Path) -> None:
    id = await submit(p)
    taken = p.settings.metadata_addr
    async with worker(p.settings, id, engine.url, tmp_path / "w", AIBRIX_RUNNER__LISTEN=taken) as running:
        assert await running.ended() == 78
        assert running.last_words().startswith("the worker cannot run: ")


async def test_one_that_is_told_to_end_hands_its_batch_to_the_next(
    p: Platform, engine: MockEngine, tmp_path: Path
) -> None:
    id = await submit(p)
    async with worker(p.settings, id, engine.url, tmp_path / "1") as first:
        await p.committed(id, 10)
        first.process.terminate()
        assert await first.ended() == 75
    batch = await p.get(id)
    assert 10 <= batch.completed_count < LINES
    assert batch.completed_count == engine.requests.count, "what was in flight was waited for"
    async with worker(p.settings, id, engine.url, tmp_path / "2") as second:
        assert await second.ended() == 0
    await complete(p, id)
    assert set(custom_ids(engine.requests.recorded).values()) == {1}


async def test_one_that_is_told_to_end_while_it_waits_does_not_wait(
    p: Platform, engine: MockEngine, tmp_path: Path
) -> None:
    id = await submit(p)
    held = await lease(p, id)
    async with worker(p.settings, id, engine.url, tmp_path / "held") as waiting, asyncio.timeout(30):
        await eventually(lambda: "runner started" in waiting.log())
        await p.leases.RenewLease(pb.RenewLeaseRequest(batch_id=id, token=held.token))
        waiting.process.terminate()
        async with asyncio.timeout(5):
            assert await waiting.ended() == 75
    async with worker(p.settings, id, f"http://127.0.0.1:{free_port()}", tmp_path / "silent") as loading:
        # It asks an engine that does not answer; there is nothing to see of that from outside but the process.
        await asyncio.sleep(2)
        loading.process.terminate()
        assert await loading.ended() == 75
        assert loading.last_words() == ""


async def test_one_that_is_killed_is_followed_by_the_next(p: Platform, engine: MockEngine, tmp_path: Path) -> None:
    id = await submit(p)
    async with worker(p.settings, id, engine.url, tmp_path / "1") as first:
        await p.committed(id, 10)
        first.process.kill()
        await first.ended()
    async with worker(p.settings, id, engine.url, tmp_path / "2") as second:
        assert await second.ended() == 0
    await complete(p, id)
    seen = custom_ids(engine.requests.recorded)
    assert len(seen) == LINES
    assert max(seen.values()) <= 2


async def test_an_engine_that_restarts_costs_no_line(p: Platform, tmp_path: Path) -> None:
    id, port = await submit(p), free_port()
    options = MockOptions(record=True, latency_ms=30, port=port)
    async with mock_engine(options) as engine:
        running = worker(p.settings, id, engine.url, tmp_path / "w")
        process = await running.__aenter__()
        await p.committed(id, 10)
    await eventually(lambda: "the engine is not ready any more" in process.log())
    async with mock_engine(options):
        assert await process.ended() == 0
    await running.__aexit__(None, None, None)
    await complete(p, id)
