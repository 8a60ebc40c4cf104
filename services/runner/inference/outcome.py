"""What came of one attempt of one request. Pure: the words that client, retry, limit and results share."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

OVERLOADED = frozenset({429, 503, 504, 529})


class Kind(StrEnum):
    """How an attempt ended. The values are metric labels."""

    OK = "ok"
    HTTP_ERROR = "http_error"
    """An answer with a status of 400 and up."""
    REDIRECT = "redirect"
    TIMEOUT = "timeout"
    REFUSED = "refused"
    """No connection could be made: the request never left."""
    DISCONNECTED = "disconnected"
    """The connection ended before an answer came."""
    INVALID = "invalid"
    """An answer that is not what was asked for: HTML, nothing, half of it."""
    NO_ENDPOINT = "no_endpoint"
    """No endpoint was healthy for too long: the request was not sent."""


class Outcome:
    """One attempt. A plain class: one is made per request, and this is the cheapest kind."""

    __slots__ = ("answer", "body", "detail", "kind", "request_id", "retry_after_s", "status")

    def __init__(
        self,
        kind: Kind,
        *,
        status: int = 0,
        body: bytes = b"",
        answer: Any = None,
        request_id: str | None = None,
        retry_after_s: float | None = None,
        detail: str = "",
    ) -> None:
        self.kind = kind
        self.status = status
        self.body = body
        self.answer = answer
        """The parsed body; with OK a dict."""
        self.request_id = request_id
        self.retry_after_s = retry_after_s
        self.detail = detail
        """For the user, without addresses or secrets."""

    @property
    def overloaded(self) -> bool:
        """Evidence that the engine has too much to do. A 500, or a refused connection, says something else."""
        return self.kind in (Kind.TIMEOUT, Kind.DISCONNECTED) or self.status in OVERLOADED
