"""Which pages of other origins may call /api/v1 from a browser."""

from __future__ import annotations

import re
from dataclasses import dataclass

from aiohttp import web
from aiohttp.typedefs import Handler

PREFIX = "/api/v1/"
ANY = "*"
ORIGIN = re.compile(r"https?://([a-z0-9.-]+|\[[0-9a-f:]+\])(:[0-9]{1,5})?")
METHODS = "GET, POST, PUT, PATCH, DELETE"
REQUEST_HEADERS = "Authorization, Content-Type, Idempotency-Key, If-None-Match, Last-Event-ID, Range"
EXPOSED = "Accept-Ranges, Content-Disposition, Content-Range, ETag, Retry-After, x-request-id, x-should-retry"
MAX_AGE_S = 600


@dataclass(frozen=True)
class Origins:
    named: frozenset[str] = frozenset()
    any: bool = False

    @classmethod
    def parse(cls, text: str) -> Origins:
        """Error: ValueError, for what is no origin."""
        names = {part.strip().lower() for part in text.split(",")} - {""}
        for name in names - {ANY}:
            if not ORIGIN.fullmatch(name):
                raise ValueError(
                    f"ALLOWED_ORIGINS: '{name[:100]}' is no origin: write https://host or https://host:port"
                )
        return cls(frozenset(names - {ANY}), ANY in names)

    def headers(self, origin: str | None) -> dict[str, str]:
        """What the answer to a request from there says. Credentials are only for origins that are named."""
        if origin is not None and origin.lower() in self.named:
            allowed = {"Access-Control-Allow-Origin": origin, "Access-Control-Allow-Credentials": "true"}
        elif origin is not None and self.any:
            allowed = {"Access-Control-Allow-Origin": ANY}
        else:
            return {}
        return allowed | {"Access-Control-Expose-Headers": EXPOSED}


ORIGINS: web.AppKey[Origins] = web.AppKey("origins", Origins)


async def add_headers(request: web.Request, response: web.StreamResponse) -> None:
    """A signal, so that errors and streams have them too."""
    origins = request.app[ORIGINS]
    if request.path.startswith(PREFIX) and (origins.named or origins.any):
        # Also where no origin is named: a cache must not give one page's answer to another.
        response.headers.add("Vary", "Origin")
        response.headers.update(origins.headers(request.headers.get("Origin")))


@web.middleware
async def preflight(request: web.Request, handler: Handler) -> web.StreamResponse:
    """A browser asks without a key whether it may ask; from elsewhere it is a request like any other."""
    asks = request.method == "OPTIONS" and "Access-Control-Request-Method" in request.headers
    if not asks or not request.path.startswith(PREFIX):
        return await handler(request)
    if not request.app[ORIGINS].headers(request.headers.get("Origin")):
        return await handler(request)
    return web.Response(
        status=204,
        headers={
            "Access-Control-Allow-Methods": METHODS,
            "Access-Control-Allow-Headers": REQUEST_HEADERS,
            "Access-Control-Max-Age": str(MAX_AGE_S),
            "Vary": "Access-Control-Request-Method, Access-Control-Request-Headers",
        },
    )
