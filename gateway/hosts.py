"""A server without keys believes whoever reaches it, so a page in a browser must not reach it.

Such a server listens on loopback. A page can still call it: by the name of a host of its own that leads to 127.0.0.1 (DNS
rebinding), or blindly from another origin. Both show in the headers, which no script of a page can change.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from aiohttp import web
from aiohttp.typedefs import Handler

from gateway.auth import KEYS, is_loopback
from gateway.backend import BACKEND
from gateway.errors import NO_RETRY, Refused


@web.middleware
async def only_from_here(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Refuses calls to a keyless loopback server that name another host, or come from a page of another origin."""
    settings = request.app[BACKEND].settings
    if KEYS in request.app or settings.gateway.allow_anonymous:
        return await handler(request)
    origin = request.headers.get("Origin")
    allowed = {one.strip() for one in settings.allowed_origins.split(",")}
    if not _is_here(f"http://{request.headers.get('Host', '')}"):
        raise _refused("this server answers on loopback only, and this host is another one")
    if origin is not None and origin not in allowed and "*" not in allowed and not _is_here(origin):
        raise _refused("pages of other origins may not call this server; ALLOWED_ORIGINS names those that may")
    return await handler(request)


def _is_here(url: str) -> bool:
    try:
        host = urlsplit(url).hostname or ""
    except ValueError:
        return False
    return is_loopback(f"{host}:0")


def _refused(why: str) -> Refused:
    return Refused(403, f"Refused: {why}.", code="forbidden", headers=NO_RETRY)
