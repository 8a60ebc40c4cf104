"""API keys: who calls, and for which project.

The file has a line a key: `<sha256 of the key in hex> <project> <name>`; lines that start with `#` are comments. It is
read again when it changes, so a key is revoked by taking its line out. A fast hash is right: keys are random.

A server with such a file also takes the keys that were made in the console: the file's are the operator's, and the first
of the others is made with one of them. A server without a file asks nobody for a key. What a key may do: gateway/roles.py.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import re
import secrets
import string
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import structlog
from aiohttp import web
from aiohttp.typedefs import Handler

from gateway.errors import Refused
from gateway.roles import ROLE, Role
from services.kit.errors import ServiceError
from services.kit.settings import Settings

DEFAULT_PROJECT = "default"
NOBODY = "anonymous"
PREFIX = "ab_"
ALPHABET = string.ascii_letters + string.digits
KEY_LENGTH = 32  # of 62 characters each: 190 random bits
LINE = re.compile(r"([0-9a-f]{64})\s+([A-Za-z0-9][A-Za-z0-9_.-]{0,63})\s+(\S.{0,127})")
PUBLIC = {"/healthz", "/readyz"}
RELOAD_S = 1.0
PROJECT: web.RequestKey[str] = web.RequestKey("project", str)
KEY_NAME: web.RequestKey[str] = web.RequestKey("key_name", str)

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class ApiKey:
    digest: str
    project_id: str
    name: str
    role: Role = Role.OPERATOR


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


def digest_of(key: str) -> str:
    return sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


class KeyFile:
    """The keys of a file, as it was when it was last whole."""

    def __init__(self, path: Path) -> None:
        """Errors: OSError, ValueError."""
        self._path = path
        self._seen = self._stamp()
        self._keys = parse_keys(path.read_text())

    def find(self, key: str) -> ApiKey | None:
        digest = digest_of(key)
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
# Finds a key that the file does not know. Error: Unavailable.
MORE_KEYS: web.AppKey[Callable[[str], Awaitable[ApiKey | None]]] = web.AppKey("more_keys", Callable)  # type: ignore[arg-type]


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
    if KEYS not in request.app or request.path.rstrip("/") in PUBLIC:
        request[PROJECT], request[KEY_NAME], request[ROLE] = DEFAULT_PROJECT, NOBODY, Role.OPERATOR
        return await handler(request)
    presented = _presented(request)
    if presented is None:
        raise _unauthorized(
            "You didn't provide an API key. You need to provide your API key in an Authorization header using Bearer "
            "auth (i.e. Authorization: Bearer YOUR_KEY)."
        )
    key = await _find(request, presented)
    if key is None:
        raise _unauthorized("Incorrect API key provided.")
    request[PROJECT], request[KEY_NAME], request[ROLE] = key.project_id, key.name, key.role
    return await handler(request)


async def still_valid(request: web.Request) -> bool:
    """Whether the request would be let in now, for an answer that takes hours. Yes if that cannot be found out."""
    presented = _presented(request)
    if KEYS not in request.app or presented is None:
        return True
    try:
        return await _find(request, presented) is not None
    except ServiceError:
        return True


def _presented(request: web.Request) -> str | None:
    scheme, _, presented = request.headers.get("Authorization", "").partition(" ")
    return presented.strip() or None if scheme.lower() == "bearer" else None


async def _find(request: web.Request, presented: str) -> ApiKey | None:
    """The file's keys need nobody else to answer. Error: Unavailable."""
    return request.app[KEYS].find(presented) or await request.app[MORE_KEYS](presented)


def _unauthorized(message: str) -> Refused:
    return Refused(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
