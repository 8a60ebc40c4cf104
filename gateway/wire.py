"""What aiohttp answers before there is a request: bytes that are no HTTP.

Its own answer repeats them, and its log too, with whatever key stands in a header; ours do not.
"""

from __future__ import annotations

import structlog
from aiohttp import web

from gateway.errors import INTERNAL_TEXT, INVALID, SERVER, respond
from services.kit.ids import new_id

log = structlog.get_logger(__name__)


class Connection(web.RequestHandler):
    __slots__ = ()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        log.info("a request failed before it was one", status=status, error=type(exc).__name__)
        if request.writer.output_size > 0:
            raise ConnectionError("an answer is on its way already")
        if status >= 500:
            response = respond(status, INTERNAL_TEXT, SERVER)
        else:
            response = respond(status, "Your request is not valid HTTP.", INVALID, code="invalid_http")
        response.headers["x-request-id"] = new_id("req_")
        response.force_close()
        return response


class Listener(web.Server):
    def __call__(self) -> web.RequestHandler:
        return Connection(self, loop=self._loop, **self._kwargs)


class Runner(web.AppRunner):
    async def _make_server(self) -> web.Server:
        made = await super()._make_server()
        return Listener(
            made.request_handler,
            request_factory=made.request_factory,
            handler_cancellation=made.handler_cancellation,
            loop=made._loop,
            **made._kwargs,
        )
