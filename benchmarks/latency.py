"""From creating a batch to its first request at the engine: upload, validation, lease and launch included."""

from __future__ import annotations

import time
from pathlib import Path

import aiohttp
from aiohttp import web

from benchmarks import support
from benchmarks.support import Row

LINES = 1_000
RUNS = 7


async def measure(folder: Path) -> list[Row]:
    source = folder / "latency.jsonl"
    support.chat_lines(source, LINES)
    seen: list[float] = []

    async def answer(request: web.Request) -> web.Response:
        seen.append(time.perf_counter())
        return web.json_response({"id": "x", "choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 1}})

    app = web.Application()
    app.router.add_post("/v1/chat/completions", answer)
    witness = web.AppRunner(app)
    await witness.setup()
    port = support.free_port()
    await web.TCPSite(witness, "127.0.0.1", port).start()
    taken = []
    async with support.platform(folder) as server, aiohttp.ClientSession() as session:
        file_id = await support.upload(session, server.url, source)
        for _ in range(RUNS):
            seen.clear()
            started = time.perf_counter()
            batch_id = await support.create(session, server.url, file_id, f"http://127.0.0.1:{port}")
            await support.until_terminal(session, server.url, batch_id)
            taken.append(seen[0] - started)
    await witness.cleanup()
    median, worst = sorted(taken)[RUNS // 2], max(taken)
    value = f"{median * 1000:.0f} ms (worst of {RUNS}: {worst * 1000:.0f} ms)"
    return [Row(f"create to first request, {LINES:,} lines", value, "", "", "<= 300 ms", worst <= 0.3)]
