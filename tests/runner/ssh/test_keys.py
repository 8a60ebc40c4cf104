"""The key file of the setting, and host keys as they are written."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import asyncssh
import pytest

from services.kit.settings import Settings
from services.kit.ssh.keys import VARIABLE, HostKey, fingerprint, public_line, read_client_key
from services.runner.runtimes.base import RuntimeFailed
from services.runner.runtimes.registry import load_runtimes
from tests.runner.ssh.support import RUNTIMES, spec_for

KEY = asyncssh.generate_private_key("ssh-ed25519")
HOST = {"host": "127.0.0.1"}


def write(path: Path, data: bytes, mode: int = 0o600) -> Path:
    path.write_bytes(data)
    path.chmod(mode)
    return path


def test_a_good_key_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "key", KEY.export_private_key())
    assert public_line(read_client_key(str(path))) == public_line(KEY)


def missing(folder: Path) -> Path:
    return folder / "nothing"


def open_to_others(folder: Path) -> Path:
    return write(folder / "key", KEY.export_private_key(), 0o640)


def encrypted(folder: Path) -> Path:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "a passphrase", "-f", folder / "key"], check=True)
    return folder / "key"


def encrypted_pem(folder: Path) -> Path:
    rsa = asyncssh.generate_private_key("ssh-rsa", key_size=2048)
    return write(folder / "key", rsa.export_private_key("pkcs8-pem", passphrase="a passphrase"))


def public_half(folder: Path) -> Path:
    return write(folder / "key", KEY.export_public_key())


def rubbish(folder: Path) -> Path:
    return write(folder / "key", b"\x00\xff not a key")


def damaged(folder: Path) -> Path:
    rsa = asyncssh.generate_private_key("ssh-rsa", key_size=2048).export_private_key("pkcs1-der")
    return write(folder / "key", rsa[:700] + bytes(20) + rsa[720:])


def of_another_user(folder: Path) -> Path:
    path = write(folder / "key", KEY.export_private_key())
    if os.geteuid() != 0:
        pytest.skip("only root can read a file that nobody else but its owner may read")
    os.chown(path, 12345, -1)
    return path


def a_folder(folder: Path) -> Path:
    (folder / "key").mkdir(mode=0o700)
    return folder / "key"


def a_pipe(folder: Path) -> Path:
    os.mkfifo(folder / "key", 0o600)
    return folder / "key"


@pytest.mark.parametrize(
    ("made", "why"),
    [
        (missing, "No such file"),
        (open_to_others, "others may read"),
        (encrypted, "passphrase"),
        (encrypted_pem, "passphrase"),
        (public_half, "no private key"),
        (rubbish, "no private key"),
        (damaged, "no private key"),
        (of_another_user, "another user"),
        (a_folder, "not a regular file"),
        (a_pipe, "not a regular file"),
    ],
    ids=lambda made: getattr(made, "__name__", ""),
)
def test_a_bad_key_stops_the_start_with_the_name_of_the_variable(tmp_path: Path, made, why: str) -> None:
    path = made(tmp_path)
    with pytest.raises(ValueError, match=why) as refused:
        load_runtimes(Settings(data_dir=tmp_path, batch_ssh_key_file=str(path)))
    assert VARIABLE in str(refused.value)
    assert KEY.export_private_key().decode().splitlines()[1] not in str(refused.value)


@pytest.mark.parametrize("target", RUNTIMES)
async def test_without_a_key_only_batches_of_these_targets_fail(tmp_path: Path, target: str) -> None:
    runtime = load_runtimes(Settings(data_dir=tmp_path))[target]
    with pytest.raises(RuntimeFailed, match=VARIABLE) as failed:
        await runtime.launch(spec_for(target, HOST))
    assert not failed.value.retryable


def test_a_host_key_is_a_key_or_its_fingerprint() -> None:
    other = asyncssh.generate_private_key("ssh-ed25519")
    for text in (public_line(KEY), public_line(KEY) + " a comment", fingerprint(KEY)):
        expected = HostKey.parse(text)
        assert expected.matches(KEY)
        assert not expected.matches(other)
        assert expected.fingerprint() == fingerprint(KEY)


@pytest.mark.parametrize("text", ["", "SHA256:short", "ssh-ed25519 AAAA", "ssh-dss " + "A" * 60, "*", "MD5:00:11"])
def test_what_is_no_host_key_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="public key"):
        HostKey.parse(text)
