"""Keys: the private one that logs in, read from a file that only we can read, and the public ones that machines show."""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import asyncssh

VARIABLE = "AIBRIX_BATCH_SSH_KEY_FILE"
LARGEST_KEY_FILE = 64 * 1024
# What others may not do: anything with a file of ours, anything but read one that root lends to a group of ours.
PRIVATE, SHARED = 0o077, 0o037
# Plain keys only. A host certificate says nothing here: there is no authority that we trust.
HOST_KEY_ALGORITHMS = (
    "ssh-ed25519",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "rsa-sha2-512",
    "rsa-sha2-256",
)
FINGERPRINT = re.compile(r"SHA256:[A-Za-z0-9+/]{43}", re.ASCII)
PUBLIC_KEY = re.compile(
    r"(?:ssh-ed25519|ssh-rsa|ecdsa-sha2-nistp(?:256|384|521)) [A-Za-z0-9+/]{40,4096}={0,3}(?: [ -~]{0,256})?", re.ASCII
)


def read_client_key(path: str) -> asyncssh.SSHKey:
    """The private key of the setting. Blocks. Error: ValueError that names the variable, and shows nothing of the file."""
    try:
        text = _read_private(Path(path))
    except OSError as error:
        raise ValueError(f"{VARIABLE}: {path} cannot be read: {error.strerror}") from error
    try:
        return asyncssh.import_private_key(text)
    except ValueError as error:  # asyncssh's own errors are such; a damaged key gives others of the parsers below it
        if "passphrase" in str(error).lower() or "encrypt" in str(error).lower():
            raise ValueError(
                f"{VARIABLE}: the key in {path} has a passphrase, which nobody is there to enter; give one without"
            ) from error
        raise ValueError(f"{VARIABLE}: {path} holds no private key that can be read") from error


def _read_private(path: Path) -> bytes:
    """Checked and read by one descriptor, so that the file cannot be another in between."""
    # O_NONBLOCK: a named pipe would hold up the start for ever.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError(f"{VARIABLE}: {path} is not a regular file")
        if status.st_uid not in (os.geteuid(), 0):
            raise ValueError(f"{VARIABLE}: {path} belongs to another user, who may read it")
        if status.st_mode & (SHARED if _is_lent(status) else PRIVATE):
            mode = stat.S_IMODE(status.st_mode)
            raise ValueError(f"{VARIABLE}: others may read {path} (mode {mode:04o}); do `chmod 600` on it")
        return os.read(descriptor, LARGEST_KEY_FILE)
    finally:
        os.close(descriptor)


def _is_lent(status: os.stat_result) -> bool:
    """Whether root gave it to our group, as Kubernetes does with Secrets: it is nobody's own in a pod that is not root."""
    return status.st_uid == 0 != os.geteuid() and status.st_gid in {os.getegid(), *os.getgroups()}


def public_line(key: asyncssh.SSHKey) -> str:
    """`ssh-ed25519 AAAA...`, without a comment."""
    words = key.export_public_key("openssh").decode().split(" ")
    return f"{words[0]} {words[1].strip()}"


def fingerprint(key: asyncssh.SSHKey) -> str:
    return key.get_fingerprint("sha256")


@dataclass(frozen=True)
class HostKey:
    """The key that a machine must show: the key itself, or its fingerprint."""

    text: str
    """`ssh-ed25519 AAAA...` or `SHA256:...`."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Error: ValueError, for what is neither a public key nor a SHA-256 fingerprint."""
        if FINGERPRINT.fullmatch(text):
            return cls(text)
        if PUBLIC_KEY.fullmatch(text):
            line = " ".join(text.split(" ")[:2])
            try:
                return cls(public_line(asyncssh.import_public_key(line)))
            except (asyncssh.KeyImportError, ValueError) as error:
                raise ValueError("it is no public key") from error
        raise ValueError("it must be a public key such as 'ssh-ed25519 AAAA...', or its fingerprint 'SHA256:...'")

    def matches(self, key: asyncssh.SSHKey) -> bool:
        if self.text.startswith("SHA256:"):
            return self.text == fingerprint(key)
        return self.text == public_line(key)

    def fingerprint(self) -> str:
        if self.text.startswith("SHA256:"):
            return self.text
        return fingerprint(asyncssh.import_public_key(self.text))

    def algorithms(self) -> tuple[str, ...]:
        """What to ask the server for: a server with several keys must show the one that is expected."""
        kind = self.text.partition(" ")[0]
        if kind.startswith("SHA256:"):
            return HOST_KEY_ALGORITHMS
        return ("rsa-sha2-512", "rsa-sha2-256") if kind == "ssh-rsa" else (kind,)
