"""What the clouds on loopback have in common: a server, faults that a test orders, and what broke the document."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

from aiohttp import web

from tests.planner.openapi import SPECS, Document, Violation


@dataclass
class Fault:
    """What happens instead of, or after, the next request of its kind. `done`: the request is carried out first."""

    method: str
    path: str
    done: bool = False
    status: int = 0
    code: str = ""
    detail: str = ""
    """Code and text of the error, as the cloud tells them."""
    headers: Mapping[str, str] = field(default_factory=dict)
    raw: bytes | None = None
    """An answer that nobody checks: a lie."""
    change: Callable[[Any], Any] | None = None
    """Likewise, made from the right answer."""
    hang: bool = False
    drop: bool = False


class HttpFake:
    """A cloud's API below `prefix`, as `document` describes it. A subclass answers requests in `_handle`."""

    document: ClassVar[str]
    prefix: ClassVar[str]

    def __init__(self) -> None:
        self.spec = Document(SPECS / self.document)
        self.url = ""
        self.requests: list[tuple[str, str, Any]] = []
        """Method, path and parsed body of each."""
        self.violations: list[str] = []
        """Requests and answers that broke the document. A test that provokes none finds none."""
        self.faults: list[Fault] = []
        self._stack = AsyncExitStack()
        self._closing = asyncio.Event()

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[Self]:
        app = web.Application(client_max_size=4 * 1024 * 1024)
        app.router.add_route("*", "/{path:.*}", self._handle)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        async with self._stack:
            await runner.setup()
            self._stack.push_async_callback(runner.cleanup)
            self._stack.callback(self._closing.set)
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            self.url = f"http://127.0.0.1:{runner.addresses[0][1]}{self.prefix}"
            yield self

    async def listen(self, greeting: bytes) -> int:
        """A server that greets, and waits until the other side goes; its port."""

        async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                writer.write(greeting)
                await reader.read()
            except ConnectionError:
                pass
            finally:
                writer.close()

        server = await asyncio.start_server(greet, "127.0.0.1", 0)
        self._stack.callback(server.close)
        port: int = server.sockets[0].getsockname()[1]
        return port

    def fault(self, method: str, path: str, **what: Any) -> None:
        """For the next request whose path, below `prefix`, begins with `path`."""
        self.faults.append(Fault(method, path, **what))

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        raise NotImplementedError

    def _told(self, fault: Fault) -> tuple[int, Any] | None:
        """The error that a fault is told as; None: it is none of the cloud's own, but a page of something in between."""
        raise NotImplementedError

    def _answered(
        self, request: web.Request, status: int, answer: Any, headers: Mapping[str, str] | None = None
    ) -> web.Response:
        """An answer that is held to the document."""
        raise NotImplementedError

    def _take_fault(self, request: web.Request) -> Fault | None:
        for fault in self.faults:
            if fault.method == request.method and request.path.startswith(self.prefix + fault.path):
                self.faults.remove(fault)
                return fault
        return None

    async def _break(self, request: web.Request, fault: Fault, answer: Any) -> web.StreamResponse:
        """`answer`: the right one, if the request was carried out."""
        if fault.hang:
            await self._closing.wait()
        if fault.drop or fault.hang:
            assert request.transport is not None
            request.transport.close()
            return web.Response()
        if fault.raw is not None:
            return web.Response(status=fault.status or 200, body=fault.raw, headers=fault.headers)
        if fault.change is not None:
            return web.json_response(fault.change(answer), status=fault.status or 200)
        if (told := self._told(fault)) is None:
            return web.Response(status=fault.status, headers=fault.headers, text="<html>not JSON</html>")
        return self._answered(request, *told, fault.headers)

    def _hold(self, request: web.Request, status: int, body: Any, content_type: str = "") -> None:
        """Our own answers must be as the document says, too."""
        try:
            self.spec.check_response(request.method, request.path, status, body, content_type)
        except Violation as violation:
            self.violations.append(str(violation))
