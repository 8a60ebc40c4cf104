"""RunPod against a real sshd: an engine is started once, found again, watched, and ended."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from services.runner.runtimes import ssh_health
from services.runner.runtimes.base import Gone, Pending, RuntimeFailed
from services.runner.runtimes.runpod import RunPod
from tests.conftest import free_port
from tests.runner.ssh.support import MODEL, Driver, ask, options, settings, spec_for
from tests.runtimes.support import until
from tests.ssh.machine import Machine, machine

LOG = Path(".aibrix-batch/batch_1/log")


@pytest.fixture
async def runtime(m: Machine, tmp_path: Path) -> AsyncIterator[RunPod]:
    one = RunPod(settings(m, tmp_path))
    yield one
    await one.close()


async def test_an_engine_comes_up_answers_and_is_ended(m: Machine, runtime: RunPod) -> None:
    driver = await Driver.launch(runtime, spec_for("RunPod", options(m)))
    ready = await driver.ready()
    assert await ask(ready) == 200
    assert await ask(ready, Authorization="Bearer wrong") == 401
    (call,) = m.calls()
    assert call["argv"][:2] == ["serve", MODEL]
    assert (call["host"], call["port"]) == ("127.0.0.1", driver.handle["engine_port"])
    assert driver.seen == ["loading"]
    assert len(m.engines()) == 1

    await runtime.release(driver.handle)
    assert m.left_over() == []
    assert not (m.home / ".aibrix-batch" / "batch_1").exists()
    assert isinstance(await driver.probe(), Gone)
    assert m.left_over() == []


async def test_the_api_key_is_random_and_on_no_command_line_and_in_no_handle(m: Machine, runtime: RunPod) -> None:
    first = await Driver.launch(runtime, spec_for("RunPod", options(m)))
    key = (await first.ready()).endpoints[0].headers["Authorization"].removeprefix("Bearer ")
    assert len(key) > 30
    assert "VLLM_API_KEY" in m.calls()[0]["env"]
    assert not any(key in word for line in m.left_over() for word in line.split())
    assert key not in str(first.handle)
    kept = m.home / ".aibrix-batch" / "batch_1" / "key"
    assert kept.read_text() == key + "\n"
    assert kept.stat().st_mode & 0o777 == 0o600
    assert kept.parent.stat().st_mode & 0o777 == 0o700

    await runtime.release(first.handle)
    second = await Driver.launch(runtime, spec_for("RunPod", options(m)))
    assert (await second.ready()).endpoints[0].headers["Authorization"] != f"Bearer {key}"


async def test_a_takeover_finds_the_engine_and_starts_no_second_one(
    m: Machine, runtime: RunPod, tmp_path: Path
) -> None:
    spec = spec_for("RunPod", options(m))
    driver = await Driver.launch(runtime, spec)
    before = await driver.ready()
    await runtime.close()
    assert len(m.engines()) == 1

    another = RunPod(settings(m, tmp_path, engine_port=driver.handle["engine_port"]))
    try:
        found = await Driver(another, spec, driver.handle).ready()
        assert await ask(found) == 200
        assert found.endpoints[0].headers == before.endpoints[0].headers
        assert len(m.calls()) == 1
        await another.release(driver.handle)
    finally:
        await another.close()
    assert m.left_over() == []


async def test_a_launch_that_was_replaced_starts_nothing_any_more(m: Machine, runtime: RunPod, tmp_path: Path) -> None:
    spec = spec_for("RunPod", options(m))
    old = await Driver.launch(runtime, spec)
    await old.ready()

    another = RunPod(settings(m, tmp_path, engine_port=old.handle["engine_port"]))
    try:
        newer = dict(old.handle, number=2, mark="0123456789abcdef", ready=False)
        new = Driver(another, spec, newer)
        assert await ask(await new.ready()) == 200
        assert len(m.engines()) == 1  # the old one was ended first: there is one GPU
        assert "took the engine's place" in (await old.gone()).why
        await runtime.release(old.handle)  # no longer its own
        assert len(m.engines()) == 1
        late = RunPod(settings(m, tmp_path))
        assert isinstance(await Driver(late, spec, old.handle).gone(), Gone)
        await late.close()
        assert len(m.calls()) == 2
    finally:
        await another.close()


async def test_two_probes_at_once_start_one_engine(m: Machine, tmp_path: Path) -> None:
    plain = settings(m, tmp_path)
    spec = spec_for("RunPod", options(m))
    runtimes = [RunPod(plain) for _ in range(4)]
    handle = await runtimes[0].launch(spec)
    drivers = [Driver(runtime, spec, dict(handle)) for runtime in runtimes]
    await asyncio.gather(*(driver.ready() for driver in drivers))
    assert len(m.calls()) == 1
    for runtime in runtimes:
        await runtime.close()


async def test_a_slow_handshake(tmp_path: Path) -> None:
    async with machine(tmp_path / "slow", slow_handshake=1.0) as m:
        runtime = RunPod(settings(m, tmp_path))
        driver = await Driver.launch(runtime, spec_for("RunPod", options(m)))
        await driver.ready()
        await runtime.release(driver.handle)
        assert m.left_over() == []
        await runtime.close()


async def test_a_dropped_connection_is_made_again_on_the_same_port(m: Machine, runtime: RunPod) -> None:
    driver = await Driver.launch(runtime, spec_for("RunPod", options(m)))
    before = await driver.ready()
    for _ in range(3):
        assert await m.drop_connections()
        again = await driver.ready()
        assert again.endpoints == before.endpoints
        assert await ask(again) == 200
    assert len(m.calls()) == 1


async def test_a_machine_that_does_not_come_back_is_lost(m: Machine, runtime: RunPod) -> None:
    driver = await Driver.launch(runtime, spec_for("RunPod", options(m)))
    await driver.ready()
    await m.kill(everything=True)
    assert isinstance(await driver.probe(), Pending)
    gone = await driver.gone()
    assert gone.machine_lost
    assert "could not be reached for 1 s" in gone.why
    with pytest.raises(RuntimeFailed) as failed:
        await runtime.release(driver.handle)
    assert not failed.value.retryable


async def test_a_machine_that_never_answers_is_lost(m: Machine, tmp_path: Path) -> None:
    runtime = RunPod(settings(m, tmp_path, connect_timeout_s=0.5))
    await m.kill()
    driver = await Driver.launch(runtime, spec_for("RunPod", options(m)))
    gone = await driver.gone()
    assert gone.machine_lost
    assert driver.seen in ([], ["connecting"])
    await runtime.close()


async def test_an_engine_that_dies_is_started_again_once_on_its_machine(m: Machine, runtime: RunPod) -> None:
    spec = spec_for("RunPod", options(m))
    driver = await Driver.launch(runtime, spec)
    for death in (1, 2):
        await driver.ready()
        assert driver.handle["deaths"] == death - 1
        for pid in m.engines():
            os.kill(pid, 9)  # its worker lives on, and keeps the GPU
        gone = await driver.gone()
        assert gone.retryable
        assert gone.machine_lost == (death == 2)
        assert "exited with status 137" in gone.why
        await runtime.release(driver.handle)
        assert m.left_over() == []
        if death == 1:
            driver = await Driver.launch(runtime, replace(spec, previous=driver.handle))
    assert len(m.calls()) == 2


async def test_an_engine_that_ends_at_once_says_why_without_secrets(m: Machine, runtime: RunPod) -> None:
    said = "HF_TOKEN=hf_abcdefghijklmnop my key is $VLLM_API_KEY Authorization: Bearer abc.def 'api_key': ['s3cret']"
    m.knobs(exit=3, say="\n".join([f"line {number}" for number in range(60)] + [said]))
    driver = await Driver.launch(runtime, spec_for("RunPod", options(m)))
    gone = await driver.gone()
    assert not gone.machine_lost
    headline, *lines = gone.why.split("\n")
    assert headline == "the engine ended: it exited with status 3; its last output:"
    assert len(lines) == 40
    assert "Engine core initialization failed" in lines[-1]
    for secret in ("hf_abcdefghijklmnop", "abc.def", "s3cret"):
        assert secret not in gone.why
    (kept,) = [line for line in lines if "my key is" in line]
    assert "my key is ***" in kept


async def test_an_engine_that_hangs_while_it_loads_explains_itself(m: Machine, runtime: RunPod) -> None:
    m.knobs(hang=True)
    driver = await Driver.launch(runtime, spec_for("RunPod", options(m)))

    async def loading() -> bool:
        probe = await driver.probe()
        assert isinstance(probe, Pending)
        return probe.phase == "loading" and "Loading model" in await runtime.explain(driver.handle)

    await until(loading, "the log has the engine's words")
    await runtime.release(driver.handle)
    assert m.left_over() == []


async def test_an_engine_that_hangs_after_it_was_ready(
    m: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ssh_health, "HEALTH_S", 0.3)
    runtime = RunPod(settings(m, tmp_path, hang_timeout_s=0.2))
    m.knobs(hang_after_requests=1)
    driver = await Driver.launch(runtime, spec_for("RunPod", options(m)))
    assert await ask(await driver.ready()) == 200
    gone = await driver.gone(30)
    assert "the engine hangs" in gone.why
    await runtime.release(driver.handle)
    assert m.left_over() == []
    await runtime.close()


async def test_a_long_log_is_cut_and_its_end_is_found(m: Machine, runtime: RunPod) -> None:
    driver = await Driver.launch(runtime, spec_for("RunPod", options(m)))
    await driver.ready()
    log = m.home / LOG
    with log.open("ab") as out:
        out.truncate(1 << 30)  # sparse, so that it is quick
        out.seek(0, os.SEEK_END)
        out.write(b"\nthe last words\n")
    explained = await runtime.explain(driver.handle)
    assert explained.endswith("the last words")
    await driver.ready()
    assert log.stat().st_size < 1 << 20
    assert (log.with_name("log.old")).stat().st_size <= 1 << 20
    assert "the last words" in await runtime.explain(driver.handle)
    assert await ask(await driver.ready()) == 200
    await until(lambda: "POST /v1/chat/completions" in log.read_text(), "its writer goes on at the new end")


async def test_a_full_disk_on_the_machine(tmp_path: Path) -> None:
    async with machine(tmp_path / "m", full_disk=True) as m:
        runtime = RunPod(settings(m, tmp_path))
        m.fill_disk()
        spec = spec_for("RunPod", options(m))
        driver = await Driver.launch(runtime, spec)
        gone = await driver.gone()
        assert "is the disk full?" in gone.why
        assert gone.retryable
        await runtime.release(driver.handle)
        assert m.left_over() == []

        m.empty_disk()
        driver = await Driver.launch(runtime, replace(spec, previous=driver.handle))
        ready = await driver.ready()
        m.fill_disk()  # now while it runs
        assert await ask(ready) == 200
        assert (await driver.ready()).endpoints == ready.endpoints
        await runtime.release(driver.handle)
        assert m.left_over() == []
        await runtime.close()


async def test_a_machine_without_vllm(tmp_path: Path) -> None:
    async with machine(tmp_path / "m", without=["vllm"]) as m:
        runtime = RunPod(settings(m, tmp_path))
        driver = await Driver.launch(runtime, spec_for("RunPod", options(m)))
        gone = await driver.gone()
        assert "vllm is not installed" in gone.why
        assert not gone.retryable
        await runtime.release(driver.handle)
        await runtime.close()


async def test_a_server_that_does_not_know_the_key_is_not_ours(m: Machine, tmp_path: Path) -> None:
    """Another batch's engine that was left over on this port answers health checks; it must not get our prompts."""
    port = free_port()
    first, second = (RunPod(settings(m, tmp_path, engine_port=port)) for _ in range(2))
    m.knobs(shared_gpu=True)
    await (await Driver.launch(first, spec_for("RunPod", options(m)))).ready()
    m.knobs(shared_gpu=True, startup_s=30)
    other = await Driver.launch(second, spec_for("RunPod", options(m), key="batch_2"))
    for _ in range(3):
        probe = await other.probe()
    assert probe == Pending("another server answers on the engine's port", "loading")
    await first.close()
    await second.close()


async def test_a_batch_that_moved_leaves_its_old_machine(m: Machine, runtime: RunPod) -> None:
    driver = await Driver.launch(runtime, spec_for("RunPod", options(m)))
    await driver.ready()
    driver.spec = spec_for("RunPod", options(m, ssh_port=free_port()))
    assert "another machine" in (await driver.gone()).why
    await runtime.release(driver.handle)
    assert m.left_over() == []


async def test_a_pid_that_was_given_to_somebody_else_is_left_alone(m: Machine, runtime: RunPod) -> None:
    driver = await Driver.launch(runtime, spec_for("RunPod", options(m)))
    await driver.ready()
    record = m.home / ".aibrix-batch" / "batch_1" / "process"
    pid = os.getpid()
    record.write_text(f"{pid} 1\n")  # this process, with another start time
    await runtime.release(driver.handle)
    assert psutil.pid_exists(pid)
    assert m.left_over() == []  # the engine is known by its environment
