"""The machine of the tests is one: a real server with its own keys and home, that can be hurt in every way we need."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import shutil
import time
from pathlib import Path

import asyncssh
import pytest

from tests.e2e.processes import eventually
from tests.runtimes.support import until
from tests.ssh.conftest import connect, say
from tests.ssh.machine import Machine, machine, make_key

DETACHED = "setsid nohup sleep 600 >/dev/null 2>&1 </dev/null & echo $!"
HOSTILE = [
    "$(touch pwned)",
    "`id`",
    "a\nb",
    "'\"'\"",
    "--flag",
    "",
    "*",
    "\\",
    "über 漢字 🦀",
    "a;b&&c|d>e",
    "$HOME",
    "!!",
    "~",
]


async def test_a_session_has_the_machines_own_home(
    here: Machine, line: asyncssh.SSHClientConnection, tmp_path: Path
) -> None:
    assert (
        await say(line, "pwd; echo $HOME; echo a >mine; echo $TMPDIR") == f"{here.home}\n{here.home}\n{here.home}/tmp"
    )
    assert (here.home / "mine").read_text() == "a\n"
    async with machine(tmp_path / "other") as other, await connect(other) as far:
        assert "mine" not in await say(far, "ls")
        assert other.host_key != here.host_key
        assert other.port != here.port
        await say(far, DETACHED)
        await until(lambda: len(other.processes()) == 1, "the other machine has a process")
        assert here.processes() == []


@pytest.mark.parametrize("shell", ["bash", "sh"])
async def test_every_command_goes_through_a_real_shell(tmp_path: Path, shell: str) -> None:
    program = shutil.which(shell)
    if program is None:
        pytest.skip(f"there is no {shell} here")
    async with machine(tmp_path / "machine", shell=program) as here, await connect(here) as line:
        assert json.loads(await say(line, f"record-args {shlex.join(HOSTILE)}")) == HOSTILE
        # Unquoted, the shell reads them: this is what quoting is for.
        assert json.loads(await say(line, "record-args $(echo a b) ~")) == ["a", "b", str(here.home)]
        assert not (here.home / "pwned").exists()


async def test_only_the_right_keys_open_it(here: Machine, tmp_path: Path) -> None:
    assert here.key_file.stat().st_mode & 0o777 == 0o600
    stranger = make_key(tmp_path / "stranger")
    with pytest.raises(asyncssh.PermissionDenied):
        await connect(here, key_file=tmp_path / "stranger")
    with pytest.raises(asyncssh.HostKeyNotVerifiable):
        await connect(here, host_key=stranger)
    assert "Failed publickey" in here.log()


async def test_it_comes_back_on_its_port_with_another_key(here: Machine) -> None:
    old, port = here.host_key, here.port
    await here.start(new_host_key=True)
    assert (here.host_key != old, here.port) == (True, port)
    with pytest.raises(asyncssh.HostKeyNotVerifiable):
        await connect(here, host_key=old)
    async with await connect(here) as line:
        await say(line, "true")


async def test_dropped_connections_leave_the_server(here: Machine, line: asyncssh.SSHClientConnection) -> None:
    pid = int(await say(line, DETACHED))
    assert await here.drop_connections() >= 1
    async with asyncio.timeout(10):
        await line.wait_closed()
    async with await connect(here) as again:
        assert await say(again, f"kill -0 {pid} && echo alive") == "alive"


@pytest.mark.parametrize("way", ["stop", "kill"])
async def test_a_server_that_ends_takes_connections_but_no_processes(
    here: Machine, line: asyncssh.SSHClientConnection, way: str
) -> None:
    pid = int(await say(line, DETACHED))
    await getattr(here, way)()
    async with asyncio.timeout(10):
        await line.wait_closed()
    assert not here.running
    with pytest.raises(ConnectionRefusedError):
        await connect(here)
    assert here.left_over() == [f"{pid} sleep 600"]
    await here.start()
    async with await connect(here) as again:
        assert await say(again, f"kill -0 {pid} && echo alive") == "alive"


async def test_a_machine_that_dies_takes_all(here: Machine, line: asyncssh.SSHClientConnection) -> None:
    await say(line, DETACHED)
    await here.kill(everything=True)
    assert here.left_over() == []


async def test_nothing_is_left_behind(tmp_path: Path) -> None:
    async with machine(tmp_path / "machine") as here, await connect(here) as line:
        pid = int(await say(line, DETACHED))
    assert here.left_over() == []
    # Gone, or a process that only its parent has not looked after yet.
    state = Path(f"/proc/{pid}/stat")
    assert not state.exists() or ") Z " in state.read_text()


async def test_a_slow_handshake_is_slow(tmp_path: Path) -> None:
    async with machine(tmp_path / "machine", slow_handshake=0.4) as here:
        began = time.monotonic()
        with pytest.raises(asyncssh.ConnectionLost):
            await connect(here, login_s=0.1)
        async with await connect(here) as line:
            assert time.monotonic() - began >= 0.5
            await say(line, "true")
            await here.kill()
            async with asyncio.timeout(10):
                await line.wait_closed()
        with pytest.raises(ConnectionRefusedError):
            await connect(here)


async def test_its_disk_can_be_full(tmp_path: Path) -> None:
    async with machine(tmp_path / "machine", full_disk=True) as here, await connect(here) as line:
        await say(line, "echo fits >file")
        here.fill_disk()
        done = await line.run("echo does not >other")
        assert done.exit_status != 0
        assert "No space left on device" in str(done.stderr)
        here.knobs(exit=7)
        assert (await line.run("vllm serve m")).exit_status == 7
        assert len(here.calls()) == 1
        here.empty_disk()
        await say(line, "echo fits >other")
    assert not os.path.ismount(here.home)


async def test_programs_can_be_missing(tmp_path: Path) -> None:
    async with machine(tmp_path / "one", without=["docker"]) as here, await connect(here) as line:
        assert (await line.run("docker ps")).exit_status == 127
        assert await say(line, "command -v vllm")
    # Not even those of this computer are found, whatever it has.
    async with machine(tmp_path / "two", path_first=False) as bare, await connect(bare) as line:
        for program in ("vllm", "docker", "sudo"):
            assert (await line.run(program)).exit_status == 127


async def test_forwards_reach_the_machines_loopback(here: Machine, line: asyncssh.SSHClientConnection) -> None:
    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"hello")
        writer.close()

    server = await asyncio.start_server(greet, "127.0.0.1", 0)
    async with server, line.forward_local_port("127.0.0.1", 0, "127.0.0.1", server.sockets[0].getsockname()[1]) as way:
        reader, writer = await asyncio.open_connection("127.0.0.1", way.get_port())
        assert await reader.read() == b"hello"
        writer.close()
        with pytest.raises(asyncssh.ChannelListenError):
            await line.forward_remote_port("127.0.0.1", 0, "127.0.0.1", 1)


async def test_a_foreground_command_outlives_its_connection_as_on_real_machines(
    here: Machine, line: asyncssh.SSHClientConnection
) -> None:
    process = await line.create_process("exec sleep 600")

    async def begun() -> bool:
        return bool(here.left_over())

    await eventually(begun, "the command runs")
    await here.drop_connections()
    await process.wait_closed()
    assert [text.partition(" ")[2] for text in here.left_over()] == ["sleep 600"]
