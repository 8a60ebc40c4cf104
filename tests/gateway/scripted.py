"""A console that says what a test tells it to, on a real gRPC server, and remembers what it was asked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from grpc import aio

from gateway.console import SERVICES
from services.kit.server import serving

Answer = Message | Exception | Callable[[Any], Any]


@dataclass
class Script:
    """Answers by the name of the RPC: a message, an error to raise, or a function of the request (for streams an
    asynchronous generator). Without one the answer is empty."""

    answers: dict[str, Answer] = field(default_factory=dict)
    asked: list[tuple[str, Any]] = field(default_factory=list)
    watching: int = 0
    """Streams that are being answered now."""
    address: str = ""

    def last(self) -> Any:
        return self.asked[-1][1]

    def names(self) -> list[str]:
        return [name for name, _ in self.asked]

    async def unary(self, method: MethodDescriptor, request: Any) -> Any:
        self.asked.append((method.name, request))
        answer = self.answers.get(method.name) or GetMessageClass(method.output_type)()
        if isinstance(answer, Exception):
            raise answer
        if callable(answer):
            answer = answer(request)
        return await answer if asyncio.iscoroutine(answer) else answer

    async def stream(self, method: MethodDescriptor, request: Any) -> AsyncIterator[Any]:
        self.asked.append((method.name, request))
        answer = self.answers[method.name]
        if isinstance(answer, Exception):
            raise answer
        assert callable(answer)
        self.watching += 1
        try:
            async for message in answer(request):
                yield message
        finally:
            self.watching -= 1


def handler_of(script: Script, method: MethodDescriptor) -> Any:
    reads = GetMessageClass(method.input_type).FromString
    writes = GetMessageClass(method.output_type).SerializeToString

    async def unary(request: Any, context: Any) -> Any:
        return await script.unary(method, request)

    async def stream(request: Any, context: Any) -> AsyncIterator[Any]:
        async for message in script.stream(method, request):
            yield message

    if method.server_streaming:
        return grpc.unary_stream_rpc_method_handler(stream, reads, writes)
    return grpc.unary_unary_rpc_method_handler(unary, reads, writes)


@asynccontextmanager
async def scripted(address: str = "127.0.0.1:0") -> AsyncIterator[Script]:
    script = Script()

    def register(server: aio.Server) -> None:
        for service in SERVICES:
            handlers = {method.name: handler_of(script, method) for method in service.methods}
            generic = grpc.method_handlers_generic_handler(service.full_name, handlers)
            server.add_generic_rpc_handlers((generic,))

    names = [service.full_name for service in SERVICES]
    async with serving(address, [register], names, grace=0.1) as bound:
        script.address = bound
        yield script
