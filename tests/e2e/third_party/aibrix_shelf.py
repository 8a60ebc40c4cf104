"""A runtime for aibrix-batch: every batch gets a small engine of its own, inside of the runner's process."""

from __future__ import annotations

import uuid
from typing import Any

from aiohttp import web

from services.kit.settings import Settings
from services.runner.runtimes.base import Endpoint, Gone, Handle, Probe, Ready, RuntimeFailed, Spec


class Shelf:
    target = "Shelf"
    owned_by_runner = True  # no other process can reach what it starts

    def __init__(self, settings: Settings) -> None:
        self._engines: dict[str, tuple[Handle, web.AppRunner]] = {}

    async def launch(self, spec: Spec) -> Handle:
        if spec.key not in self._engines:
            title = spec.block.options().get("title", "untitled")
            if not isinstance(title, str):
                raise RuntimeFailed("aibrix.runtime.options.title must be a text", retryable=False)
            runner = web.AppRunner(engine(title))
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            handle = {"key": spec.key, "id": uuid.uuid4().hex, "port": runner.addresses[0][1]}
            self._engines[spec.key] = (handle, runner)
        return dict(self._engines[spec.key][0])

    async def probe(self, spec: Spec, handle: Handle) -> Probe:
        if handle not in await self.list():
            return Gone("it was released, or its runner has ended")
        return Ready((Endpoint(base_url=f"http://127.0.0.1:{handle['port']}", health_path="/health"),))

    async def release(self, handle: Handle) -> None:
        if handle in await self.list():
            _, runner = self._engines.pop(handle["key"])
            await runner.cleanup()

    async def list(self) -> list[Handle]:
        return [dict(handle) for handle, _ in self._engines.values()]

    async def close(self) -> None:
        for handle in await self.list():
            await self.release(handle)


def engine(title: str) -> web.Application:
    """An OpenAI-compatible server that answers a chat with its last message, under `title`."""

    async def health(request: web.Request) -> web.Response:
        return web.Response()

    async def chat(request: web.Request) -> web.Response:
        body: dict[str, Any] = await request.json()
        message = {"role": "assistant", "content": f"{title}: {body['messages'][-1]['content']}"}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        usage = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
        answer = {"id": "c", "object": "chat.completion", "model": body["model"], "choices": [choice], "usage": usage}
        return web.json_response(answer)

    app = web.Application()
    app.add_routes([web.get("/health", health), web.post("/v1/chat/completions", chat)])
    return app
