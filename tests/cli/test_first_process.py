"""In a container the command is process 1, for which the kernel drops every signal that it does not handle."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from tests.cli.support import COMMAND, PATIENCE_S, environment
from tests.conftest import unavailable

# Process 1 of a PID namespace of its own. If `unshare` dies, so does it.
FIRST = ("unshare", "--pid", "--fork", "--kill-child")
ENDED = 128 + signal.SIGTERM
Process = asyncio.subprocess.Process


@pytest.fixture(scope="module", autouse=True)
def namespaces() -> None:
    if shutil.which("unshare") is None or subprocess.run([*FIRST, "true"], capture_output=True).returncode != 0:
        unavailable("nobody may make PID namespaces here")


async def first_process(*argv: str, **env: str) -> Process:
    pipe = asyncio.subprocess.PIPE
    return await asyncio.create_subprocess_exec(
        *FIRST, *COMMAND, *argv, env=environment(**env), stdin=pipe, stdout=pipe, stderr=pipe
    )


def terminate(process: Process) -> None:
    """As a kubelet does: the command, not `unshare` around it."""
    (child,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(child), signal.SIGTERM)


async def ended(process: Process) -> int:
    try:
        async with asyncio.timeout(PATIENCE_S):
            return await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_sigterm_while_modules_are_imported_ends_it(tmp_path: Path) -> None:
    """The import of a library that takes long: here for ever, until the signal."""
    (tmp_path / "uvloop.py").write_text("import sys\nprint('importing', flush=True)\nsys.stdin.read()\nsys.exit(99)\n")
    process = await first_process("serve", "--port", "0", PYTHONPATH=f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    assert process.stdout is not None
    assert process.stdin is not None
    assert await process.stdout.readline() == b"importing\n"
    terminate(process)
    process.stdin.close()
    assert await ended(process) == ENDED


@pytest.mark.parametrize("command", ["migrate", "download-model"])
async def test_sigterm_ends_a_command_that_waits_for_others(tmp_path: Path, command: str) -> None:
    """A database, or a store, that takes connections and says nothing."""
    called, hung_up = asyncio.Event(), asyncio.Event()

    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        called.set()
        while await reader.read(65_536):
            pass
        hung_up.set()
        writer.close()

    server = await asyncio.start_server(say_nothing, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    env = {
        "AIBRIX_DATA_DIR": str(tmp_path),
        "AIBRIX_METADATA__DATABASE_URL": f"postgresql+asyncpg://user@127.0.0.1:{port}/database",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
    }
    argv = ["migrate", "--role", "metadata"] if command == "migrate" else [command, "s3://bucket/model", str(tmp_path)]
    async with server, asyncio.timeout(PATIENCE_S):
        process = await first_process(*argv, **env)
        await called.wait()
        terminate(process)
        assert await ended(process) == ENDED
        await hung_up.wait()
