"""What the gateway measures, and the middleware that does it: one line in the log and one count for every request."""

from __future__ import annotations

import structlog
from aiohttp import web
from aiohttp.typedefs import Handler
from prometheus_client import Counter, Histogram

from services.kit import clock
from services.kit.ids import new_id

REQUESTS = Counter("aibrix_gateway_requests", "Requests answered.", ["method", "route", "status"])
SECONDS = Histogram(
    "aibrix_gateway_request_seconds",
    "From the head of a request to the end of its answer.",
    ["route"],
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300),
)
RECEIVED = Counter("aibrix_gateway_received_bytes", "Bytes of request bodies.", ["route"])
SENT = Counter("aibrix_gateway_sent_bytes", "Bytes of answers' bodies.", ["route"])

API_VERSION = "2020-10-01"  # OpenAI's own `openai-version`
SERVER_NAME = "aibrix-batch"  # without versions of what is inside
METHODS = {"GET", "HEAD", "POST", "DELETE", "PUT", "PATCH", "OPTIONS"}
REQUEST_ID: web.RequestKey[str] = web.RequestKey("request_id", str)
START: web.RequestKey[float] = web.RequestKey("start", float)

log = structlog.get_logger(__name__)


@web.middleware
async def observe(request: web.Request, handler: Handler) -> web.StreamResponse:
    request[REQUEST_ID] = new_id("req_")
    request[START] = clock.monotonic()
    route = route_of(request)
    status = 499  # the client is gone
    with structlog.contextvars.bound_contextvars(request_id=request[REQUEST_ID]):
        try:
            response = await handler(request)
            status = response.status
            SENT.labels(route).inc(_size(response))
            return response
        finally:
            seconds = clock.monotonic() - request[START]
            method = request.method if request.method in METHODS else "other"
            REQUESTS.labels(method, route, str(status)).inc()
            SECONDS.labels(route).observe(seconds)
            RECEIVED.labels(route).inc(request.content.total_bytes)
            log.debug("request", method=method, route=route, status=status, ms=round(seconds * 1000, 1))


async def add_headers(request: web.Request, response: web.StreamResponse) -> None:
    """A signal, so that every answer has them: errors and streams too."""
    response.headers["Server"] = SERVER_NAME
    if REQUEST_ID in request:
        response.headers["x-request-id"] = request[REQUEST_ID]
        response.headers["openai-processing-ms"] = str(int((clock.monotonic() - request[START]) * 1000))
        response.headers["openai-version"] = API_VERSION


def route_of(request: web.Request) -> str:
    """The template of the path, never the path: ids would make a series each."""
    resource = request.match_info.route.resource
    return resource.canonical.removesuffix("{slash}") if resource is not None else "unknown"


def _size(response: web.StreamResponse) -> int:
    if isinstance(response, web.Response):
        return len(response.body) if isinstance(response.body, bytes | bytearray) else 0
    return response.body_length
