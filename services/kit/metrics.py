"""Prometheus over HTTP, for a role that runs by itself; in one process the gateway serves the same registry."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest


async def render(request: web.Request) -> web.Response:
    return web.Response(body=generate_latest(), headers={"Content-Type": CONTENT_TYPE_LATEST})


@asynccontextmanager
async def serving_metrics(listen: str) -> AsyncIterator[None]:
    """Serve GET /metrics on `listen`; nothing if it is empty."""
    if not listen:
        yield
        return
    app = web.Application()
    app.router.add_get("/metrics", render)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        host, _, port = listen.rpartition(":")
        await web.TCPSite(runner, host, int(port)).start()
        yield
    finally:
        await runner.cleanup()
