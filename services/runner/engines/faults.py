"""Ways in which an engine goes wrong, switched on and off while the mock engine runs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from aiohttp import web

# html: 200 with a web page. empty: 200 without a body. half: a body that ends before its announced length.
# redirect: 302 to `location`. hang: no answer. close: the connection ends without one. status: an error of this status.
Kind = Literal["html", "empty", "half", "redirect", "hang", "close", "status"]

PAGE = b"<!DOCTYPE html><html><body>Bad gateway</body></html>"


@dataclass(kw_only=True)
class Fault:
    kind: Kind
    times: int | None = None
    """How many requests it meets; None: all."""
    status: int = 500
    retry_after: str | None = None
    location: str = "/elsewhere"
    when: Callable[[bytes], bool] | None = None
    """Only requests whose body it says yes to."""


@dataclass
class Faults:
    """The first fault that meets a request is used; none: the engine answers as it should."""

    faults: list[Fault] = field(default_factory=list)

    def add(self, kind: Kind, **more: Any) -> Fault:
        """Switch a fault on: `add("status", status=503, times=3)`."""
        fault = Fault(kind=kind, **more)
        self.faults.append(fault)
        return fault

    def clear(self) -> None:
        self.faults.clear()

    def take(self, body: bytes) -> Fault | None:
        for fault in self.faults:
            if fault.when is None or fault.when(body):
                if fault.times is not None:
                    fault.times -= 1
                    if fault.times <= 0:
                        self.faults.remove(fault)
                return fault
        return None


async def show(fault: Fault, request: web.BaseRequest) -> web.StreamResponse:
    match fault.kind:
        case "html":
            return web.Response(body=PAGE, content_type="text/html")
        case "empty":
            return web.Response(body=b"", content_type="application/json")
        case "redirect":
            return web.Response(status=302, headers={"Location": fault.location})
        case "half":
            return await _half(request)
        case "hang":
            await asyncio.Event().wait()
        case "close":
            _drop(request)
        case "status":
            pass
    headers = {} if fault.retry_after is None else {"Retry-After": fault.retry_after}
    body = b'{"error":{"message":"The engine has a fault.","type":"server_error","param":null,"code":null}}'
    return web.Response(status=fault.status, headers=headers, body=body, content_type="application/json")


async def _half(request: web.BaseRequest) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "application/json", "Content-Length": "1000"})
    await response.prepare(request)
    await response.write(b'{"id":"chatcmpl-half","choices":[')
    if request.transport is not None:
        request.transport.close()
    return response


def _drop(request: web.BaseRequest) -> None:
    if request.transport is not None:
        request.transport.abort()
