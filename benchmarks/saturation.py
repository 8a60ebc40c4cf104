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
    """Mean in flight over the cap, from one second after the first request until 256 requests are left.

    By Little's law it is the rate times the latency, and counting what ended is exact, where sampling a gauge is not.
    """
    start = await finished(session, engine_url)
    options = {"max_concurrency": CONCURRENCY, "adaptive_concurrency": adaptive}
    batch_id = await support.create(session, server.url, file_id, engine_url, **options)
    samples: list[tuple[float, float]] = []  # time, requests ended so far
    async with asyncio.TaskGroup() as group:
        done = group.create_task(support.until_terminal(session, server.url, batch_id, every=0.25))
        while not done.done():
            ended = await finished(session, engine_url) - start
            samples.append((time.perf_counter(), ended))
            await asyncio.sleep(0.05)
    # The first answers come one latency after the first requests.
    first = next(at for at, ended in samples if ended) - LATENCY_MS / 1000
    whole = [(at, ended) for at, ended in samples if at >= first + 1 and ended <= COUNT - CONCURRENCY]
    (begin, before), (end, after) = whole[0], whole[-1]
    return (after - before) / (end - begin) * (LATENCY_MS / 1000) / CONCURRENCY


async def finished(session: aiohttp.ClientSession, engine_url: str) -> float:
    return await gauge(session, engine_url, "vllm:request_success_total")


async def gauge(session: aiohttp.ClientSession, engine_url: str, name: str) -> float:
    async with session.get(f"{engine_url}/metrics") as answer:
        text = await answer.text()
    lines = (line for line in text.splitlines() if line.startswith((name + " ", name + "{")))
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines)
