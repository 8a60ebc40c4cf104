"""Requests per second through the whole platform against a bare aiohttp loop over the same file and the same engine."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import aiohttp
import orjson

from benchmarks import support
from benchmarks.support import Row
from brix.metadata.v1 import batches_pb2, batches_pb2_grpc
from brix.type.v1 import batch_pb2
from services.kit.server import channel

COUNT = 10_000
CONCURRENCY = 256
RUNS = 5
# Seconds between two looks at a batch: what a script does, and what a progress bar of somebody impatient does.
PATIENT, IMPATIENT = 0.25, 0.01


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


@dataclass(frozen=True)
class Run:
    """One batch through the platform, in seconds."""

    dispatch: float
    finalize: float
    cpu: float
    polls: list[float]


async def measure(folder: Path, count: int = COUNT) -> list[Row]:
    source = folder / "dispatch.jsonl"
    support.chat_lines(source, count)
    async with (
        support.engine(folder) as engine_url,
        support.platform(folder) as server,
        aiohttp.ClientSession() as session,
    ):
        file_id = await support.upload(session, server.url, source)
        pairs = [
            (
                await bare_loop(source, folder / "bare.jsonl", engine_url),
                await run(session, server, file_id, engine_url, count, PATIENT),
            )
            for _ in range(RUNS)
        ]
        polled = [await run(session, server, file_id, engine_url, count, IMPATIENT) for _ in range(RUNS)]
    bare = median(bare for bare, _ in pairs)
    runs = [ours for _, ours in pairs]
    dispatch, finalize = median(r.dispatch for r in runs), median(r.finalize for r in runs)
    ratio = median(bare / ours.dispatch for bare, ours in pairs)
    cpu = median(r.cpu for r in runs)
    polls = sorted(taken for r in polled for taken in r.polls)
    p99 = polls[int(len(polls) * 0.99)]
    name = f"dispatch {count:,} chat requests, {CONCURRENCY} in flight"
    rates = f"{count / dispatch:,.0f} req/s", f"{count / bare:,.0f} req/s"
    return [
        Row(name, *rates, f"{ratio:.2f}", ">= 0.60", ratio >= 0.6),
        Row("CPU of the whole platform per 1,000 requests", f"{cpu * 1000 / count:.2f} s", "", "", "", True),
        Row(f"finalize {count:,} lines", f"{finalize:.2f} s", "", "", "< 1 s", finalize < 1),
        Row(
            f"poll of the batch meanwhile, p99 of {len(polls)}", f"{p99 * 1000:.0f} ms", "", "", "<= 50 ms", p99 <= 0.05
        ),
    ]


async def run(
    session: aiohttp.ClientSession, server: support.Platform, file_id: str, engine_url: str, count: int, every: float
) -> Run:
    """One batch, looked at every so many seconds until it ends."""
    before = server.process.cpu_times()
    options = {"max_concurrency": CONCURRENCY, "adaptive_concurrency": False}
    batch_id = await support.create(session, server.url, file_id, engine_url, **options)
    polls: list[float] = []
    done = await support.until_terminal(session, server.url, batch_id, every, polls)
    counts = done["request_counts"]
    if counts != {"total": count, "completed": count, "failed": 0}:
        raise RuntimeError(f"not every request succeeded: {counts}")
    after = server.process.cpu_times()
    batch = await get_batch(server.metadata, batch_id)
    return Run(
        dispatch=seconds(batch, "in_progress_time", "finalizing_time"),
        finalize=seconds(batch, "finalizing_time", "completed_time"),
        cpu=after.user + after.system - before.user - before.system,
        polls=polls,
    )
