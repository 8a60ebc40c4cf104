"""/v1/models: what the endpoints of live runners serve."""

from __future__ import annotations

from urllib.parse import unquote

from aiohttp import web

from brix.metadata.v1.runners_pb2 import ListModelsRequest
from gateway import openai
from gateway.backend import BACKEND


async def list_models(request: web.Request) -> web.Response:
    answer = await request.app[BACKEND].runners.ListModels(ListModelsRequest())
    return openai.respond(openai.model_list(answer.models))


async def retrieve(request: web.Request) -> web.Response:
    """Ids may hold slashes, escaped (SDK 2 and 3) or not (SDK 1)."""
    id = unquote(request.rel_url.raw_path.removeprefix("/v1/models/")).removesuffix("/")
    answer = await request.app[BACKEND].runners.ListModels(ListModelsRequest())
    for model in answer.models:
        if model.id == id:
            return openai.respond(openai.model_object(model))
    raise openai.no_such_model(id)
