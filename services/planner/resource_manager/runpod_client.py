"""RunPod's REST API v2: the key, deadlines, the rate limit, what is tried again, and what its refusals mean.

GET and DELETE are tried again after a 5xx or a lost connection; POST only after a 429, when nothing was made.
"""

from __future__ import annotations

import asyncio
import random
import re
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any, Self

import aiohttp
import msgspec
from pydantic import SecretStr
from yarl import URL

from services.planner.resource_manager.base import ProviderError

GET_S = 20.0
POST_S = 60.0
CONNECT_S = 10.0
# When a call is not tried again any more. A pause that ends later is reported, not waited for.
CALL_S = 30.0
ATTEMPTS = 4
BACKOFF_S = 0.5
MOST_BYTES = 8 * 1024 * 1024
MOST_CONNECTIONS = 8
# What an answer may make us wait, at most: a wrong header must not stop the planner for a day.
MOST_PAUSE_S = 300.0
PAUSE_S = 5.0
MOST_DETAIL = 300
MOST_LINE = 64 * 1024

LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})


class _Problem(msgspec.Struct):
    """An answer of type application/problem+json."""

    title: str = ""
    detail: str = ""
    errors: list[str] = []


_decode_problem = msgspec.json.Decoder(_Problem).decode


@dataclass(frozen=True)
class Answer:
    status: int
    body: bytes


class Pace:
    """When the account may be asked again: what `Retry-After` and `RateLimit` said last."""

    def __init__(self) -> None:
        self._not_before = 0.0

    def wait_s(self) -> float:
        return max(0.0, self._not_before - time.monotonic())

    def note(self, status: int, headers: Mapping[str, str]) -> None:
        pause = _retry_after(headers) if status == 429 else _exhausted(headers.get("RateLimit", ""))
        self._not_before = max(self._not_before, time.monotonic() + min(pause, MOST_PAUSE_S))


class RunPodClient:
    """Error of every call: ProviderError. The key is in no message, log or repr."""

    def __init__(self, base_url: str, api_key: SecretStr) -> None:
        self._base = _checked(base_url)
        self._key = api_key
        self._pace = Pace()
        self._session: aiohttp.ClientSession | None = None

    @classmethod
    def from_settings(cls, base_url: str, api_key: SecretStr) -> Self:
        """Error: ValueError naming the variable that is missing or wrong."""
        key = api_key.get_secret_value().strip()
        if not key:
            raise ValueError("RUNPOD_API_KEY is not set")
        if not (key.isascii() and key.isprintable()) or " " in key:
            raise ValueError("RUNPOD_API_KEY has characters that no key has")
        return cls(base_url, SecretStr(key))

    async def call(
        self,
        method: str,
        *path: str,
        query: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
        missing_ok: bool = False,
    ) -> Answer:
        """The answer, with a 2xx status; with `missing_ok` also RunPod's own 404, not one of something in between."""
        until = time.monotonic() + CALL_S
        attempt = 0
        while True:
            attempt += 1
            await self._wait(until)
            try:
                answer = await self._once(method, path, query, body)
            except (aiohttp.ClientError, OSError) as error:
                failure = _lost(method, error)
                again = method != "POST"
            else:
                if answer.status < 300 or (missing_ok and answer.status == 404 and _is_problem(answer.body)):
                    return answer
                failure = self._refused(method, answer)
                again = answer.status == 429 or (answer.status >= 500 and method != "POST")
            if not again or attempt == ATTEMPTS or time.monotonic() >= until:
                raise failure
            await asyncio.sleep(BACKOFF_S * 2**attempt * random.uniform(0.25, 0.5))

    async def lines(self, pod_id: str, tail: int) -> AsyncIterator[str]:
        """The pod's log, oldest first, and then what is added to it: the caller ends it. Lines are what the container wrote."""
        query = {"source": "container", "tail": str(tail)}
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=GET_S)
        await self._wait(time.monotonic() + CALL_S)
        try:
            async with self._open().get(
                self._base / "pods" / pod_id / "logs",
                params=query,
                headers={**self._headers(), "Accept": "text/event-stream"},
                timeout=timeout,
                allow_redirects=False,
            ) as response:
                self._pace.note(response.status, response.headers)
                if response.status != 200:
                    raise self._refused("GET", Answer(response.status, await _read(response)))
                async for line in _events(response.content):
                    yield line
        except (aiohttp.ClientError, OSError) as error:
            raise _lost("GET", error) from error

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=MOST_CONNECTIONS),
                cookie_jar=aiohttp.DummyCookieJar(),
                trust_env=False,
            )
        return self._session

    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self._key.get_secret_value()}"}

    async def _wait(self, until: float) -> None:
        """Until the rate limit lets us on, or ProviderError at once if that is after `until`."""
        while (pause := self._pace.wait_s()) > 0:
            if time.monotonic() + pause > until:
                raise unavailable(f"RunPod wants no request for {pause:.0f} s (rate limit)")
            await asyncio.sleep(pause)

    async def _once(
        self, method: str, path: tuple[str, ...], query: Mapping[str, str] | None, body: Mapping[str, Any] | None
    ) -> Answer:
        url = self._base
        for segment in path:
            url = url / segment
        timeout = aiohttp.ClientTimeout(total=POST_S if method == "POST" else GET_S, sock_connect=CONNECT_S)
        async with self._open().request(
            method, url, params=query, json=body, headers=self._headers(), timeout=timeout, allow_redirects=False
        ) as response:
            self._pace.note(response.status, response.headers)
            return Answer(response.status, await _read(response))

    def _refused(self, method: str, answer: Answer) -> ProviderError:
        return refused(method, answer.status, _detail(answer.body, self._key.get_secret_value()))


def unavailable(message: str, *, ambiguous: bool = False) -> ProviderError:
    return ProviderError("ProviderUnavailable", message, retryable=True, ambiguous=ambiguous)


# status -> (code, whether another try, here or elsewhere, may work)
_REFUSALS: dict[int, tuple[str, bool]] = {
    401: ("InvalidCredential", False),
    402: ("QuotaExceeded", False),  # no balance: no candidate will do
    403: ("InvalidCredential", False),
    409: ("ProviderUnavailable", True),  # wrong state: look again
    429: ("ProviderUnavailable", True),
}
_NO_CAPACITY = re.compile(
    r"no longer any instances|no instances|not enough|capacity|out of stock|unavailable|no (?:resources|machines|gpus?)\b"
    r"|(?:could not|cannot|unable to) (?:be )?(?:place|find|allocat)",
    re.IGNORECASE,
)
_NO_GPU_TYPE = re.compile(
    r"gpu[\s./]*(?:id|type)\b.*(?:not found|unknown|invalid|not supported|does not exist)"
    r"|(?:unknown|invalid|unsupported) gpu[\s./]*(?:id|type)?\b",
    re.IGNORECASE,
)


def refused(method: str, status: int, detail: str) -> ProviderError:
    """What an answer means that is neither 2xx nor a 404 that was expected. `method` POST: a machine was asked for."""
    message = f"RunPod answered {status}: {detail}" if detail else f"RunPod answered {status}"
    if status >= 500 or status == 408:
        return unavailable(message, ambiguous=method == "POST")
    if method == "POST" and (code := _launch_refusal(status, detail)):
        return ProviderError(code, message, retryable=True)
    code, retryable = _REFUSALS.get(status, ("InvalidRequest", False))
    # A 400 has no code of its own: if it is about the request, every other candidate will be refused too.
    return ProviderError(code, message, retryable=retryable or (method == "POST" and status == 400))


def _launch_refusal(status: int, detail: str) -> str | None:
    """The candidate is wrong, not the request: the next one may do."""
    if status == 403:  # this account may not have that pool; a key that is no good for pods gets it for all of them
        return "NoGpuType"
    if status in (400, 404, 422) and _NO_GPU_TYPE.search(detail):
        return "NoGpuType"
    return "NoCapacity" if status == 400 and _NO_CAPACITY.search(detail) else None


def _lost(method: str, error: Exception) -> ProviderError:
    """The connection failed. Before it was made nothing can have happened; after it, a POST may have been carried out."""
    before = isinstance(error, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError)
    return unavailable(f"RunPod cannot be reached ({type(error).__name__})", ambiguous=method == "POST" and not before)


def _checked(base_url: str) -> URL:
    """Error: ValueError. The key goes over TLS, or to this machine."""
    url = URL(base_url.rstrip("/"))
    if not url.host or not (url.scheme == "https" or (url.scheme == "http" and url.host in LOOPBACK)):
        raise ValueError("RUNPOD_BASE_URL is not an https URL")
    return url


async def _read(response: aiohttp.ClientResponse) -> bytes:
    pieces: list[bytes] = []
    size = 0
    async for piece in response.content.iter_any():
        size += len(piece)
        if size > MOST_BYTES:
            raise aiohttp.ClientPayloadError("the answer is too long")
        pieces.append(piece)
    return b"".join(pieces)


def _is_problem(body: bytes) -> bool:
    try:
        problem = _decode_problem(body)
    except ValueError:
        return False
    return bool(problem.title or problem.detail)


def _detail(body: bytes, secret: str) -> str:
    """What a problem document says, on one line, short, without `secret`. Nothing of a body that is none: it may hold anything."""
    try:
        problem = _decode_problem(body)
    except ValueError:
        return ""
    text = "; ".join([problem.detail or problem.title, *problem.errors[:5]]).replace(secret, "***")
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:MOST_DETAIL]


def _retry_after(headers: Mapping[str, str]) -> float:
    value = headers.get("Retry-After", "")
    return float(value) if re.fullmatch(r"\d{1,9}", value) else PAUSE_S


def _exhausted(header: str) -> float:
    """Seconds until every window of `"minute";r=0;t=12, "hour";r=2800;t=1812` has a request left."""
    waits = [0.0]
    for window in header.split(","):
        left, reset = re.search(r";r=(\d{1,9})", window), re.search(r";t=(\d{1,9})", window)
        if left and reset and int(left[1]) == 0:
            waits.append(float(reset[1]))
    return max(waits)


class _Event(msgspec.Struct):
    line: str = ""


_decode_event = msgspec.json.Decoder(_Event).decode


async def _events(content: aiohttp.StreamReader) -> AsyncIterator[str]:
    """The lines in a stream of server-sent events; an event that is not as it should be is left out."""
    rest = b""
    async for piece in content.iter_any():
        *complete, rest = (rest + piece).split(b"\n")
        # A line without an end would fill the memory.
        rest = rest[-MOST_LINE:]
        for line in complete:
            if not line.startswith(b"data:"):
                continue
            try:
                yield _decode_event(line[5:]).line
            except ValueError:
                continue
