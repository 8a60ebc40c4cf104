"""Machines that behave badly: noisy shells, forbidden forwards, daemons that hang, calls that come too late."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from aiohttp import web

from services.kit.ssh import connect as connecting
from services.kit.ssh.connect import Patience, Unreachable, connect_once
from services.kit.ssh.keys import read_client_key
from services.runner.runtimes import ssh, ssh_health
from services.runner.runtimes.base import Gone, Pending, Ready
from tests.conftest import free_port
from tests.runner.ssh.support import RUNTIMES, Driver, ask, options, settings, spec_for
from tests.runner.ssh.test_connect import target
from tests.runtimes.support import until
from tests.ssh.machine import Machine, machine

NOISE = {
    "a banner": "echo '  *** Welcome to your pod! ***'; echo running; echo a warning >&2",
    "much": "head -c 400000 /dev/zero | tr '\\0' x; head -c 400000 /dev/zero >&2",
    "no end of line": "printf 'exited 1'; printf oh >&2; printf '\\377\\033[31m'",
}


def script(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/bash\n{text}\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize("target", RUNTIMES)
@pytest.mark.parametrize("noise", NOISE)
async def test_a_shell_that_says_something_first(tmp_path: Path, target: str, noise: str) -> None:
    shell = script(tmp_path / "shell", NOISE[noise] + '\nexec /bin/bash "$@"')
    async with machine(tmp_path / "m", shell=shell) as m:
        runtime = RUNTIMES[target](settings(m, tmp_path))
        driver = await Driver.launch(runtime, spec_for(target, options(m)))
        assert await ask(await driver.ready()) == 200
        assert "Loading model" in await runtime.explain(driver.handle)
        await runtime.release(driver.handle)
        assert m.left_over() == []
        await runtime.close()


async def test_an_account_that_runs_no_commands(tmp_path: Path) -> None:
    shell = script(tmp_path / "shell", "echo This account is currently not available.; exit 1")
    async with machine(tmp_path / "m", shell=shell) as m:
        runtime = RUNTIMES["RunPod"](settings(m, tmp_path))
        driver = await Driver.launch(runtime, spec_for("RunPod", options(m)))
        gone = await driver.gone()
        assert "runs no commands: This account is currently not available." in gone.why
        assert not gone.machine_lost
        await runtime.close()


async def test_a_server_that_forwards_nothing_says_so(m: Machine, tmp_path: Path) -> None:
    await m.stop()
    m.sshd_options["AllowTcpForwarding"] = "no"
    await m.start()
    runtime = RUNTIMES["RunPod"](settings(m, tmp_path))
    driver = await Driver.launch(runtime, spec_for("RunPod", options(m)))
    gone = await driver.gone()
    assert "AllowTcpForwarding" in gone.why
    assert not gone.retryable
    await runtime.release(driver.handle)
    assert m.left_over() == []
    await runtime.close()


async def test_a_machine_that_opens_no_session_is_lost_in_time(m: Machine, tmp_path: Path) -> None:
    runtime = RUNTIMES["RunPod"](settings(m, tmp_path))
    driver = await Driver.launch(runtime, spec_for("RunPod", options(m)))
    await driver.ready()
    await m.kill()
    m.sshd_options["MaxSessions"] = "0"
    await m.start()
    gone = await driver.gone()
    assert gone.machine_lost
    assert "opens no session" in gone.why
    await runtime.close()


@pytest.mark.parametrize("target", RUNTIMES)
async def test_a_start_that_comes_after_the_end_starts_nothing(m: Machine, tmp_path: Path, target: str) -> None:
    """Of a runner that did not notice that its lease, and then its batch, ended."""
    config = settings(m, tmp_path)
    late, ending = RUNTIMES[target](config), RUNTIMES[target](config)
    spec = spec_for(target, options(m))
    driver = await Driver.launch(late, spec)
    await ending.release(driver.handle)
    assert "stopped" in (await driver.gone()).why
    assert m.calls() == []
    assert m.containers() == []

    again = await Driver.launch(ending, replace(spec, previous=driver.handle))
    assert await ask(await again.ready()) == 200
    await ending.release(again.handle)
    assert m.left_over() == []
    await ending.close()
    await late.close()


async def test_an_end_that_overtakes_its_start_over_a_slow_docker(m: Machine, tmp_path: Path) -> None:
    """The start was sent, and goes on there although nobody waits for it any more."""
    m.knobs(daemon_s=0.7)
    runtime = RUNTIMES["LambdaCloud"](settings(m, tmp_path))
    driver = await Driver.launch(runtime, spec_for("LambdaCloud", options(m)))
    probing = asyncio.create_task(driver.probe())
    await until(m.docker_calls, "the start asks Docker")
    probing.cancel()
    await asyncio.gather(probing, return_exceptions=True)
    await runtime.release(driver.handle)
    await until(lambda: not m.left_over(), "the start has ended as well")
    assert m.containers() == []
    assert not [call for call in m.docker_calls() if call[0] in ("pull", "run")]
    await runtime.close()


@pytest.mark.parametrize("target", RUNTIMES)
async def test_starts_and_ends_at_once(m: Machine, tmp_path: Path, target: str) -> None:
    """Whatever comes first: what was released does not run."""
    config = settings(m, tmp_path)
    for number in range(8):
        runtimes = [RUNTIMES[target](config) for _ in range(3)]
        driver = await Driver.launch(runtimes[0], spec_for(target, options(m), key=f"batch_{number}"))
        others = [Driver(runtime, driver.spec, dict(driver.handle)) for runtime in runtimes[1:]]

        async def end(number: int = number, handle: dict = driver.handle, by: object = runtimes[2]) -> None:
            await asyncio.sleep(0.03 * number)
            await by.release(handle)

        await asyncio.gather(driver.probe(), others[0].probe(), end())
        assert isinstance(await driver.gone(), Gone)
        assert m.left_over() == []
        assert m.containers() == []
        for runtime in runtimes:
            await runtime.close()


@pytest.mark.parametrize("target", RUNTIMES)
async def test_a_late_start_of_who_had_a_shared_engine_changes_nothing(m: Machine, tmp_path: Path, target: str) -> None:
    config = settings(m, tmp_path)
    first, zombie, last = (RUNTIMES[target](config) for _ in range(3))

    def spec(key: str) -> object:
        return replace(spec_for(target, options(m), key), kind="0123456789abcdef" * 4, keep_s=60.0)

    one = await Driver.launch(first, spec("batch_1"))
    await one.ready()
    await first.release(one.handle)
    one = await Driver.launch(first, replace(one.spec, previous=one.handle))
    assert one.handle["number"] == 2
    await one.ready()
    assert await first.leave(one.spec, one.handle)
    two = await Driver.launch(last, spec("batch_2"))
    ready = await two.ready()
    assert two.handle["number"] == 1
    started = len(m.calls())

    assert "took the engine's place" in (await Driver(zombie, one.spec, one.handle).gone()).why
    await zombie.release(one.handle)
    assert await ask(ready) == 200
    assert isinstance(await two.probe(), Ready)
    assert len(m.calls()) == started
    await last.release(two.handle)
    assert m.left_over() == []
    for runtime in (first, zombie, last):
        await runtime.close()


@asynccontextmanager
async def foreign(port: int) -> AsyncIterator[list[str]]:
    """A server that answers everything, and asks for no key. The paths of its requests."""
    seen: list[str] = []

    async def answer(request: web.BaseRequest) -> web.Response:
        seen.append(request.path + " " + request.headers.get("Authorization", ""))
        return web.json_response({"object": "list", "data": []})

    runner = web.ServerRunner(web.Server(answer))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    try:
        yield seen
    finally:
        await runner.cleanup()


async def test_a_server_that_asks_for_no_key_is_not_ours_and_does_not_get_it(m: Machine, tmp_path: Path) -> None:
    config = settings(m, tmp_path)
    m.knobs(hang=True)
    runtime = RUNTIMES["RunPod"](config)
    driver = await Driver.launch(runtime, spec_for("RunPod", options(m)))
    async with foreign(config.ssh.engine_port) as seen:
        for _ in range(3):
            probe = await driver.probe()
            assert probe == Pending("another server answers on the engine's port", "loading")
        assert set(seen) == {"/v1/models "}
    await runtime.release(driver.handle)
    await runtime.close()


@pytest.mark.parametrize("target", RUNTIMES)
async def test_a_port_that_is_taken_is_said(m: Machine, tmp_path: Path, target: str) -> None:
    config = settings(m, tmp_path)
    with socket.create_server(("127.0.0.1", config.ssh.engine_port)):
        runtime = RUNTIMES[target](config)
        driver = await Driver.launch(runtime, spec_for(target, options(m)))
        assert "address already in use" in (await driver.gone()).why.lower()
        await runtime.release(driver.handle)
    assert m.containers() == []
    assert m.left_over() == []
    await runtime.close()


async def test_workers_that_left_the_session_are_ended_too(m: Machine, tmp_path: Path) -> None:
    m.knobs(worker_leaves=True)
    runtime = RUNTIMES["RunPod"](settings(m, tmp_path))
    driver = await Driver.launch(runtime, spec_for("RunPod", options(m)))
    await driver.ready()
    (engine,) = m.engines()
    (worker,) = psutil.Process(engine).children()
    assert os.getsid(worker.pid) == worker.pid
    os.kill(engine, signal.SIGKILL)
    await driver.gone()
    await runtime.release(driver.handle)
    assert m.left_over() == []
    await runtime.close()


async def test_a_process_with_a_confusing_name_is_in_nobodys_way(m: Machine, tmp_path: Path) -> None:
    runtime = RUNTIMES["RunPod"](settings(m, tmp_path))
    driver = await Driver.launch(runtime, spec_for("RunPod", options(m)))
    await driver.ready()
    rename = "open('/proc/self/comm','w').write('a) S\\nb')"
    odd = await asyncio.create_subprocess_exec(
        "python3", "-c", f"{rename}; print(1, flush=True); input()", stdin=-1, stdout=-1
    )
    try:
        assert odd.stdout is not None
        await odd.stdout.readline()
        await runtime.release(driver.handle)
        assert m.left_over() == []
    finally:
        odd.kill()
        await odd.wait()
    await runtime.close()


@pytest.mark.parametrize("trouble", [{"docker_down": True}, {"daemon_fails": ["inspect"]}, {"daemon_s": 2.0}], ids=str)
async def test_while_docker_is_away_the_health_of_the_engine_decides(
    m: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trouble: dict
) -> None:
    monkeypatch.setattr(ssh, "COMMAND_S", 1.0)
    monkeypatch.setattr(ssh_health, "HEALTH_S", 0.5)
    runtime = RUNTIMES["LambdaCloud"](settings(m, tmp_path, hang_timeout_s=0.5))
    driver = await Driver.launch(runtime, spec_for("LambdaCloud", options(m)))
    before = await driver.ready()
    m.knobs(**trouble)
    assert await driver.probe() == Ready(before.endpoints)
    for pid in m.engines():
        os.kill(pid, signal.SIGSTOP)
    gone = await driver.gone()
    assert "the engine hangs" in gone.why
    m.knobs()
    await runtime.release(driver.handle)
    assert m.containers() == []
    await until(lambda: not m.left_over(), "questions that nobody waited for have ended too")
    await runtime.close()


@pytest.mark.parametrize("program", ["flock", "setsid"])
async def test_a_machine_that_lacks_a_program_of_ours(tmp_path: Path, program: str) -> None:
    async with machine(tmp_path / "m", without=[program]) as m:
        runtime = RUNTIMES["RunPod"](settings(m, tmp_path))
        driver = await Driver.launch(runtime, spec_for("RunPod", options(m)))
        gone = await driver.gone()
        assert f"{program} is not installed" in gone.why
        assert not gone.retryable
        await runtime.close()


async def test_a_secret_that_the_end_of_the_log_cuts_in_two_is_not_shown(m: Machine, tmp_path: Path) -> None:
    """Also by a runner that never had the API key in its hands."""
    runtime, other = (RUNTIMES["RunPod"](settings(m, tmp_path)) for _ in range(2))
    driver = await Driver.launch(runtime, spec_for("RunPod", options(m)))
    key = (await driver.ready()).endpoints[0].headers["Authorization"].removeprefix("Bearer ")
    log = m.home / ".aibrix-batch" / "batch_1" / "log"
    for length in (16 * 1024 - 20, 16 * 1024 - 1, 100):
        log.write_text(f"begin {key} {'x' * (length - 1)}\n")
        for one in (runtime, other):
            said = await one.explain(driver.handle)
            assert said.endswith("xxx")
            assert not any(key[at : at + 8] in said for at in range(len(key) - 8))
    await runtime.release(driver.handle)
    await runtime.close()
    await other.close()


async def test_a_connection_that_is_half_open_is_noticed_and_replaced(m: Machine, tmp_path: Path) -> None:
    runtime = RUNTIMES["RunPod"](settings(m, tmp_path, keepalive_s=0.2, lost_after_s=20.0))
    driver = await Driver.launch(runtime, spec_for("RunPod", options(m)))
    before = await driver.ready()
    frozen = m._sessions()
    for process in frozen:
        process.suspend()
    again = await driver.ready()
    assert again.endpoints == before.endpoints
    assert await ask(again) == 200
    for process in frozen:
        process.kill()
    assert len(m.calls()) == 1
    await runtime.release(driver.handle)
    assert m.left_over() == []
    await runtime.close()


async def test_an_address_that_swallows_packets_leaves_time_for_the_next(
    m: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def both(target: object) -> list[str]:
        return ["127.0.0.2", m.host]

    monkeypatch.setattr(connecting, "_addresses", both)
    with socket.create_server(("127.0.0.2", m.port)):  # accepts, and says nothing
        key = read_client_key(str(m.key_file))
        (await connect_once(target(m), key, Patience(handshake_s=4.0))).abort()
        await m.kill()
        with pytest.raises(Unreachable):
            await connect_once(target(m), key, Patience(handshake_s=0.4))


async def test_a_disk_that_is_nearly_full_at_every_step(tmp_path: Path) -> None:
    async with machine(tmp_path / "m", full_disk=True) as m:
        runtime = RUNTIMES["RunPod"](settings(m, tmp_path, engine_port=free_port()))
        for pages in range(7):
            m.fill_disk()
            with (m.home / "ballast").open("r+b") as ballast:
                ballast.truncate(os.fstat(ballast.fileno()).st_size - pages * 4096)
            spec = spec_for("RunPod", options(m), key=f"batch_{pages}")
            driver = await Driver.launch(runtime, spec)
            probe = await driver.probe()
            if isinstance(probe, Gone):
                assert "disk full" in probe.why or "could not be recorded" in probe.why
            await runtime.release(driver.handle)
            assert m.left_over() == []
            m.empty_disk()
            driver = await Driver.launch(runtime, replace(spec, previous=driver.handle))
            await driver.ready()
            await runtime.release(driver.handle)
            assert m.left_over() == []
        await runtime.close()


async def test_a_machine_that_lets_us_in_and_does_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its disk has gone, say: an SSH server answers from memory for long after that."""
    monkeypatch.setattr(ssh, "START_S", 0.3)
    shell = script(tmp_path / "shell", "exec sleep 60")
    async with machine(tmp_path / "m", shell=shell) as m:
        runtime = RUNTIMES["RunPod"](settings(m, tmp_path, hang_timeout_s=0.5))
        driver = await Driver.launch(runtime, spec_for("RunPod", options(m)))
        gone = await driver.gone()
        assert gone.machine_lost
        assert gone.why == "the machine has hung: for 0.5 s a command did not end within 0.3 s"
        await runtime.close()
