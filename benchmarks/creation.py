"""Creating batches: what reading a block costs, and how many creates a second against a bare gRPC call with one INSERT."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import aiosqlite
import asyncpg
import grpc
import orjson
from grpc import aio

from benchmarks import postgres
from benchmarks.support import Row
from brix.metadata.v1 import batches_pb2, batches_pb2_grpc
from brix.type.v1 import batch_pb2
from services.kit import log as logs
from services.kit.server import channel, serving
from services.kit.settings import Log, Metadata, Settings, Templates
from services.kit.spec.block import parse_block
from services.kit.spec.catalog import Catalog
from services.kit.spec.profile import Quota
from services.kit.spec.resolved import check_endpoint_supported, resolve
from services.metadata import server
from services.metadata.service.requests import check_engine

SERVICE = "brix.metadata.v1.BatchService"
ENDPOINT = "/v1/chat/completions"
BLOCK = orjson.dumps(
    {
        "job_id": "job_123",
        "model": "meta-llama/Llama-3.1-8B-Instruct",
        "runtime": {"target": "Local"},
        "model_template": {
            "name": "llama3-8b-a10",
            "version": "v1",
            "spec": {
                "engine": {
                    "type": "vllm",
                    "version": "0.6.3",
                    "image": "vllm/vllm-openai:latest",
                    "serve_args": ["--gpu-memory-utilization", "0.90"],
                },
                "model_source": {"type": "huggingface", "uri": "meta-llama/Llama-3.1-8B-Instruct"},
                "accelerator": {"type": "A10", "count": 1},
                "parallelism": {"tp": 1, "pp": 1, "dp": 1, "ep": 1},
                "engine_args": {"max_num_seqs": 64, "max_model_len": 8192},
                "supported_endpoints": [ENDPOINT],
            },
        },
        "client": {"max_concurrency": 128, "retry_policy": {"max_retries": 3}},
    }
).decode()
READS = 2_000
CALLS = 1_500
AT_ONCE = 16
ROUNDS = 3

Call = Callable[[], Awaitable[object]]


async def measure(folder: Path) -> list[Row]:
    rows = [_read_block()]
    # A line of log for every batch would be measured along with it on this screen.
    logs.configure(Log(level="warning"))
    rows.append(await _creates("SQLite", folder, f"sqlite+aiosqlite:///{folder / 'bench.db'}"))
    with postgres.server() as url:
        if url is not None:
            rows.append(await _creates("PostgreSQL", folder, url))
    return rows


def _read_block() -> Row:
    catalog, largest, limits = Catalog(), Quota(), Templates()
    best = float("inf")
    for _ in range(ROUNDS):
        started = time.perf_counter()
        for _ in range(READS):
            block = parse_block(BLOCK)
            resolved = resolve(block, catalog, largest)
            check_endpoint_supported(resolved, ENDPOINT)
            if resolved.template is None:
                raise RuntimeError("the block has a template")
            check_engine(block, resolved.template, limits)
            resolved.to_json()
        best = min(best, (time.perf_counter() - started) / READS)
    bare = min(_loads() for _ in range(ROUNDS))
    value, ratio = f"{best * 1000:.3f} ms", f"{best / bare:.0f}"
    return Row(
        "read and resolve a block with a template", value, f"{bare * 1000:.3f} ms", ratio, "< 1 ms", best < 0.001
    )


def _loads() -> float:
    started = time.perf_counter()
    for _ in range(READS):
        orjson.loads(BLOCK)
    return (time.perf_counter() - started) / READS


async def _creates(name: str, folder: Path, url: str) -> Row:
    """Rounds of both in turn, on the same kind of database, from the same client."""
    ours, bare = [], []
    settings = Settings(
        data_dir=folder / name,
        metadata=Metadata(listen="127.0.0.1:0", database_url=url),
        default_endpoint="http://127.0.0.1:9",
    )
    async with server.run(settings) as address, channel(address) as to_metadata, _bare(url, folder) as to_bare:
        create = batches_pb2_grpc.BatchServiceStub(to_metadata).CreateBatch
        insert = batches_pb2_grpc.BatchServiceStub(to_bare).CreateBatch
        request = batches_pb2.CreateBatchRequest(
            project_id="default",
            input_file_id="file-none",
            endpoint=ENDPOINT,
            completion_window="24h",
            aibrix_json=BLOCK,
        )
        for _ in range(ROUNDS):
            bare.append(await _rate(lambda: insert(request)))
            ours.append(await _rate(lambda: create(request)))
    mine, theirs = sorted(ours)[ROUNDS // 2], sorted(bare)[ROUNDS // 2]
    ratio = mine / theirs
    return Row(f"create batches, {name}", f"{mine:.0f}/s", f"{theirs:.0f}/s", f"{ratio:.2f}", ">= 0.5", ratio >= 0.5)


async def _rate(call: Call) -> float:
    left = iter(range(CALLS))

    async def worker() -> None:
        for _ in left:
            await call()

    started = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(AT_ONCE):
            group.create_task(worker())
    return CALLS / (time.perf_counter() - started)


def _handler(insert: Callable[[str, str], Awaitable[object]]) -> grpc.GenericRpcHandler:
    """Takes the request, inserts its block as one row, answers. Nothing is looked at."""

    async def create(request: batches_pb2.CreateBatchRequest, context: object) -> batch_pb2.Batch:
        id = f"batch_{uuid.uuid4().hex}"
        await insert(id, request.aibrix_json)
        return batch_pb2.Batch(id=id, endpoint=request.endpoint, aibrix_json=request.aibrix_json)

    method = grpc.unary_unary_rpc_method_handler(
        create,
        request_deserializer=batches_pb2.CreateBatchRequest.FromString,
        response_serializer=batch_pb2.Batch.SerializeToString,
    )
    return grpc.method_handlers_generic_handler(SERVICE, {"CreateBatch": method})


@asynccontextmanager
async def _bare(url: str, folder: Path) -> AsyncIterator[aio.Channel]:
    insert_into = _sqlite(folder / "bare.db") if url.startswith("sqlite") else _postgres(url)
    async with insert_into as insert:

        def register(host: aio.Server) -> None:
            host.add_generic_rpc_handlers((_handler(insert),))

        async with (
            serving("127.0.0.1:0", [register], [SERVICE]) as address,
            channel(address) as to_bare,
        ):
            yield to_bare


@asynccontextmanager
async def _sqlite(path: Path) -> AsyncIterator[Callable[[str, str], Awaitable[object]]]:
    async with aiosqlite.connect(path, isolation_level=None) as connection:
        for pragma in ("journal_mode=WAL", "synchronous=FULL"):
            await connection.execute(f"PRAGMA {pragma}")
        await connection.execute("CREATE TABLE bare (id TEXT PRIMARY KEY, block TEXT)")
        yield lambda id, block: connection.execute("INSERT INTO bare VALUES (?, ?)", (id, block))


@asynccontextmanager
async def _postgres(url: str) -> AsyncIterator[Callable[[str, str], Awaitable[object]]]:
    async with asyncpg.create_pool(url.replace("+asyncpg", ""), min_size=10, max_size=10) as pool:
        await pool.execute("CREATE TABLE bare (id TEXT PRIMARY KEY, block TEXT)")
        yield lambda id, block: pool.execute("INSERT INTO bare VALUES ($1, $2)", id, block)
