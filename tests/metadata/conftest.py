"""A metadata role that really listens, with stubs, an object store and a clock that the test moves."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
import pytest
import sqlalchemy as sa

from brix.metadata.v1 import (
    batches_pb2,
    batches_pb2_grpc,
    files_pb2,
    files_pb2_grpc,
    leases_pb2,
    leases_pb2_grpc,
    runners_pb2_grpc,
    uploads_pb2_grpc,
)
from brix.type.v1 import batch_pb2, file_pb2
from services.kit.lines import LineSet
from services.kit.objects import ObjectStore, open_store
from services.kit.server import channel
from services.kit.settings import Settings
from services.kit.sql import EPOCH, MICROSECOND
from services.metadata.server import run

CHAT = "/v1/chat/completions"
State = batch_pb2.Batch


class Clock:
    """Stands still until the test moves it."""

    def __init__(self) -> None:
        self.time = datetime(2026, 1, 1, tzinfo=UTC)

    def __call__(self) -> sa.ColumnElement[int]:
        return sa.literal((self.time - EPOCH) // MICROSECOND, sa.BigInteger)

    def advance(self, seconds: float) -> None:
        self.time += timedelta(seconds=seconds)


def a_line(number: int, **overrides: Any) -> dict[str, Any]:
    body = {"model": "m", "messages": [{"role": "user", "content": f"question {number}"}]}
    return {"custom_id": f"r{number}", "method": "POST", "url": CHAT, "body": body} | overrides


def some_lines(count: int) -> bytes:
    return b"".join(orjson.dumps(a_line(number)) + b"\n" for number in range(count))


async def eventually(ask: Callable[[], Awaitable[Any]], seconds: float = 20.0) -> Any:
    """What `ask` answers, once it is true."""
    until = time.monotonic() + seconds
    while True:
        answer = await ask()
        if answer:
            return answer
        assert time.monotonic() < until, "it did not happen in time"
        await asyncio.sleep(0.01)


@dataclass
class Metadata:
    settings: Settings
    address: str
    clock: Clock
    store: ObjectStore
    files: Any
    uploads: Any
    batches: Any
    leases: Any
    runners: Any

    async def file(self, data: bytes, **fields: Any) -> file_pb2.File:
        key = f"files/{uuid.uuid4().hex}"
        await self.store.put(key, data)
        asked = {"project_id": "default", "filename": "in.jsonl", "purpose": "batch"} | fields
        request = files_pb2.CreateFileRequest(object_key=key, bytes=len(data), **asked)
        return (await self.files.CreateFile(request)).file

    async def batch(self, **fields: Any) -> batch_pb2.Batch:
        asked = {"project_id": "default", "endpoint": CHAT, "completion_window": "24h"} | fields
        return await self.batches.CreateBatch(batches_pb2.CreateBatchRequest(**asked))

    async def get(self, id: str) -> batch_pb2.Batch:
        return await self.batches.GetBatch(batches_pb2.GetBatchRequest(project_id="default", id=id))

    async def cancel(self, id: str) -> batch_pb2.Batch:
        return await self.batches.CancelBatch(batches_pb2.CancelBatchRequest(project_id="default", id=id))

    async def reaches(self, id: str, *states: int) -> batch_pb2.Batch:
        async def there() -> batch_pb2.Batch | None:
            batch = await self.get(id)
            return batch if batch.state in states else None

        return await eventually(there)

    async def running(self, count: int = 10, **fields: Any) -> batch_pb2.Batch:
        """A validated batch of `count` lines."""
        file = await self.file(some_lines(count))
        batch = await self.batch(input_file_id=file.id, **fields)
        return await self.reaches(batch.id, State.IN_PROGRESS)

    async def acquire(self, runner_id: str = "runner", wait_ms: int = 0, **fields: Any) -> leases_pb2.Lease | None:
        asked = {"targets": ["External"], "protocol_version": 1} | fields
        request = leases_pb2.AcquireLeaseRequest(runner_id=runner_id, wait_ms=wait_ms, **asked)
        answer = await self.leases.AcquireLease(request)
        return answer.lease if answer.HasField("lease") else None

    async def leased(self, count: int = 10, **fields: Any) -> leases_pb2.Lease:
        batch = await self.running(count, **fields)
        lease = await self.acquire(batch_id=batch.id)
        assert lease is not None
        return lease

    async def renew(self, lease: leases_pb2.Lease) -> leases_pb2.LeaseStatus:
        return await self.leases.RenewLease(
            leases_pb2.RenewLeaseRequest(batch_id=lease.batch.id, token=lease.token, phase="dispatching", in_flight=3)
        )

    async def commit(
        self, lease: leases_pb2.Lease, sequence: int, good: list[int], bad: list[int] | None = None, tokens: int = 0
    ) -> leases_pb2.CommitSegmentResponse:
        return await self.leases.CommitSegment(a_commit(lease, sequence, good, bad or [], tokens))

    async def finalize(self, lease: leases_pb2.Lease) -> leases_pb2.LeaseStatus:
        request = leases_pb2.BeginFinalizeRequest(batch_id=lease.batch.id, token=lease.token)
        return await self.leases.BeginFinalize(request)

    async def finish(
        self, lease: leases_pb2.Lease, outcome: int, output: int = 0, error: int = 0, **fields: Any
    ) -> batch_pb2.Batch:
        files = {
            kind: await self.result(lease, kind, count)
            for kind, count in (("output", output), ("error", error))
            if count
        }
        request = leases_pb2.FinishBatchRequest(
            batch_id=lease.batch.id, token=lease.token, outcome=outcome, **files, **fields
        )
        return await self.leases.FinishBatch(request)

    async def result(self, lease: leases_pb2.Lease, kind: str, count: int) -> leases_pb2.ResultFile:
        key, data = f"results/{lease.batch.id}/{lease.token}/{kind}.jsonl", b"{}\n" * count
        await self.store.put(key, data)
        return leases_pb2.ResultFile(object_key=key, bytes=len(data), line_count=count)

    async def completed(self, count: int = 3, **fields: Any) -> batch_pb2.Batch:
        """A batch that went all the way."""
        lease = await self.leased(count, **fields)
        segment = a_commit(lease, 1, list(range(count)), [], 0)
        await self.store.put(segment.segment.output_key, b"{}\n" * count)
        await self.leases.CommitSegment(segment)
        await self.finalize(lease)
        return await self.finish(lease, State.COMPLETED, output=count)

    async def keys(self, prefix: str) -> list[str]:
        return sorted([found.key async for found in self.store.list(prefix)])


def a_commit(
    lease: leases_pb2.Lease, sequence: int, good: list[int], bad: list[int], tokens: int = 0
) -> leases_pb2.CommitSegmentRequest:
    lines = LineSet.of([*good, *bad])
    first = lines.min()
    base = f"segments/{lease.batch.id}/{lease.token}-{sequence}"
    return leases_pb2.CommitSegmentRequest(
        batch_id=lease.batch.id,
        segment=leases_pb2.Segment(
            token=lease.token,
            sequence=sequence,
            output_key=f"{base}.out.jsonl" if good else None,
            error_key=f"{base}.err.jsonl" if bad else None,
            completed_count=len(good),
            failed_count=len(bad),
            output_bytes=3 * len(good),
            error_bytes=3 * len(bad),
        ),
        lines=leases_pb2.LineSet(first=first, bits=lines.to_bytes(first)),
        usage=batch_pb2.Usage(input_tokens=tokens, total_tokens=tokens),
    )


@asynccontextmanager
async def serving_metadata(settings: Settings, clock: Clock | None = None) -> AsyncIterator[Metadata]:
    clock = clock or Clock()
    async with AsyncExitStack() as stack:
        address = await stack.enter_async_context(run(settings, clock))
        ch = await stack.enter_async_context(channel(address))
        yield Metadata(
            settings,
            address,
            clock,
            open_store(settings),
            files_pb2_grpc.FileServiceStub(ch),
            uploads_pb2_grpc.UploadServiceStub(ch),
            batches_pb2_grpc.BatchServiceStub(ch),
            leases_pb2_grpc.LeaseServiceStub(ch),
            runners_pb2_grpc.RunnerRegistryServiceStub(ch),
        )


@pytest.fixture
async def metadata(make_settings: Callable[..., Settings], database_url: str) -> AsyncIterator[Metadata]:
    """On both databases, with one default endpoint."""
    settings = make_settings(
        metadata={"database_url": database_url, "janitor_interval_s": 0.05}, default_endpoint="http://127.0.0.1:9"
    )
    async with serving_metadata(settings) as served:
        yield served
