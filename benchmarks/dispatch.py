"""Requests per second through the whole platform against a bare aiohttp loop over the same file and the same engine."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import aiohttp
import orjson

from benchmarks import support
from benchmarks.support import Row
from brix.metadata.v1 import batches_pb2, batches_pb2_grpc
from brix.type.v1 import batch_pb2
from services.kit.server import channel

COUNT = 10_000
CONCURRENCY = 256


async def bare_loop(source: Path, target: Path, url: str, concurrency: int = CONCURRENCY) -> float:
    """Seconds for a plain client to send every line and write every answer."""
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as session:
        started = time.perf_counter()
        with source.open("rb") as lines, target.open("wb") as out:

            async def worker() -> None:
                for line in lines:
                    request = orjson.loads(line)
                    data = orjson.dumps(request["body"])
                    headers = {"Content-Type": "application/json"}
                    async with session.post(url + request["url"], data=data, headers=headers) as answer:
                        body = orjson.loads(await answer.read())
                        response = {"status_code": answer.status, "request_id": "", "body": body}
                    record = {"id": "", "custom_id": request["custom_id"], "response": response, "error": None}
                    out.write(orjson.dumps(record) + b"\n")

            async with asyncio.TaskGroup() as group:
                for _ in range(concurrency):
                    group.create_task(worker())
        return time.perf_counter() - started


async def get_batch(metadata: str, batch_id: str) -> batch_pb2.Batch:
    """The record with times in microseconds; the public object has whole seconds."""
    async with channel(metadata) as ch:
        stub = batches_pb2_grpc.BatchServiceStub(ch)
        request = batches_pb2.GetBatchRequest(project_id="default", id=batch_id)
        return await stub.GetBatch(request)


def seconds(batch: batch_pb2.Batch, start: str, end: str) -> float:
    first, last = getattr(batch, start), getattr(batch, end)
    return (last.ToNanoseconds() - first.ToNanoseconds()) / 1e9  # type: ignore[no-any-return]


async def poll(session: aiohttp.ClientSession, url: str, stop: asyncio.Event, taken: list[float]) -> None:
    while not stop.is_set():
        started = time.perf_counter()
        async with session.get(url) as answer:
            await answer.read()
        taken.append(time.perf_counter() - started)
        await asyncio.sleep(0.01)


async def measure(folder: Path, count: int = COUNT) -> list[Row]:
    source = folder / "dispatch.jsonl"
    support.chat_lines(source, count)
    async with support.engine(folder) as engine_url, support.platform(folder) as server:
        bare = [await bare_loop(source, folder / "bare.jsonl", engine_url)]
        async with aiohttp.ClientSession() as session:
            file_id = await support.upload(session, server.url, source)
            runs = [await _one(session, server, file_id, engine_url, count) for _ in range(3)]
        bare.append(await bare_loop(source, folder / "bare.jsonl", engine_url))
    dispatch, finalize, cpu, p99 = (sorted(values)[1] for values in zip(*runs, strict=True))
    bare_rate = count / (sum(bare) / len(bare))
    ratio = count / dispatch / bare_rate
    return [
        Row(
            f"dispatch {count:,} chat requests, {CONCURRENCY} in flight",
            f"{count / dispatch:,.0f} req/s",
            f"{bare_rate:,.0f} req/s",
            f"{ratio:.2f}",
            ">= 0.60",
            ratio >= 0.6,
        ),
        Row("CPU of the whole platform per 1,000 requests", f"{cpu * 1000 / count:.2f} s", "", "", "", True),
        Row(f"finalize {count:,} lines", f"{finalize:.2f} s", "", "", "< 1 s", finalize < 1),
        Row("poll of the batch meanwhile, p99", f"{p99 * 1000:.0f} ms", "", "", "<= 50 ms", p99 <= 0.05),
    ]


async def _one(
    session: aiohttp.ClientSession, server: support.Platform, file_id: str, engine_url: str, count: int
) -> tuple[float, float, float, float]:
    """One batch: seconds of dispatch, seconds of finalizing, CPU seconds of the platform, p99 of the poll."""
    before = server.process.cpu_times()
    options = {"max_concurrency": CONCURRENCY, "adaptive_concurrency": False}
    batch_id = await support.create(session, server.url, file_id, engine_url, **options)
    stop, taken = asyncio.Event(), list[float]()
    async with asyncio.TaskGroup() as group:
        group.create_task(poll(session, f"{server.url}/v1/batches/{batch_id}", stop, taken))
        done = await support.until_terminal(session, server.url, batch_id)
        stop.set()
    counts = done["request_counts"]
    if counts != {"total": count, "completed": count, "failed": 0}:
        raise RuntimeError(f"not every request succeeded: {counts}")
    after = server.process.cpu_times()
    batch = await get_batch(server.metadata, batch_id)
    cpu = after.user + after.system - before.user - before.system
    taken.sort()
    p99 = taken[int(len(taken) * 0.99)]
    return (
        seconds(batch, "in_progress_time", "finalizing_time"),
        seconds(batch, "finalizing_time", "completed_time"),
        cpu,
        p99,
    )
