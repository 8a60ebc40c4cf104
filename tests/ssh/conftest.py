"""A machine, and a connection to it that trusts its key only."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import asyncssh
import pytest

from tests.ssh.machine import Machine, machine

LOGIN_S = 20.0


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[Machine]:
    async with machine(tmp_path / "machine") as made:
        yield made


@pytest.fixture
async def line(here: Machine) -> AsyncIterator[asyncssh.SSHClientConnection]:
    async with await connect(here) as connection:
        yield connection


async def connect(
    to: Machine, *, host_key: str | None = None, key_file: Path | None = None, login_s: float = LOGIN_S
) -> asyncssh.SSHClientConnection:
    return await asyncssh.connect(
        to.host,
        to.port,
        username=to.user,
        client_keys=[str(key_file or to.key_file)],
        known_hosts=([asyncssh.import_public_key(host_key or to.host_key)], [], []),
        agent_path=None,
        config=[],
        login_timeout=login_s,
    )


async def say(line: asyncssh.SSHClientConnection, command: str) -> str:
    """Standard output of a command that has to succeed."""
    done = await line.run(command, timeout=LOGIN_S)
    assert done.exit_status == 0, done.stderr
    return str(done.stdout).strip()
