"""A real metadata server, a real object store and real runners, for tests that look at what users get."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import sqlalchemy as sa

from brix.metadata.v1 import batches_pb2 as batches_pb
from brix.metadata.v1 import batches_pb2_grpc, files_pb2_grpc, leases_pb2_grpc, runners_pb2_grpc
from brix.metadata.v1 import files_pb2 as files_pb
from brix.metadata.v1 import leases_pb2 as leases_pb
from brix.metadata.v1 import runners_pb2 as runners_pb
from brix.runner.v1 import runner_pb2, runner_pb2_grpc
from brix.type.v1 import batch_pb2
from services.kit.errors import Unavailable
from services.kit.objects import ObjectStore, open_store
from services.kit.runtime_settings import External
from services.kit.server import channel
from services.kit.settings import Metadata, Runner, Settings
from services.kit.sql import db_now
from services.metadata.server import run as run_metadata
from services.runner.server import run as run_runner

State = batch_pb2.Batch.State
LIVE = (State.VALIDATING, State.IN_PROGRESS, State.FINALIZING, State.CANCELLING)
CHAT = "/v1/chat/completions"


def settings_for(folder: Path, *, ttl_s: float = 10.0, **runner: Any) -> Settings:
    defaults = {"listen": "127.0.0.1:0", "segment_seconds": 0.05, "drain_s": 10.0}
    return Settings(
        data_dir=folder,
        default_endpoint="http://127.0.0.1:9",  # nobody is there
        metadata=Metadata(listen="127.0.0.1:0", lease_ttl_s=ttl_s),
        runner=Runner(**(defaults | runner)),
        external=External(allowed_hosts="*"),
    )


def a_line(number: int, *, url: str = CHAT, text: str | None = None) -> bytes:
    messages = [{"role": "user", "content": text or f"question {number}"}]
    body = {"model": "mock", "messages": messages, "max_tokens": 8}
    return orjson.dumps({"custom_id": f"line-{number}", "method": "POST", "url": url, "body": body}) + b"\n"


def some_lines(count: int) -> bytes:
    return b"".join(a_line(number) for number in range(count))


def client(**values: Any) -> dict[str, Any]:
    """`aibrix.client` with quick retries."""
    retry = {"max_retries": 3, "base_delay_seconds": 0.01, "max_delay_seconds": 0.02} | values.pop("retry", {})
    return {"retry_policy": retry} | values


async def eventually(found: Callable[[], Any], seconds: float = 20.0) -> Any:
    """What `found` gives once it is true; it may be async."""
    deadline = time.monotonic() + seconds
    while True:
        result = found()
        if isinstance(result, Awaitable):
            result = await result
        if result:
            return result
        assert time.monotonic() < deadline, "it did not happen in time"
        await asyncio.sleep(0.01)


@dataclass
class Results:
    """What stands in the two files."""

    output: list[dict[str, Any]]
    error: list[dict[str, Any]]

    def ids(self) -> Counter[str]:
        return Counter(line["custom_id"] for line in [*self.output, *self.error])

    def codes(self) -> Counter[str]:
        return Counter(line["error"]["code"] if line["error"] else "http" for line in self.error)


class Clock:
    """The database's clock, which a test may put forward."""

    def __init__(self) -> None:
        self.ahead_s = 0

    def __call__(self) -> sa.ColumnElement[int]:
        return db_now() + self.ahead_s * 1_000_000  # type: ignore[return-value]


class Platform:
    def __init__(self, settings: Settings, clock: Clock, metadata: Any) -> None:
        self.settings = settings
        self.clock = clock
        self.store: ObjectStore = open_store(settings)
        self.batches = batches_pb2_grpc.BatchServiceStub(metadata)
        self.files = files_pb2_grpc.FileServiceStub(metadata)
        self.leases = leases_pb2_grpc.LeaseServiceStub(metadata)
        self.registry = runners_pb2_grpc.RunnerRegistryServiceStub(metadata)

    async def submit(self, lines: bytes, *, window: str = "24h", **aibrix: Any) -> str:
        """Create a batch; its id."""
        key = f"files/{time.monotonic_ns()}"
        await self.store.put(key, lines)
        request = files_pb.CreateFileRequest(
            project_id="default", object_key=key, filename="in.jsonl", purpose="batch", bytes=len(lines)
        )
        file = (await self.files.CreateFile(request)).file
        batch = await self.batches.CreateBatch(
            batches_pb.CreateBatchRequest(
                project_id="default",
                input_file_id=file.id,
                endpoint=CHAT,
                completion_window=window,
                aibrix_json=orjson.dumps(aibrix).decode() if aibrix else None,
            )
        )
        return batch.id

    async def external(self, lines: bytes, url: str, *, window: str = "24h", **values: Any) -> str:
        """Create a batch for the endpoint at `url`, with `values` for `aibrix.client`."""
        runtime = {"target": "External", "options": {"base_url": url}}
        return await self.submit(lines, window=window, runtime=runtime, client=client(**values))

    async def get(self, id: str) -> batch_pb2.Batch:
        return await self.batches.GetBatch(batches_pb.GetBatchRequest(project_id="default", id=id))

    async def cancel(self, id: str) -> None:
        await self.batches.CancelBatch(batches_pb.CancelBatchRequest(project_id="default", id=id))

    async def ended(self, id: str, seconds: float = 30.0) -> batch_pb2.Batch:
        async def terminal() -> batch_pb2.Batch | None:
            try:
                batch = await self.get(id)
            except Unavailable:
                return None
            return None if batch.state in LIVE else batch

        return await eventually(terminal, seconds)

    async def committed(self, id: str, count: int) -> None:
        """Wait until so many lines are committed."""

        async def enough() -> bool:
            batch = await self.get(id)
            return batch.completed_count + batch.failed_count >= count

        await eventually(enough)

    async def results(self, batch: batch_pb2.Batch) -> Results:
        return Results(await self._lines(batch.output_file_id), await self._lines(batch.error_file_id))

    async def _lines(self, file_id: str) -> list[dict[str, Any]]:
        if not file_id:
            return []
        file = await self.files.GetFile(files_pb.GetFileRequest(project_id="default", id=file_id))
        data = await self.store.get(file.object_key)
        assert len(data) == file.bytes
        return [orjson.loads(line) for line in data.splitlines()]

    async def lease(self, id: str, runner_id: str = "test", wait_ms: int = 15_000) -> leases_pb.Lease:
        """Take the batch as a runner would."""
        response = await self.leases.AcquireLease(
            leases_pb.AcquireLeaseRequest(
                runner_id=runner_id, targets=["External", "Local"], wait_ms=wait_ms, protocol_version=1, batch_id=id
            ),
            timeout=wait_ms / 1000 + 5,
        )
        assert response.HasField("lease")
        return response.lease

    async def models(self) -> list[str]:
        listed = await self.registry.ListModels(runners_pb.ListModelsRequest())
        return [model.id for model in listed.models]

    @asynccontextmanager
    async def with_settings(self, **changes: Any) -> AsyncIterator[Platform]:
        """Another platform beside this one."""
        folder = self.settings.data_dir / "other"
        changes |= {"data_dir": folder}
        async with platform(self.settings.model_copy(update=changes)) as other:
            yield other

    @asynccontextmanager
    async def runner(self, *, metadata_addr: str = "", **changes: Any) -> AsyncIterator[Any]:
        """A runner; its status stub. Leaving the block drains it."""
        update = {
            "runner": self.settings.runner.model_copy(update=changes),
            "metadata_addr": metadata_addr or self.settings.metadata_addr,
        }
        async with (
            run_runner(self.settings.model_copy(update=update)) as address,
            channel(address) as to_runner,
        ):
            yield runner_pb2_grpc.RunnerServiceStub(to_runner)


@asynccontextmanager
async def platform(settings: Settings) -> AsyncIterator[Platform]:
    clock = Clock()
    async with AsyncExitStack() as stack:
        address = await stack.enter_async_context(run_metadata(settings, clock))
        metadata = await stack.enter_async_context(channel(address))
        yield Platform(settings.model_copy(update={"metadata_addr": address}), clock, metadata)


async def execution_of(status: Any) -> runner_pb2.Execution | None:
    """The only execution of a runner; None before there is one."""
    answer = await status.GetStatus(runner_pb2.GetStatusRequest())
    return answer.executions[0] if answer.executions else None


def counts(batch: batch_pb2.Batch) -> tuple[int, int, int]:
    return batch.total_count, batch.completed_count, batch.failed_count


def custom_ids(recorded: Iterable[Any]) -> Counter[str]:
    """Which lines an engine saw, by the question that `a_line` asks."""
    return Counter(
        orjson.loads(request.body)["messages"][0]["content"].replace("question ", "line-") for request in recorded
    )
