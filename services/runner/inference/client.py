"""One attempt of one request: bytes out, an `Outcome` back. Whatever the engine does, it raises nothing.

Redirects and proxies of the environment are off: either would move a request, and its credential, to another host.
"""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Self

import aiohttp
import orjson
from multidict import CIMultiDict
from yarl import URL

from services.kit import clock
from services.kit.spec.addresses import AddressPolicy
from services.runner.inference.endpoints import Engine
from services.runner.inference.outcome import Kind, Outcome
from services.runner.inference.retry import parse_retry_after
from services.runner.runtimes.addresses import connector
from services.runner.runtimes.base import Endpoint

CONNECT_S = 10.0
CHECK_S = 5.0
# Below the 5 s after which common servers close an idle connection: a request must not meet a closing one.
KEEP_ALIVE_S = 4.0
# aiohttp writes larger bodies in pieces only if they are a file.
LARGE_BODY = 512 * 1024
PIECE = 256 * 1024


class _TooLong(Exception):
    pass


class Route:
    """What is the same in every request to one endpoint."""

    __slots__ = ("base", "headers", "session", "url")

    def __init__(self, session: aiohttp.ClientSession, endpoint: Endpoint, path: str) -> None:
        self.session = session
        self.base = URL(endpoint.base_url)
        self.url = URL(endpoint.base_url.rstrip("/") + path)
        # Compressed answers cost more than they save so near to the engine.
        defaults = {"Content-Type": "application/json", "Accept": "application/json", "Accept-Encoding": "identity"}
        self.headers = CIMultiDict(defaults)
        self.headers.update(endpoint.headers)


class InferenceClient:
    """Use as `async with InferenceClient.open(...)`. `path` is the batch's endpoint, such as `/v1/chat/completions`."""

    def __init__(self, path: str, timeout_s: float, max_answer_bytes: int, stack: AsyncExitStack) -> None:
        self._path = path
        self._timeout = aiohttp.ClientTimeout(total=timeout_s, sock_connect=CONNECT_S)
        self._max_answer_bytes = max_answer_bytes
        self._stack = stack
        self._sessions: dict[AddressPolicy | None, aiohttp.ClientSession] = {}

    @classmethod
    @asynccontextmanager
    async def open(cls, path: str, timeout_s: float, max_answer_bytes: int) -> AsyncIterator[Self]:
        async with AsyncExitStack() as stack:
            yield cls(path, timeout_s, max_answer_bytes, stack)

    async def send(self, engine: Engine, body: bytes) -> Outcome:
        route: Route = engine.route or self._route(engine)
        data: Any = body if len(body) < LARGE_BODY else io.BytesIO(body)
        try:
            async with route.session.post(
                route.url, data=data, headers=route.headers, allow_redirects=False
            ) as response:
                return self._outcome(response, await self._read(response))
        except _TooLong:
            return Outcome(Kind.INVALID, detail="the answer is too long")
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError):
            return Outcome(Kind.REFUSED, detail="no connection to the endpoint could be made")
        except TimeoutError:
            return Outcome(Kind.TIMEOUT, detail="the endpoint did not answer in time")
        except aiohttp.ClientPayloadError:
            return Outcome(Kind.INVALID, detail="the answer ended too early or was malformed")
        except (aiohttp.ClientResponseError, ValueError):
            return Outcome(Kind.INVALID, detail="the answer is not HTTP as it should be")
        except (aiohttp.ClientError, OSError):
            return Outcome(Kind.DISCONNECTED, detail="the connection to the endpoint was lost")

    async def check(self, engine: Engine) -> bool:
        """Whether a request is worth sending: the health path answers 2xx, or, without one, anything answers at all."""
        route: Route = engine.route or self._route(engine)
        path = engine.endpoint.health_path
        try:
            async with asyncio.timeout(CHECK_S):
                url = URL(str(route.base).rstrip("/") + (path or "/v1/models"))
                async with route.session.get(url, headers=route.headers, allow_redirects=False) as response:
                    return response.status < 300 if path else response.status not in (502, 503, 504)
        except (aiohttp.ClientError, OSError, ValueError):
            return False

    def _route(self, engine: Engine) -> Route:
        policy = engine.endpoint.policy
        session = self._sessions.get(policy)
        if session is None:
            session = aiohttp.ClientSession(
                connector=connector(policy, keepalive_timeout=KEEP_ALIVE_S),
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=self._timeout,
                trust_env=False,
            )
            self._sessions[policy] = session
            self._stack.push_async_callback(session.close)
        route = engine.route = Route(session, engine.endpoint, self._path)
        return route

    async def _read(self, response: aiohttp.ClientResponse) -> bytes:
        length = response.content_length
        if length is not None and length > self._max_answer_bytes:
            raise _TooLong
        if length is not None and "Content-Encoding" not in response.headers:
            return await response.read()
        pieces, size = [], 0
        async for piece in response.content.iter_chunked(PIECE):
            size += len(piece)
            if size > self._max_answer_bytes:
                raise _TooLong
            pieces.append(piece)
        return b"".join(pieces)

    def _outcome(self, response: aiohttp.ClientResponse, body: bytes) -> Outcome:
        status = response.status
        if status >= 400:
            retry_after_s = parse_retry_after(response.headers.get("Retry-After"), clock.now())
            request_id = response.headers.get("x-request-id")
            return Outcome(
                Kind.HTTP_ERROR, status=status, body=body, request_id=request_id, retry_after_s=retry_after_s
            )
        if status >= 300:
            return Outcome(Kind.REDIRECT, detail=f"the endpoint answered with a redirect ({status})")
        try:
            answer = orjson.loads(body)
        except orjson.JSONDecodeError:
            answer = None
        if not isinstance(answer, dict):
            return Outcome(Kind.INVALID, detail="the answer is not a JSON object")
        request_id = response.headers.get("x-request-id")
        return Outcome(Kind.OK, status=status, body=body, answer=answer, request_id=request_id)
