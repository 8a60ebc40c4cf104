"""Whether requests may be sent to an engine: it answers its health check, and it is the one that we started."""

from __future__ import annotations

from collections.abc import Mapping

import aiohttp

from services.runner.runtimes.addresses import connector
from services.runner.runtimes.base import Endpoint

HEALTH_S = 5.0
HEALTH_PATH = "/health"
MODELS = "/v1/models"
REFUSED = (401, 403)
LISTS = "the engine's list of models answers"
FOREIGN = "another server answers on the engine's port"


async def waiting(endpoint: Endpoint, *, proven: bool) -> str | None:
    """Why requests cannot be sent yet; None: they can."""
    timeout = aiohttp.ClientTimeout(total=HEALTH_S)
    try:
        async with aiohttp.ClientSession(
            connector=connector(endpoint.policy), timeout=timeout, cookie_jar=aiohttp.DummyCookieJar(), trust_env=False
        ) as session:
            # Our engine lets in who knows the key of this launch, and nobody else.
            if not proven and (status := await _status(session, endpoint, MODELS, {})) not in REFUSED:
                return FOREIGN if _fine(status) else f"{LISTS} {status}"
            status = await _status(session, endpoint, endpoint.health_path or HEALTH_PATH, endpoint.headers)
            if not _fine(status):
                return f"the engine's health check answers {status}"
            if not proven and not _fine(status := await _status(session, endpoint, MODELS, endpoint.headers)):
                return FOREIGN if status in REFUSED else f"{LISTS} {status}"
    except (aiohttp.ClientError, OSError):  # a TimeoutError is an OSError
        return "the engine's health check does not answer"
    return None


async def _status(session: aiohttp.ClientSession, endpoint: Endpoint, path: str, headers: Mapping[str, str]) -> int:
    async with session.get(endpoint.base_url + path, headers=headers, allow_redirects=False) as response:
        return response.status


def _fine(status: int) -> bool:
    return 200 <= status < 300
