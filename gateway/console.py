"""/api/v1: the console's REST API will be served here.

Until then its paths answer 501, not 404: the place is taken, and a client learns that this server has nothing there yet.
"""

from __future__ import annotations

from aiohttp import web

from gateway.errors import NO_RETRY, Refused


async def unavailable(request: web.Request) -> web.Response:
    raise Refused(501, "The console API is not part of this version.", code="not_implemented", headers=NO_RETRY)
