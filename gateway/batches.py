"""/v1/batches."""

from __future__ import annotations

import hashlib

from aiohttp import web

from brix.metadata.v1.batches_pb2 import CancelBatchRequest, GetBatchRequest, ListBatchesRequest
from gateway import openai
from gateway.auth import PROJECT
from gateway.backend import BACKEND, idempotency_key, path_id, persist
from gateway.body import Body, read_json
from services.kit import errors
from services.kit.ids import new_id

DEFAULT_PAGE = 20
LARGEST_PAGE = 100


async def create(request: web.Request) -> web.Response:
    backend = request.app[BACKEND]
    limits = backend.settings.gateway
    key = idempotency_key(request) or new_id("once_")
    body = await read_json(request, limits.idle_timeout_s, limits.max_json_bytes)
    message = openai.parse_create_batch(body)
    message.project_id = request[PROJECT]
    message.idempotency_key = key
    message.request_hash = hashlib.sha256(body).hexdigest()
    return openai.respond(openai.batch_object(await persist(backend.batches.CreateBatch, message)))


async def list_batches(request: web.Request) -> web.Response:
    answer = await request.app[BACKEND].batches.ListBatches(
        ListBatchesRequest(
            project_id=request[PROJECT],
            page_size=openai.query_int(request, "limit", default=DEFAULT_PAGE, most=LARGEST_PAGE),
            after=openai.query_text(request, "after"),
        )
    )
    return openai.respond(openai.page([openai.batch_object(batch) for batch in answer.batches], answer.has_more))


async def retrieve(request: web.Request) -> web.Response:
    id = path_id(request)
    try:
        if id is None:
            raise errors.NotFound("no such id")
        batch = await request.app[BACKEND].batches.GetBatch(GetBatchRequest(project_id=request[PROJECT], id=id))
    except errors.NotFound:
        raise openai.no_such_batch(request.match_info["id"]) from None
    return openai.respond(openai.batch_object(batch))


async def cancel(request: web.Request) -> web.Response:
    """The SDK sends no body, but says that it is JSON; what is in one does not matter."""
    backend = request.app[BACKEND]
    limits = backend.settings.gateway
    await Body(request, limits.idle_timeout_s).read_all(limits.max_json_bytes)
    id = path_id(request)
    try:
        if id is None:
            raise errors.NotFound("no such id")
        batch = await backend.batches.CancelBatch(CancelBatchRequest(project_id=request[PROJECT], id=id))
    except errors.NotFound:
        raise openai.no_such_batch(request.match_info["id"]) from None
    return openai.respond(openai.batch_object(batch))
