"""JSON over HTTP to RPCs and back, for all of them: an endpoint knows nothing but its binding.

What a request says stands in its path, its query or its body; whose it is, the gateway says.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterable
from typing import Any

from aiohttp import web
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from grpc import aio

from gateway import events, openai, roles
from gateway.auth import KEY_NAME, PROJECT
from gateway.backend import BACKEND, idempotency_key
from gateway.body import Body, read_json
from gateway.transcode_fields import object_name
from gateway.transcode_read import read_body, read_query
from gateway.transcode_routes import Binding, bindings_of
from gateway.transcode_write import as_json
from services.kit.ids import new_id

CHANNEL: web.AppKey[aio.Channel] = web.AppKey("console", aio.Channel)
# A longer body is read in a thread, where it keeps nobody else waiting.
READ_AT_ONCE = 64 * 1024


class Endpoint:
    def __init__(self, binding: Binding) -> None:
        self.binding = binding
        self.request_class = GetMessageClass(binding.request)
        self.answer_class = GetMessageClass(binding.answer)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Errors: Refused 403; those of the request, and of the call."""
        roles.check(request, self.binding.rpc)
        if self.binding.streams:
            return await self._stream(request)
        message = await self._message(request)
        call = request.app[CHANNEL].unary_unary(
            self.binding.rpc,
            request_serializer=self.request_class.SerializeToString,
            response_deserializer=self.answer_class.FromString,
        )
        answer: Message = await call(message)
        response = openai.respond(self._deleted(message) if self.binding.is_empty else as_json(answer))
        response.headers["Cache-Control"] = "no-store"  # one of them holds a key
        return response

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        if request.method == "HEAD":
            raise web.HTTPMethodNotAllowed("HEAD", ["GET"])
        message = await self._message(request)
        message.after_revision = events.last_seen(request, message.after_revision)
        call = request.app[CHANNEL].unary_stream(
            self.binding.rpc,
            request_serializer=self.request_class.SerializeToString,
            response_deserializer=self.answer_class.FromString,
        )
        return await events.send(request, call(message), message.after_revision)

    async def _message(self, request: web.Request) -> Any:
        """Errors: InvalidArgument; Refused 408, 413, 415."""
        message = self.request_class()
        body = await self._body(request)
        in_query = {name: request.query.getall(name) for name in request.query}
        if self.binding.has_body:
            read_query(in_query, Empty())
            if len(body) > READ_AT_ONCE:
                await asyncio.to_thread(read_body, body, message, self.binding.variables)
            else:
                read_body(body, message, self.binding.variables)
        else:
            if body.strip():
                read_body(body, Empty())
            read_query(in_query, message, self.binding.variables)
        for name in self.binding.variables:
            setattr(message, name, request.match_info[name])
        self._fill(request, message, body)
        return message

    async def _body(self, request: web.Request) -> bytes:
        limits = request.app[BACKEND].settings.gateway
        if self.binding.has_body:
            return await read_json(request, limits.idle_timeout_s, limits.max_json_bytes)
        if request.method in {"GET", "HEAD"}:
            return b""
        return await Body(request, limits.idle_timeout_s).read_all(limits.max_json_bytes)

    def _fill(self, request: web.Request, message: Any, body: bytes) -> None:
        """What the gateway knows, where the message has a place for it."""
        fields = self.binding.request.fields_by_name
        if "project_id" in fields:
            message.project_id = request[PROJECT]
        if "created_by" in fields:
            message.created_by = request[KEY_NAME]
        if "idempotency_key" in fields and (key := idempotency_key(request)) is not None:
            message.idempotency_key = key
        elif "call_id" in fields:
            # So that the call may be repeated on the way.
            message.call_id = new_id("once_")
        if "request_hash" in fields:
            # Where no body is wanted, none and an empty object say the same.
            message.request_hash = hashlib.sha256(body if self.binding.has_body else b"").hexdigest()

    def _deleted(self, message: Any) -> dict[str, Any]:
        return {"id": message.id, "object": object_name(self.binding.name.removeprefix("Delete")), "deleted": True}


def endpoints(services: Iterable[ServiceDescriptor]) -> list[Endpoint]:
    """Error: TypeError, for a service that cannot be served like this."""
    return [Endpoint(binding) for service in services for binding in bindings_of(service)]
