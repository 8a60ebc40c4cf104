"""Connections: who is trusted, what is tried again, and what is never sent."""

from __future__ import annotations

import asyncio
import re
import time
from pathlib import Path
from typing import Any

import asyncssh
import pytest

from services.kit.clock import monotonic
from services.kit.ssh.connect import (
    LoginDenied,
    Patience,
    Refused,
    Target,
    UnknownHostKey,
    Unreachable,
    WrongHostKey,
    connect,
    connect_once,
    while_booting,
)
from services.kit.ssh.keys import HostKey, fingerprint, read_client_key
from tests.conftest import free_port
from tests.runner.ssh.support import counting
from tests.ssh.machine import Machine, machine

ROOT = Path(__file__).parents[3]
OTHER = asyncssh.generate_private_key("ssh-ed25519")


def target(m: Machine, **changes: Any) -> Target:
    values: dict[str, Any] = {
        "host": m.host,
        "port": m.port,
        "user": m.user,
        "host_key": HostKey.parse(m.host_key),
        "allows": lambda host, address, port: True,
    }
    return Target(**(values | changes))


def key(m: Machine) -> asyncssh.SSHKey:
    return read_client_key(str(m.key_file))


async def test_the_expected_key_or_its_fingerprint_lets_us_in(m: Machine) -> None:
    for text in (m.host_key, HostKey.parse(m.host_key).fingerprint()):
        connection = await connect_once(target(m, host_key=HostKey.parse(text)), key(m), Patience())
        done = await connection.run("echo here")
        assert done.stdout == "here\n"
        connection.abort()


async def test_another_host_key_is_refused_with_both_fingerprints_and_nobody_logs_in(m: Machine) -> None:
    expected = HostKey(f"{OTHER.export_public_key().decode().strip()}")
    with pytest.raises(WrongHostKey) as refused:
        await connect_once(target(m, host_key=expected), key(m), Patience())
    assert fingerprint(OTHER) in refused.value.why
    assert HostKey.parse(m.host_key).fingerprint() in refused.value.why
    assert "Accepted" not in m.log()
    assert "publickey" not in m.log()


async def test_a_machine_without_a_key_of_that_kind_is_not_the_one(m: Machine) -> None:
    """sshd may hang up before it has said which keys it has."""
    rsa = asyncssh.generate_private_key("ssh-rsa", key_size=2048)
    expected = HostKey.parse(rsa.export_public_key().decode().strip())
    with pytest.raises((WrongHostKey, Unreachable)):
        await connect_once(target(m, host_key=expected), key(m), Patience())


async def test_a_first_key_is_learned_without_a_login(m: Machine) -> None:
    with pytest.raises(UnknownHostKey) as learned:
        await connect_once(target(m, host_key=None), key(m), Patience())
    assert learned.value.host_key == HostKey.parse(m.host_key)
    assert "Accepted" not in m.log()


async def test_a_list_of_known_hosts_of_the_operator_has_no_say(
    m: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "operator"
    (home / ".ssh").mkdir(parents=True)
    (home / ".ssh" / "known_hosts").write_text(f"[{m.host}]:{m.port} {m.host_key}\n{m.host} {m.host_key}\n")
    (home / ".ssh" / "config").write_text("Host *\n  StrictHostKeyChecking no\n  User nobody\n  Port 1\n")
    monkeypatch.setenv("HOME", str(home))
    with pytest.raises(UnknownHostKey):
        await connect_once(target(m, host_key=None), key(m), Patience())


async def test_a_key_that_the_machine_does_not_know(m: Machine) -> None:
    with pytest.raises(LoginDenied):
        await connect_once(target(m), OTHER, Patience())


async def test_nobody_there_is_tried_again_until_the_time_is_over(m: Machine) -> None:
    began = time.monotonic()
    with pytest.raises(Unreachable):
        await connect(target(m, port=free_port()), key(m), Patience(), until=monotonic() + 1.0)
    assert time.monotonic() - began < 5


async def test_a_machine_that_comes_late_is_reached(m: Machine) -> None:
    await m.kill()
    async with asyncio.TaskGroup() as group:
        connecting = group.create_task(connect(target(m), key(m), Patience(), until=monotonic() + 20))
        await m.start()
    connecting.result().abort()


async def test_a_right_key_that_comes_late_is_waited_for(m: Machine) -> None:
    """As on Lambda, where the image's own key shows until cloud-init has run."""
    real = m.host_key
    await m.start(new_host_key=True)
    late = target(m, host_key=HostKey.parse(m.host_key))
    assert m.host_key != real
    await m.start(new_host_key=True)  # the image's, now

    with pytest.raises(WrongHostKey):
        await connect(late, key(m), Patience(), until=monotonic() + 1.0, again=while_booting)
    assert "Accepted" not in m.log()


async def test_a_slow_handshake_is_waited_for_and_a_slower_one_is_not(tmp_path: Path) -> None:
    async with machine(tmp_path / "slow", slow_handshake=0.6) as m:
        (await connect_once(target(m), key(m), Patience(handshake_s=10))).abort()
        with pytest.raises(Unreachable, match="did not complete a login"):
            await connect_once(target(m), key(m), Patience(handshake_s=0.3))


async def test_an_address_that_is_not_allowed_gets_no_packet() -> None:
    async with counting() as (port, visitors):
        for host in ("127.0.0.1", "localhost"):
            wanted = Target(host=host, port=port, user="root", host_key=None, allows=lambda *_: False)
            with pytest.raises(Refused, match="AIBRIX_EXTERNAL__ALLOWED_HOSTS"):
                await connect_once(wanted, OTHER, Patience())
    assert visitors == []


async def test_what_speaks_no_ssh_is_unreachable() -> None:
    async def rude(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n\x1b[31m")
        writer.close()

    async with await asyncio.start_server(rude, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        wanted = Target(host="127.0.0.1", port=port, user="root", host_key=None, allows=lambda *_: True)
        with pytest.raises(Unreachable) as failed:
            await connect_once(wanted, OTHER, Patience(handshake_s=5))
    assert failed.value.why.isprintable()


def test_checks_of_host_keys_are_switched_off_nowhere() -> None:
    for folder in ("services", "gateway", "cli", "benchmarks"):
        for path in (ROOT / folder).rglob("*.py"):
            assert not re.search(r"known_hosts\W{0,3}\s*[=:]\s*None|get_server_host_key", path.read_text()), path
