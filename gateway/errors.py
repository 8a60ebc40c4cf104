"""The one place where errors become OpenAI error bodies."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import structlog
from aiohttp import web
from aiohttp.typedefs import Handler

from services.kit import errors

INVALID = "invalid_request_error"
SERVER = "server_error"
RETRY_AFTER_S = 5  # never above 60: older SDKs ignore more
NO_RETRY = {"x-should-retry": "false"}

# What each service error is to a client: status, OpenAI's type, headers. One that names `retry_after_s` passes by itself.
STATUSES: dict[type[errors.ServiceError], tuple[int, str, dict[str, str]]] = {
    errors.InvalidArgument: (400, INVALID, {}),
    errors.NotFound: (404, INVALID, {}),
    errors.AlreadyExists: (409, INVALID, NO_RETRY),
    errors.IllegalTransition: (409, INVALID, NO_RETRY),
    errors.StaleLease: (409, INVALID, NO_RETRY),
    errors.GoalChanged: (409, INVALID, NO_RETRY),
    errors.LinesOverlap: (409, INVALID, NO_RETRY),
    errors.Conflict: (409, INVALID, NO_RETRY),
    errors.QuotaExceeded: (429, INVALID, NO_RETRY),
    errors.ProtocolMismatch: (500, SERVER, {}),
    errors.ResourceExhausted: (507, SERVER, NO_RETRY),
    errors.Unavailable: (503, SERVER, {"Retry-After": str(RETRY_AFTER_S)}),
}
INTERNAL_TEXT = "The server had an error while processing your request. Sorry about that!"

log = structlog.get_logger(__name__)


class Refused(Exception):
    """An answer that only HTTP knows: 401, 403, 404 for a path, 405, 408, 413, 415, 416."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
        close: bool = False,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.headers = headers or {}
        self.close = close


def too_large(message: str) -> Refused:
    return Refused(413, message, code="file_too_large", headers=NO_RETRY, close=True)


def respond(
    status: int,
    message: str,
    kind: str,
    *,
    param: str | None = None,
    code: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> web.Response:
    body = {"error": {"message": message, "type": kind, "param": param, "code": code}}
    return web.Response(
        status=status, body=msgspec.json.encode(body), content_type="application/json", headers=headers or {}
    )


def from_service(error: errors.ServiceError) -> web.Response:
    status, kind, headers = STATUSES.get(type(error), (500, SERVER, {}))
    message = INTERNAL_TEXT if status == 500 else error.message
    context: dict[str, Any] = error.context
    if pause := context.get("retry_after_s"):
        headers = {"Retry-After": pause, "x-should-retry": "true"}
    return respond(status, message, kind, param=context.get("param"), code=context.get("code"), headers=headers)


def from_refused(error: Refused) -> web.Response:
    response = respond(error.status, error.message, INVALID, param=error.param, code=error.code, headers=error.headers)
    if error.close:
        response.force_close()
    return response


def from_http(request: web.Request, error: web.HTTPException) -> web.Response:
    """What aiohttp's router says about a path or a method."""
    where = f"{request.method} {request.path[:200]}"
    if error.status == 404:
        return respond(404, f"Invalid URL ({where})", INVALID)
    if error.status == 405:
        text = f"Not allowed: {where}. (HINT: Perhaps you meant to use a different HTTP method?)"
        return respond(405, text, INVALID, code="method_not_supported", headers={"Allow": error.headers["Allow"]})
    return respond(error.status, error.reason, INVALID)


@web.middleware
async def openai_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except Refused as refused:
        return from_refused(refused)
    except errors.ServiceError as error:
        if type(error) not in STATUSES:
            log.error("a service failed", error=error.message)
        return from_service(error)
    except web.HTTPException as error:
        return from_http(request, error)
    except (ConnectionError, web.RequestPayloadError):
        # The client is gone, or what it sent was no HTTP body: whoever reads this, it is not a fault of ours.
        response = respond(400, "The body of your request could not be read.", INVALID)
        response.force_close()
        return response
    except Exception:
        log.exception("unhandled error", route=request.match_info.handler.__qualname__)
        return respond(500, INTERNAL_TEXT, SERVER)
