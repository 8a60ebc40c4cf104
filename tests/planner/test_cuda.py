"""The check that logs in and starts CUDA, on a real sshd. There is no GPU here: `python3` on the machine answers as cuInit would."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from services.kit.settings import Settings
from services.kit.ssh.keys import read_client_key
from services.planner import domain
from services.planner.resource_manager import cuda
from services.planner.resource_manager.base import Gone, Pending, Ready
from services.planner.resource_manager.cuda import CudaProbe, health_check
from services.planner.resource_manager.health import ssh_banner
from tests.ssh.machine import Machine, machine


@pytest.fixture
async def far(tmp_path: Path) -> AsyncIterator[Machine]:
    async with machine(tmp_path / "machine") as made:
        yield made


def python3(far: Machine, script: str) -> None:
    path = far.folder / "bin" / "python3"
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    path.write_text(f'#!/bin/sh\necho asked >> "$HOME/asked"\n{script}\n')
    path.chmod(0o755)


def asked(far: Machine) -> int:
    path = far.home / "asked"
    return len(path.read_text().splitlines()) if path.exists() else 0


def row(far: Machine, **fields: object) -> domain.Machine:
    said = {"id": "i-1", "name": "aibrix-prov-1-1", "host": far.host, "ssh_port": far.port, "ssh_user": far.user}
    return domain.Machine(**{**said, "host_key": far.host_key, **fields})  # type: ignore[arg-type]


async def test_a_machine_whose_gpu_works_is_ready_and_not_asked_again(far: Machine) -> None:
    python3(far, "echo 0")
    probe = CudaProbe(read_client_key(str(far.key_file)))
    for _ in range(2):
        assert await probe(row(far)) == Ready(row(far))
    assert asked(far) == 1
    await far.stop()
    assert isinstance(await probe(row(far)), Pending)


async def test_a_dead_gpu_makes_it_unhealthy(far: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "SCRIPT", cuda.SCRIPT.replace("sleep 5", ":"))
    python3(far, "echo 802")
    probe = CudaProbe(read_client_key(str(far.key_file)))
    assert await probe(row(far)) == Gone("Unhealthy", "CUDA does not start on aibrix-prov-1-1: error 802")
    assert asked(far) == 6


async def test_a_gpu_that_needs_a_moment_is_waited_for(far: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "SCRIPT", cuda.SCRIPT.replace("sleep 5", ":"))
    python3(far, '[ "$(wc -l < "$HOME/asked")" -ge 3 ] && echo 0 || echo 802')
    assert await CudaProbe(read_client_key(str(far.key_file)))(row(far)) == Ready(row(far))


async def test_until_the_machine_shows_its_own_key_nothing_is_sent(far: Machine) -> None:
    """The image's key shows until cloud-init has run."""
    python3(far, "echo 0")
    injected = far.host_key
    await far.stop()
    await far.start(new_host_key=True)
    probe = CudaProbe(read_client_key(str(far.key_file)))
    now = await probe(row(far, host_key=injected))
    assert isinstance(now, Pending)
    assert "is expected" in now.detail
    assert asked(far) == 0
    assert isinstance(await probe(row(far, host_key="")), Pending)


async def test_a_machine_without_the_driver_is_not_blamed(far: Machine) -> None:
    python3(far, "exit 1")
    with capture_logs() as logs:
        assert await CudaProbe(read_client_key(str(far.key_file)))(row(far)) == Ready(row(far))
    assert [entry["event"] for entry in logs] == ["CUDA could not be tried"]


def test_without_the_key_an_ssh_server_has_to_do(far: Machine) -> None:
    with capture_logs() as logs:
        assert health_check(Settings()) is ssh_banner
    assert logs[0]["missing"] == "AIBRIX_BATCH_SSH_KEY_FILE"
    assert isinstance(health_check(Settings(batch_ssh_key_file=str(far.key_file))), CudaProbe)
    with pytest.raises(ValueError, match="AIBRIX_BATCH_SSH_KEY_FILE"):
        health_check(Settings(batch_ssh_key_file="/nowhere"))
