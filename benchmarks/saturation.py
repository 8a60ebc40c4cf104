"""How full the engine is kept: requests in flight at an engine of known latency, seen from the engine's own gauge."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import aiohttp

from benchmarks import support
from benchmarks.support import Row

LATENCY_MS = 200
CONCURRENCY = 256
COUNT = 10_000


async def measure(folder: Path) -> list[Row]:
    source = folder / "saturation.jsonl"
    support.chat_lines(source, COUNT)
    rows = []
    async with (
        support.engine(folder, "--latency-ms", str(LATENCY_MS)) as engine_url,
        support.platform(folder) as server,
        aiohttp.ClientSession() as session,
    ):
        file_id = await support.upload(session, server.url, source)
        for adaptive in (False, True):
            kept = await _kept(session, server, file_id, engine_url, adaptive)
            name = f"in flight at {LATENCY_MS} ms, {'adaptive' if adaptive else 'fixed'} {CONCURRENCY}"
            rate, ideal = kept * CONCURRENCY / (LATENCY_MS / 1000), CONCURRENCY / (LATENCY_MS / 1000)
            rows.append(Row(name, f"{rate:,.0f} req/s", f"{ideal:,.0f} req/s", f"{kept:.3f}", ">= 0.95", kept >= 0.95))
    return rows


async def _kept(
    session: aiohttp.ClientSession, server: support.Platform, file_id: str, engine_url: str, adaptive: bool
) -> float:
    """Mean in flight over the cap, from one second after the first request until 256 requests are left."""
    start = await finished(session, engine_url)
    options = {"max_concurrency": CONCURRENCY, "adaptive_concurrency": adaptive}
    batch_id = await support.create(session, server.url, file_id, engine_url, **options)
    samples: list[tuple[float, float, float]] = []  # time, in flight, finished
    async with asyncio.TaskGroup() as group:
        done = group.create_task(support.until_terminal(session, server.url, batch_id, every=0.2))
        while not done.done():
            now = time.perf_counter()
            samples.append((now, await gauge(session, engine_url, "vllm:num_requests_running"), 0.0))
            samples[-1] = (*samples[-1][:2], await finished(session, engine_url) - start)
            await asyncio.sleep(0.02)
    first = next(at for at, running, _ in samples if running)
    full = [running for at, running, ended in samples if at >= first + 1 and ended <= COUNT - 2 * CONCURRENCY]
    return sum(full) / len(full) / CONCURRENCY


async def finished(session: aiohttp.ClientSession, engine_url: str) -> float:
    return await gauge(session, engine_url, "vllm:request_success_total")


async def gauge(session: aiohttp.ClientSession, engine_url: str, name: str) -> float:
    async with session.get(f"{engine_url}/metrics") as answer:
        text = await answer.text()
    lines = (line for line in text.splitlines() if line.startswith((name + " ", name + "{")))
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines)
