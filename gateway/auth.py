"""API keys: who calls, and for which project.

The file has a line a key: `<sha256 of the key in hex> <project> <name>`; lines that start with `#` are comments. It is
read again when it changes, so a key is revoked by taking its line out. A fast hash is right: keys are random.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import re
import secrets
import string
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import structlog
from aiohttp import web
from aiohttp.typedefs import Handler

from gateway.errors import Refused
from services.kit.settings import Settings

DEFAULT_PROJECT = "default"
PREFIX = "ab_"
ALPHABET = string.ascii_letters + string.digits
KEY_LENGTH = 32  # of 62 characters each: 190 random bits
LINE = re.compile(r"([0-9a-f]{64})\s+([A-Za-z0-9][A-Za-z0-9_.-]{0,63})\s+(\S.{0,127})")
PUBLIC = {"/healthz", "/readyz"}
RELOAD_S = 1.0
PROJECT: web.RequestKey[str] = web.RequestKey("project", str)

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class ApiKey:
    digest: str
    project_id: str
    name: str


def new_key(project_id: str, name: str) -> tuple[str, str]:
    """A new key, to be shown once, and its line for the file. Error: ValueError for a project or name that won't do."""
    key = PREFIX + "".join(secrets.choice(ALPHABET) for _ in range(KEY_LENGTH))
    digest = sha256(key.encode()).hexdigest()
    line = f"{digest} {project_id} {name}"
    if parse_keys(line).get(digest) != ApiKey(digest, project_id, name):
        raise ValueError("a space in the project would make it part of the name")
    return key, line


def parse_keys(text: str) -> dict[str, ApiKey]:
    """Keys by digest. Error: ValueError, which names the line but not what it holds."""
    keys: dict[str, ApiKey] = {}
    for number, line in enumerate(text.splitlines(), 1):
        stripped = line.strip()
        if not stripped or stripped.startswith("#"):
            continue
        match = LINE.fullmatch(stripped)
        if match is None or match[1] in keys:
            raise ValueError(f"API keys, line {number}: expected '<sha256 hex> <project> <name>', each key once")
        keys[match[1]] = ApiKey(match[1], match[2], match[3])
    return keys


class KeyFile:
    """The keys of a file, as it was when it was last whole."""

    def __init__(self, path: Path) -> None:
        """Errors: OSError, ValueError."""
        self._path = path
        self._seen = self._stamp()
        self._keys = parse_keys(path.read_text())

    def find(self, key: str) -> ApiKey | None:
        digest = sha256(key.encode("utf-8", "surrogateescape")).hexdigest()
        found = self._keys.get(digest)
        return found if found is not None and hmac.compare_digest(found.digest, digest) else None

    async def watch(self) -> None:
        """Read the file again whenever it changes. A broken one is logged, and the keys before it stay."""
        while True:
            await asyncio.sleep(RELOAD_S)
            await asyncio.to_thread(self._reload)

    def _reload(self) -> None:
        try:
            stamp = self._stamp()
            if stamp == self._seen:
                return
            self._seen = stamp
            self._keys = parse_keys(self._path.read_text())
        except (OSError, ValueError) as error:
            log.error("API keys not read again, those from before stay", error=str(error))
        else:
            log.info("API keys read", key_count=len(self._keys))

    def _stamp(self) -> tuple[int, int, int]:
        stat = self._path.stat()
        return stat.st_mtime_ns, stat.st_ino, stat.st_size


KEYS: web.AppKey[KeyFile] = web.AppKey("keys", KeyFile)


def open_keys(settings: Settings) -> KeyFile | None:
    """The keys that calls need, if any. Error: ValueError, for keys that can't be read or an address that needs some."""
    if settings.api_keys_file:
        try:
            return KeyFile(Path(settings.api_keys_file))
        except OSError as error:
            raise ValueError(f"AIBRIX_API_KEYS_FILE: {error}") from error
    if not (settings.gateway.allow_anonymous or is_loopback(settings.gateway.listen)):
        raise ValueError(
            f"the gateway would serve everybody on {settings.gateway.listen}: give it keys (AIBRIX_API_KEYS_FILE), "
            "or listen on 127.0.0.1, or set AIBRIX_GATEWAY__ALLOW_ANONYMOUS=1 if that is what you want"
        )
    return None


def is_loopback(listen: str) -> bool:
    host = listen.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@web.middleware
async def authenticate(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Every path needs a key when there are any, an unknown one too: what exists is nobody's business without one."""
    keys = request.app.get(KEYS)
    if keys is None or request.path.rstrip("/") in PUBLIC:
        request[PROJECT] = DEFAULT_PROJECT
        return await handler(request)
    scheme, _, presented = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not presented.strip():
        raise _unauthorized(
            "You didn't provide an API key. You need to provide your API key in an Authorization header using Bearer "
            "auth (i.e. Authorization: Bearer YOUR_KEY)."
        )
    key = keys.find(presented.strip())
    if key is None:
        raise _unauthorized("Incorrect API key provided.")
    request[PROJECT] = key.project_id
    return await handler(request)


def _unauthorized(message: str) -> Refused:
    return Refused(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
