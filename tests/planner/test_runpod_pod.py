"""What a RunPod pod is started with, and how its host key is read from what it writes."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.kit.settings import Settings
from services.planner.domain import Offer
from services.planner.resource_manager import runpod
from services.planner.resource_manager.base import Order, Pending, Ready
from services.planner.resource_manager.runpod import RunPod
from services.planner.resource_manager.runpod_pod import boot_script
from tests.planner.runpod_fake import HOST_KEY, KEY, PUBLIC_KEY, FakeRunPod, fake_runpod

NAME = "aibrix-prov-abc123-0"
ORDER = Order(name=NAME, offer=Offer(provider="runpod", instance_type="NVIDIA H100 80GB HBM3", memory_gb=80, gpus=1))
OTHER_KEY = HOST_KEY[:-1] + "5"
Pair = tuple[FakeRunPod, RunPod]


@pytest.fixture
async def pair(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Pair]:
    monkeypatch.setattr("services.planner.resource_manager.runpod_ready.LOG_IDLE_S", 0.2)
    async with fake_runpod() as both:
        yield both


# The host key.


async def test_the_last_key_under_our_name_counts(pair: Pair) -> None:
    fake, provider = pair
    machine = await provider.launch(ORDER)
    log = [
        f"HOSTKEY aibrix-prov-other-0 {OTHER_KEY}",
        f"HOSTKEY {NAME} {OTHER_KEY}",  # the container's first start
        "noise",
        f"HOSTKEY {NAME} {HOST_KEY}",
        f"HOSTKEY {NAME}0 {OTHER_KEY}",
        f"HOSTKEY {NAME} ssh-rsa AAAA",
        f"HOSTKEY {NAME} {OTHER_KEY}trailing",
    ]
    await fake.run(machine.id, log=log)
    probe = await provider.probe(machine)
    assert isinstance(probe, Ready)
    assert probe.machine.host_key == HOST_KEY


async def test_a_key_above_many_lines_is_found(pair: Pair) -> None:
    fake, provider = pair
    machine = await provider.launch(ORDER)
    await fake.run(machine.id, log=[f"HOSTKEY {NAME} {HOST_KEY}", *("x" * 200 for _ in range(4000))])
    probe = await provider.probe(machine)
    assert isinstance(probe, Ready)
    assert probe.machine.host_key == HOST_KEY


async def test_a_pod_that_moved_is_identified_again(pair: Pair) -> None:
    fake, provider = pair
    machine = await provider.launch(ORDER)
    await fake.run(machine.id)
    first = await provider.probe(machine)
    assert isinstance(first, Ready)
    machine = first.machine
    port = await fake.run(machine.id, log=[f"HOSTKEY {NAME} {OTHER_KEY}"])
    probe = await provider.probe(machine)
    assert isinstance(probe, Ready)
    assert (probe.machine.ssh_port, probe.machine.host_key) == (port, OTHER_KEY)


async def test_a_pod_that_moved_and_shows_no_key_is_expected_to_have_the_one_it_had(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(runpod, "HOST_KEY_S", 0.0)
    fake, provider = pair
    machine = await provider.launch(ORDER)
    await fake.run(machine.id)
    first = await provider.probe(machine)
    assert isinstance(first, Ready)
    port = await fake.run(machine.id, log=[])
    fake.fault("GET", f"/pods/{machine.id}/logs", status=403, detail="access denied")
    probe = await provider.probe(first.machine)
    assert isinstance(probe, Ready)
    assert (probe.machine.ssh_port, probe.machine.host_key) == (port, HOST_KEY)
    assert "has to be trusted" not in capsys.readouterr().out


async def test_without_a_key_in_the_log_it_is_ready_after_a_while_and_that_is_logged(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("services.planner.resource_manager.runpod_ready.LOG_S", 0.2)
    fake, provider = pair
    machine = await provider.launch(ORDER)
    await fake.run(machine.id, log=["no key here"])
    probe = await provider.probe(machine)
    assert isinstance(probe, Pending)
    assert "host key" in probe.detail
    monkeypatch.setattr(runpod, "HOST_KEY_S", 0.0)
    probe = await provider.probe(machine)
    assert isinstance(probe, Ready)
    assert probe.machine.host_key == ""
    assert "no host key in the pod's log" in capsys.readouterr().out
    # It is not asked for again as long as the pod does not move.
    before = len(fake.requests)
    assert await provider.probe(probe.machine) == probe
    assert len(fake.requests) == before + 1


async def test_a_log_that_may_not_be_read_does_not_hold_the_machine_back(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(runpod, "HOST_KEY_S", 0.0)
    fake, provider = pair
    machine = await provider.launch(ORDER)
    await fake.run(machine.id)
    fake.fault("GET", f"/pods/{machine.id}/logs", status=403, detail="access denied")
    probe = await provider.probe(machine)
    assert isinstance(probe, Ready)
    assert probe.machine.host_key == ""
    assert "a pod's log cannot be read" in capsys.readouterr().out


# Settings.


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"runpod_api_key": ""}, "RUNPOD_API_KEY is not set"),
        ({"runpod_api_key": "  "}, "RUNPOD_API_KEY is not set"),
        ({"runpod_api_key": "two words"}, "RUNPOD_API_KEY"),
        ({"runpod_api_key": "rpa_ü"}, "RUNPOD_API_KEY"),
        ({"runpod_ssh_public_key": ""}, "RUNPOD_SSH_PUBLIC_KEY is not set"),
        ({"runpod_ssh_public_key": "-----BEGIN OPENSSH PRIVATE KEY-----"}, "RUNPOD_SSH_PUBLIC_KEY"),
        ({"runpod_ssh_public_key": f"{PUBLIC_KEY}\n{PUBLIC_KEY}"}, "RUNPOD_SSH_PUBLIC_KEY"),
        ({"runpod_base_url": "http://api.example/v2"}, "RUNPOD_BASE_URL"),
        ({"runpod_base_url": "nonsense"}, "RUNPOD_BASE_URL"),
    ],
)
def test_a_credential_that_is_missing_or_wrong_is_named(settings: dict[str, str], named: str) -> None:
    given = {"runpod_api_key": KEY, "runpod_ssh_public_key": PUBLIC_KEY} | settings
    with pytest.raises(ValueError, match=named) as failure:
        RunPod(Settings(**given))
    assert all(value not in str(failure.value) for value in settings.values() if value.strip())


def test_a_line_feed_behind_a_pasted_key_does_no_harm() -> None:
    RunPod(Settings(runpod_api_key=KEY + "\n", runpod_ssh_public_key=PUBLIC_KEY + "\n"))


# The script that the container runs.


@pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="there is no ssh-keygen")
def test_the_script_starts_sshd_with_our_key_only_and_says_its_host_key(tmp_path: Path) -> None:
    programs, keys = tmp_path / "bin", tmp_path / "keys"
    programs.mkdir()
    for name, text in {
        "sshd": 'echo "started $*"',
        "usermod": "true",
        "nvidia-smi": "true",
        "python3": "echo 0",
    }.items():
        (programs / name).write_text(f"#!/bin/sh\n{text}\n")
        (programs / name).chmod(0o755)
    script = boot_script(str(keys), str(tmp_path / "run"))
    environment = {
        "PATH": f"{programs}:{os.environ['PATH']}",
        "PUBLIC_KEY": PUBLIC_KEY,
        "MACHINE_NAME": NAME,
        "LD_LIBRARY_PATH": "/usr/local/cuda/lib64",
    }
    said = [
        subprocess.run(["/bin/sh", "-c", script], env=environment, capture_output=True, text=True) for _ in range(2)
    ]
    public = " ".join((keys / "host_key.pub").read_text().split()[:2])
    assert said[0].stdout.splitlines() == [
        f"CUDA {NAME} 0",
        f"HOSTKEY {NAME} {public}",
        f"started -D -e -f {keys}/sshd_config",
    ], said[0].stderr
    assert said[1].stdout == said[0].stdout, "a container that is started again keeps its key"
    assert (keys / "authorized_keys").read_text() == PUBLIC_KEY + "\n"
    assert all(path.stat().st_mode & 0o077 == 0 for path in (keys, keys / "host_key"))
    config = (keys / "sshd_config").read_text().splitlines()
    assert f"AuthorizedKeysFile {keys}/authorized_keys" in config
    assert "AuthenticationMethods publickey" in config
    assert f'SetEnv "PATH={environment["PATH"]}" "LD_LIBRARY_PATH=/usr/local/cuda/lib64"' in config
    assert "PRIVATE KEY" not in said[0].stdout + said[0].stderr


def test_the_script_says_why_it_cannot_start(tmp_path: Path) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    mkdir = shutil.which("mkdir")
    assert mkdir is not None
    (programs / "mkdir").symlink_to(mkdir)
    script = boot_script(str(tmp_path / "keys"), str(tmp_path / "run")).replace(":/usr/sbin:/sbin", "")
    environment = {"PATH": str(programs), "PUBLIC_KEY": PUBLIC_KEY, "MACHINE_NAME": NAME}
    said = subprocess.run(["/bin/sh", "-c", script], env=environment, capture_output=True, text=True)
    assert said.returncode == 1
    assert "neither sshd nor apt-get" in said.stderr
