"""Secrets at rest: AES-256-GCM, bound to the place where they are stored, with a ring of keys."""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass
from hashlib import sha256

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

KEY = re.compile(r"[0-9a-fA-F]{64}")
NONCE_BYTES = 12
VERSION_LENGTH = 16


@dataclass(frozen=True)
class Place:
    """Where a ciphertext belongs: it opens nowhere else, so that rows cannot be exchanged."""

    table: str
    row_id: str
    column: str

    def bound(self, version: str) -> bytes:
        return "|".join((self.table, self.row_id, self.column, version)).encode()


@dataclass(frozen=True)
class Sealed:
    ciphertext: bytes
    """Nonce, then what AES-GCM made."""
    version: str
    """Which key it was."""


class CannotOpen(Exception):
    """No key of the ring fits, or the ciphertext is not the one that was made for this place."""


class KeyRing:
    """The first key encrypts, all decrypt: a key is changed by putting the new one in front."""

    def __init__(self, text: str) -> None:
        """`text`: keys of 64 hex characters, with commas between. Empty: no keys. Error: ValueError, without the text."""
        self._ciphers: dict[str, AESGCM] = {}
        for number, part in enumerate(text.split(",") if text.strip() else (), 1):
            if not KEY.fullmatch(part.strip()):
                raise ValueError(f"SECRETS_ENCRYPTION_KEY: key {number} is not 64 hex characters")
            key = bytes.fromhex(part.strip())
            self._ciphers[version_of(key)] = AESGCM(key)

    def __bool__(self) -> bool:
        return bool(self._ciphers)

    def seal(self, value: str, place: Place) -> Sealed:
        """The ring must have a key."""
        version, cipher = next(iter(self._ciphers.items()))
        nonce = secrets.token_bytes(NONCE_BYTES)
        return Sealed(nonce + cipher.encrypt(nonce, value.encode(), place.bound(version)), version)

    def open(self, sealed: Sealed, place: Place) -> str:
        """Error: CannotOpen."""
        cipher = self._ciphers.get(sealed.version)
        if cipher is None:
            raise CannotOpen("the key that it was encrypted with is not in SECRETS_ENCRYPTION_KEY")
        nonce, rest = sealed.ciphertext[:NONCE_BYTES], sealed.ciphertext[NONCE_BYTES:]
        try:
            return cipher.decrypt(nonce, rest, place.bound(sealed.version)).decode()
        except (InvalidTag, ValueError) as error:
            raise CannotOpen("it was not made for this place, or was changed") from error


def version_of(key: bytes) -> str:
    """A name for a key that says nothing about it."""
    return sha256(b"aibrix-batch key version" + key).hexdigest()[:VERSION_LENGTH]
