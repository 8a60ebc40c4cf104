"""Lambda Cloud's API over HTTP: the account's pace, repeats where they are safe, deadlines. Every error is a ProviderError."""

from __future__ import annotations

import asyncio
import math
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import aiohttp
import structlog
from pydantic import SecretStr
from yarl import URL

from services.kit import clock
from services.planner.resource_manager.base import ProviderError
from services.planner.resource_manager.lambda_wire import (
    MISSING,
    Instance,
    Listing,
    decode_instance,
    decode_instances,
    decode_launched,
    decode_listing,
    decode_terminated,
    decode_types,
    is_id,
    read,
    reason,
    refused,
    unavailable,
)

# The account's limits, in seconds between two calls and two launches.
CALL_EVERY_S = 1.0
LAUNCH_EVERY_S = 12.0
# Requests travel for different times: two that leave a second apart must not arrive closer together.
MARGIN_S = 0.1
# A call whose turn is later than this fails at once, and says so.
LONGEST_WAIT_S = 120.0
LONGEST_HOLD_S = 300.0

CONNECT_S = 10.0
GET_S = 12.0
LAUNCH_S = 90.0
ATTEMPTS = 3
BACKOFF_S = 1.0
MOST_BYTES = 16 * 1024 * 1024
LOOPBACK = ("127.0.0.1", "::1", "localhost")

log = structlog.get_logger(__name__)


class Clock(Protocol):
    """Seconds that only grow, and waiting for them."""

    def now(self) -> float: ...

    async def sleep(self, seconds: float) -> None: ...


class SystemClock:
    def now(self) -> float:
        return clock.monotonic()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class Pace:
    """Whose turn it is. The limits hold for the account, so there is one of these in a process; other processes with the same
    key are noticed by the 429 that they cause."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._call_at = -math.inf
        self._launch_at = -math.inf
        self._launched_at = -math.inf

    async def turn(self, *, launch: bool) -> None:
        """Wait for a turn; one that is given up is lost. Error: ProviderError, if it is too far away."""
        now = self._clock.now()
        if launch:
            at = max(now, self._launch_at)
            self._check(at - now)
            self._launch_at = at + LAUNCH_EVERY_S + MARGIN_S
            await self._until(at)
            # The launch before may have left later than its turn was.
            while (earliest := self._launched_at + LAUNCH_EVERY_S + MARGIN_S) > self._clock.now():
                await self._until(earliest)
        now = self._clock.now()
        at = max(now, self._call_at)
        self._check(at - now)
        self._call_at = at + CALL_EVERY_S + MARGIN_S
        if launch:
            self._launched_at = at
        await self._until(at)

    def hold(self, seconds: float, *, launch: bool) -> None:
        """The provider wants to be left alone for so long."""
        until = self._clock.now() + min(seconds, LONGEST_HOLD_S)
        self._call_at = max(self._call_at, until)
        if launch:
            self._launch_at = max(self._launch_at, until)

    async def _until(self, at: float) -> None:
        while (pause := at - self._clock.now()) > 0:
            await self._clock.sleep(pause)

    @staticmethod
    def _check(pause: float) -> None:
        if pause > LONGEST_WAIT_S:
            raise unavailable(f"Lambda Cloud takes the next call of its kind in {pause:.0f} s (rate limit)")


@dataclass(frozen=True)
class _Answer:
    status: int
    body: bytes
    retry_after_s: float


class LambdaClient:
    """The key is in no message, log or repr."""

    def __init__(self, base_url: str, api_key: SecretStr, clock: Clock | None = None) -> None:
        """Error: ValueError naming the variable that is missing or wrong."""
        self._base = _checked_url(base_url)
        self._key = _checked_key(api_key)
        self._clock = clock or SystemClock()
        self._pace = Pace(self._clock)
        self._session: aiohttp.ClientSession | None = None

    async def instance_types(self) -> list[Listing]:
        """What is offered now. An entry that makes no sense is left out, and logged."""
        entries = read(decode_types, await self._call("GET", "instance-types")).data
        found: list[Listing] = []
        for name, raw in entries.items():
            try:
                listing = decode_listing(bytes(raw))
            except ValueError as error:
                log.warning("an instance type is left out", name=name[:64], error=str(error))
                continue
            if listing.instance_type.name == name:
                found.append(listing)
            else:
                log.warning("an instance type is left out", name=name[:64], error="it is listed under another name")
        return found

    async def instances(self) -> list[Instance]:
        return read(decode_instances, await self._call("GET", "instances")).data

    async def instance(self, id: str) -> Instance | None:
        """None: there is no such instance, or no more."""
        if not is_id(id):
            raise ProviderError("InvalidRequest", "that is no id of an instance", retryable=False)
        body = await self._call("GET", "instances", id, missing_ok=True)
        if not body:
            return None
        instance = read(decode_instance, body).data
        if instance.id != id:
            raise unavailable("Lambda Cloud answered about another instance")
        return instance

    async def launch(self, request: Mapping[str, Any], secrets: Sequence[str]) -> list[str]:
        """Ids of the instances that were made: at least one. Sent again only after a 429, which means that nothing was done.

        `secrets`: what `request` holds that no message may repeat.
        """
        body = await self._call("POST", "instance-operations", "launch", request=request, secrets=secrets, makes=True)
        ids = read(decode_launched, body, ambiguous=True).data.instance_ids
        if not all(is_id(id) for id in ids):
            raise unavailable("Lambda Cloud gave an instance an id that is none", ambiguous=True)
        return ids

    async def terminate(self, id: str) -> Instance | None:
        """The instance as it is then; None: there is no such instance, or no more. Asking twice does no harm."""
        request = {"instance_ids": [id]}
        body = await self._call("POST", "instance-operations", "terminate", request=request, missing_ok=True)
        if not body:
            return None
        ended = read(decode_terminated, body).data.terminated_instances
        return next((instance for instance in ended if instance.id == id), None) or await self.instance(id)

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def _call(
        self,
        method: str,
        *path: str,
        request: Mapping[str, Any] | None = None,
        secrets: Sequence[str] = (),
        makes: bool = False,
        missing_ok: bool = False,
    ) -> bytes:
        """The body of a 200; with `missing_ok` nothing, if Lambda says that the object does not exist.

        `makes`: the call makes a machine, so it is not repeated unless it certainly was not carried out.
        """
        for attempt in range(1, ATTEMPTS + 1):
            await self._pace.turn(launch=makes)
            pause = BACKOFF_S * 2 ** (attempt - 1) * random.uniform(0.5, 1.0)
            try:
                answer = await self._attempt(method, path, request, GET_S if not makes else LAUNCH_S)
            except (aiohttp.ClientError, OSError, ValueError) as error:
                failure, again = _lost(error, makes=makes), not makes
            else:
                if answer.status == 200:
                    return answer.body
                code, text = reason(answer.body, [self._key.get_secret_value(), *secrets])
                if missing_ok and code == MISSING and answer.status in (400, 404):
                    return b""
                failure = refused(answer.status, code, text, makes=makes)
                again = answer.status == 429 or (failure.code == "ProviderUnavailable" and not makes)
                if answer.status == 429:
                    self._pace.hold(answer.retry_after_s, launch=makes)
                    pause = 0.0
            if not again or attempt == ATTEMPTS:
                raise failure
            log.info("called again", method=method, path="/".join(path), attempt=attempt, error=failure.message)
            await self._clock.sleep(pause)
        raise AssertionError("unreachable")

    async def _attempt(
        self, method: str, path: Sequence[str], request: Mapping[str, Any] | None, timeout_s: float
    ) -> _Answer:
        url = self._base
        for segment in path:
            url = url / segment
        timeout = aiohttp.ClientTimeout(total=timeout_s, sock_connect=CONNECT_S)
        headers = {"Authorization": f"Bearer {self._key.get_secret_value()}", "Accept": "application/json"}
        # A redirect would take the key to another host.
        async with self._open().request(
            method, url, json=request, headers=headers, timeout=timeout, allow_redirects=False
        ) as response:
            return _Answer(response.status, await _read(response), _retry_after(response.headers))

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                # A kept connection that closes at the wrong moment would leave a launch in doubt.
                connector=aiohttp.TCPConnector(force_close=True),
                cookie_jar=aiohttp.DummyCookieJar(),
                middlewares=[_once],
                trust_env=False,
            )
        return self._session


class _CutOff(aiohttp.ClientError):
    pass


async def _once(request: aiohttp.ClientRequest, send: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
    """aiohttp would repeat by itself, out of turn, what was cut off."""
    try:
        return await send(request)
    except aiohttp.ClientConnectorError:
        raise
    except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError) as error:
        raise _CutOff from error


def _lost(error: Exception, *, makes: bool) -> ProviderError:
    """The connection failed. Before it was made nothing can have happened; after that a launch may have been carried out."""
    before = isinstance(error, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError)
    return unavailable(f"Lambda Cloud cannot be reached ({type(error).__name__})", ambiguous=makes and not before)


async def _read(response: aiohttp.ClientResponse) -> bytes:
    pieces: list[bytes] = []
    size = 0
    async for piece in response.content.iter_any():
        size += len(piece)
        if size > MOST_BYTES:
            raise aiohttp.ClientPayloadError("the answer is too long")
        pieces.append(piece)
    return b"".join(pieces)


def _retry_after(headers: Mapping[str, str]) -> float:
    """Seconds; without a number, the account's own interval between launches, after which every limit has passed."""
    value = headers.get("Retry-After", "")
    return float(value) if re.fullmatch(r"\d{1,9}", value) else LAUNCH_EVERY_S


def _checked_url(base_url: str) -> URL:
    """The key goes over TLS, or to this machine."""
    try:
        url = URL(base_url.rstrip("/"))
    except ValueError:
        raise ValueError("LAMBDA_CLOUD_BASE_URL is not a URL") from None
    if not url.host or not (url.scheme == "https" or (url.scheme == "http" and url.host in LOOPBACK)):
        raise ValueError("LAMBDA_CLOUD_BASE_URL is not an https URL")
    return url


def _checked_key(api_key: SecretStr) -> SecretStr:
    key = api_key.get_secret_value().strip()
    if not key:
        raise ValueError("LAMBDA_CLOUD_API_KEY is not set")
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise ValueError("LAMBDA_CLOUD_API_KEY has characters that no key has")
    return SecretStr(key)
