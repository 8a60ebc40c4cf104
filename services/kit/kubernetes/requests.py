"""One request of the Kubernetes API through the official client, and what its answer means."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import aiohttp
import orjson

from services.kit.kubernetes.errors import LONGEST_MESSAGE, AlreadyThere, ApiError, Expired, Refused, Unavailable

Object = dict[str, Any]
"""An object in the API's own JSON: camelCase, with apiVersion, kind and metadata."""

MERGE_PATCH = "application/merge-patch+json"
CONFLICT = "Conflict"
ALREADY_EXISTS = "AlreadyExists"


@dataclass(frozen=True)
class Request:
    """What is asked. `path` has placeholders, which `params` fills in."""

    method: str
    path: str
    params: dict[str, str]
    query: Mapping[str, str | int] = field(default_factory=dict)
    body: Object | None = None
    content_type: str = "application/json"
    is_text: bool = False
    """The answer is no JSON: logs."""
    is_repeatable: bool = True
    """Whether it may be asked again when nobody knows what came of it."""
    is_guarded: bool = False
    """Whether a conflict is an answer to the caller, who said which state of the object is meant."""


@dataclass(frozen=True)
class Answer:
    """What was answered."""

    status: int
    body: bytes
    retry_after: float | None = None
    """Seconds that the server asked to wait."""

    @property
    def is_good(self) -> bool:
        return 200 <= self.status < 300

    @cached_property
    def object(self) -> Object:
        """Error: Unavailable, if it is none: something in between answered."""
        try:
            found = orjson.loads(self.body)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise Unavailable("the Kubernetes API answers something that is no object", status=self.status)
        return found


async def send(client: Any, request: Request, timeout: aiohttp.ClientTimeout) -> aiohttp.ClientResponse:
    """Send it with the client's address and credentials. Error: as of aiohttp."""
    headers = {"Accept": "*/*" if request.is_text else "application/json", "Content-Type": request.content_type}
    serialized = await client.param_serialize(
        request.method,
        request.path,
        path_params=dict(request.params),
        query_params=list(request.query.items()),
        header_params=headers,
        body=request.body,
        auth_settings=["BearerToken"],
    )
    answer = await client.call_api(*serialized, _request_timeout=timeout)
    response: aiohttp.ClientResponse = answer.response
    return response


async def ask(client: Any, request: Request, seconds: float) -> Answer:
    """Send it, and read the answer. Error: Unavailable, if there is none."""
    try:
        response = await send(client, request, aiohttp.ClientTimeout(total=seconds))
        try:
            return await read_answer(response)
        finally:
            response.release()
    except (aiohttp.ClientError, OSError) as error:  # TimeoutError is an OSError
        # Without the cause: the errors of aiohttp hold the request's headers.
        raise Unavailable(f"the Kubernetes API does not answer: {type(error).__name__}") from None


async def read_answer(response: aiohttp.ClientResponse) -> Answer:
    return Answer(response.status, await response.read(), _seconds(response.headers.get("Retry-After", "")))


def error_of(answer: Answer) -> ApiError:
    """The error of an answer that is not good."""
    status, body = answer.status, _status_of(answer.body)
    reason = str(body.get("reason") or "")
    message = _message(status, body)
    if status == 401:
        return Refused(f"{_number(status)}: its credentials are not accepted", status=status, reason=reason)
    if status == 409 and reason == ALREADY_EXISTS:
        return AlreadyThere(message, status=status, reason=reason)
    if status == 410:
        return Expired(message, status=status, reason=reason)
    if 400 <= status < 500 and status not in (408, 429):
        return Refused(message, status=status, reason=reason)
    return Unavailable(message, status=status, reason=reason, retry_after=answer.retry_after)


def error_of_event(status: Object) -> ApiError:
    """The error of an ERROR event of a watch, whose object is a Status."""
    code = status.get("code")
    details = status.get("details")
    seconds = details.get("retryAfterSeconds") if isinstance(details, dict) else None
    retry_after = float(seconds) if isinstance(seconds, int) and seconds > 0 else None
    return error_of(Answer(code if isinstance(code, int) else 500, orjson.dumps(status), retry_after))


def _status_of(body: bytes) -> Object:
    """The `Status` that an error comes with; {} if a proxy in between wrote something else."""
    try:
        found = orjson.loads(body)
    except ValueError:
        return {}
    return found if isinstance(found, dict) and found.get("kind") == "Status" else {}


def _message(status: int, body: Object) -> str:
    said = " ".join(str(body.get("message") or "").split())
    if not said.isprintable():
        said = "".join(letter for letter in said if letter.isprintable())
    if len(said) > LONGEST_MESSAGE:
        said = said[:LONGEST_MESSAGE] + "..."
    return f"{_number(status)}: {said}" if said else _number(status)


def _number(status: int) -> str:
    return f"the Kubernetes API answers {status}"


def _seconds(text: str) -> float | None:
    """Retry-After. As a date it is not used by Kubernetes, and left alone here."""
    return float(text) if text.isascii() and text.isdigit() and len(text) < 7 else None
