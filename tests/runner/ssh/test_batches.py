"""Whole batches on machines, with what goes wrong midway: every line comes out once, and nothing stays on the machine."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from brix.metadata.v1 import leases_pb2, runners_pb2
from services.runner import allocation
from tests.runner.platform import (
    Platform,
    Results,
    State,
    client,
    counts,
    eventually,
    execution_of,
    platform,
    settings_for,
    some_lines,
)
from tests.runner.ssh.support import options, settings
from tests.ssh.machine import Machine

LINES = 120


@pytest.fixture
async def p(m: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Platform]:
    monkeypatch.setattr(allocation, "WATCH_S", 0.5)
    ours = settings(m, tmp_path)
    update = {"batch_ssh_key_file": ours.batch_ssh_key_file, "ssh": ours.ssh}
    async with platform(settings_for(tmp_path, segment_lines=10).model_copy(update=update)) as running:
        yield running


async def submit(p: Platform, m: Machine, target: str = "RunPod", count: int = LINES, **block: Any) -> str:
    runtime = {"target": target, "options": options(m)}
    policy = client(max_concurrency=4, adaptive_concurrency=False)
    return await p.submit(some_lines(count), runtime=runtime, client=policy, **block)


async def complete(p: Platform, m: Machine, id: str, count: int = LINES) -> Results:
    """All lines, each once, and nothing left on the machine."""
    batch = await p.ended(id, 60)
    results = await p.results(batch)
    assert counts(batch) == (count, count, 0), (batch.errors, results.codes())
    assert set(results.ids().values()) == {1}
    assert m.left_over() == []
    assert m.containers() == []
    return results


@pytest.mark.parametrize("target", ["RunPod", "LambdaCloud"])
async def test_a_batch_runs_on_its_machine(p: Platform, m: Machine, target: str) -> None:
    async with p.runner():
        id = await submit(p, m, target)
        await complete(p, m, id)
    assert set(m.times().values()) == {1}


async def test_progress_is_in_the_status(p: Platform, m: Machine) -> None:
    m.knobs(pull_s=0.5, startup_s=0.5)
    seen: list[str] = []
    async with p.runner() as status:
        id = await submit(p, m, "LambdaCloud")

        async def dispatching() -> bool:
            execution = await execution_of(status)
            if execution is not None and execution.phase not in seen:
                seen.append(execution.phase)
            return execution is not None and execution.phase == "dispatching"

        await eventually(dispatching)
        await complete(p, m, id)
    wanted = ["launching: pulling", "launching: loading", "dispatching"]
    assert [phase for phase in seen if phase in wanted] == wanted


async def test_connections_that_drop_midway_cost_nothing_but_time(p: Platform, m: Machine) -> None:
    m.knobs(latency_ms=30)
    async with p.runner():
        id = await submit(p, m)
        for committed in (10, 50):
            await p.committed(id, committed)
            assert await m.drop_connections()
        await complete(p, m, id)
    assert len(m.calls()) == 1
    assert max(m.times().values()) <= 3  # what was in flight is asked again


async def test_sshd_that_is_killed_midway_and_comes_back(p: Platform, m: Machine) -> None:
    m.knobs(latency_ms=30)
    async with p.runner():
        id = await submit(p, m)
        await p.committed(id, 20)
        await m.kill()
        assert len(m.engines()) == 1
        await m.start()
        await complete(p, m, id)
    assert len(m.calls()) == 1


async def test_an_engine_that_dies_midway_is_started_again(p: Platform, m: Machine) -> None:
    m.knobs(latency_ms=30)
    async with p.runner():
        id = await submit(p, m)
        await p.committed(id, 20)
        for pid in m.engines():
            os.kill(pid, 9)
        await complete(p, m, id)
    assert len(m.calls()) == 2


async def test_a_machine_that_dies_midway_is_reported_with_a_reason(p: Platform, m: Machine) -> None:
    m.knobs(latency_ms=30)
    lost: list[str] = []
    async with p.runner():
        id = await submit(p, m)
        await p.committed(id, 20)
        await m.kill(everything=True)

        async def reported() -> bool:
            batch = await p.get(id)
            lost[:] = [batch.compute_lost, *(error.message for error in batch.errors if error.code == "machine_lost")]
            return any(lost)

        await eventually(reported, 40)
    assert "could not be reached for 1 s" in "".join(lost)
    assert (await p.get(id)).completed_count >= 20


async def another_runner(p: Platform) -> None:
    """Metadata hears of one that could take over what is handed back."""
    info = runners_pb2.RunnerInfo(id="other", version="1", targets=["RunPod", "LambdaCloud"], slot_count=1)
    await p.registry.ReportRunner(runners_pb2.ReportRunnerRequest(runner=info))


@pytest.mark.parametrize("other", [True, False], ids=["another runner is there", "nobody is"])
async def test_a_runner_that_drains(p: Platform, m: Machine, other: bool) -> None:
    """The engine stays for whoever takes the batch over. If nobody is there who could, it is ended."""
    m.knobs(latency_ms=30)
    if other:
        await another_runner(p)
    async with p.runner():
        id = await submit(p, m)
        await p.committed(id, 20)
    assert len(m.engines()) == other
    assert other or m.left_over() == []
    async with p.runner():
        await complete(p, m, id)
    assert len(m.calls()) == (1 if other else 2)
    assert set(m.times().values()) == {1}


@pytest.mark.parametrize(
    ("target", "knobs"),
    [("RunPod", {"hang": True}), ("LambdaCloud", {"latency_ms": 100})],
    ids=["while it loads", "while it runs"],
)
async def test_a_cancel_ends_the_engine(p: Platform, m: Machine, target: str, knobs: dict[str, Any]) -> None:
    m.knobs(**knobs)
    async with p.runner():
        id = await submit(p, m, target)
        if "hang" in knobs:
            await eventually(m.engines)
        else:
            await p.committed(id, 4)
        await p.cancel(id)
        assert (await p.ended(id)).state == State.CANCELLED
    assert m.left_over() == []
    assert m.containers() == []


async def test_an_engine_that_never_comes_up_fails_the_batch_with_its_log(
    p: Platform, m: Machine, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    m.knobs(exit=1, say="HF_TOKEN=hf_abcdefghijklmnop and a prompt: secret question")
    async with p.runner(launch_attempts=2):
        batch = await p.ended(await submit(p, m), 60)
    assert batch.state == State.FAILED
    (error,) = batch.errors
    assert error.code == "runtime_failed"
    assert "Engine core initialization failed" in error.message
    assert "hf_abcdefghijklmnop" not in error.message
    assert "secret question" not in caplog.text + "".join(capfd.readouterr())
    assert m.left_over() == []


async def test_a_batch_whose_engine_hangs_while_it_loads_says_what_it_said(
    p: Platform, m: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(allocation, "READY_TIMEOUT_S", 2.0)
    m.knobs(hang=True)
    async with p.runner(launch_attempts=1):
        batch = await p.ended(await submit(p, m), 60)
    (error,) = batch.errors
    assert "not ready after 2 s" in error.message
    assert "Loading model weights" in error.message
    assert m.left_over() == []


async def test_the_saved_state_has_no_secret_and_keeps_the_pin(p: Platform, m: Machine) -> None:
    m.knobs(latency_ms=30)
    await another_runner(p)
    async with p.runner():
        runtime = {"target": "RunPod", "options": options(m, host_key=None)}
        id = await p.submit(some_lines(LINES), runtime=runtime, client=client(max_concurrency=4))
        await p.committed(id, 10)
        key = (m.home / ".aibrix-batch" / id / "key").read_text().strip()
    request = leases_pb2.AcquireLeaseRequest(
        runner_id="test", targets=["RunPod"], wait_ms=5000, protocol_version=1, batch_id=id
    )
    saved = (await p.leases.AcquireLease(request)).lease.runtime_json
    assert orjson.loads(saved)["handle"]["host_key"] == m.host_key
    assert key not in saved
