"""The planner: how many queued jobs a second go all the way to a batch, and what it costs when nothing is to be done."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil

from benchmarks import postgres
from benchmarks.support import Row
from brix.metadata.v1 import files_pb2, files_pb2_grpc
from brix.planner.v1 import jobs_pb2, jobs_pb2_grpc
from brix.type.v1 import job_pb2
from services.kit import log as logs
from services.kit.objects import open_store
from services.kit.server import channel
from services.kit.settings import Log, Planner, Settings, Static
from services.kit.sql import Database, create_engine
from services.kit.transactions import Transactions, Tx
from services.planner import server as planner
from services.planner.domain import Job
from services.planner.migrate import migrate
from services.planner.states import JobState
from services.planner.store import jobs, tables

JOBS = 1_000
FINISHED = 10_000
IDLE_S = 20.0
START_S = 30.0
AT_ONCE = 32
LEAST_PER_SECOND = 50
MOST_IDLE = 0.01
LINE = {
    "custom_id": "1",
    "method": "POST",
    "url": "/v1/chat/completions",
    "body": {"model": "m", "messages": [{"role": "user", "content": "hello"}]},
}
SPEC = {
    "engine": {"type": "vllm"},
    "model_source": {"type": "huggingface", "uri": "org/model"},
    "accelerator": {"type": "cpu", "count": 1},
    "supported_endpoints": ["/v1/chat/completions"],
}


async def measure(folder: Path) -> list[Row]:
    logs.configure(Log(level="warning"))
    rows = [await _planned("SQLite", folder / "sqlite", ""), await _idle(folder / "idle")]
    with postgres.server() as url:
        if url is not None:
            rows.insert(1, await _planned("PostgreSQL", folder / "postgres", url))
    return rows


@asynccontextmanager
async def _process(role: str, folder: Path, **env: str) -> AsyncIterator[psutil.Process]:
    """A role by itself, as it is deployed."""
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "services",
        role,
        env={**os.environ, "AIBRIX_DATA_DIR": str(folder), "AIBRIX_LOG__LEVEL": "warning", **env},
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        yield psutil.Process(child.pid)
    finally:
        child.terminate()
        await child.wait()


@asynccontextmanager
async def _roles(folder: Path, url: str) -> AsyncIterator[tuple[Settings, str, str]]:
    """Metadata in a process of its own and a planner in this one; yields their settings and addresses."""
    endpoint = {"name": "one", "base_url": "http://127.0.0.1:9", "capacity": JOBS}
    with socket.create_server(("127.0.0.1", 0)) as free:
        to_metadata = "{}:{}".format(*free.getsockname())
    settings = Settings(
        data_dir=folder,
        metadata_addr=to_metadata,
        planner=Planner(listen="127.0.0.1:0", database_url=url, max_provisions=JOBS),
        provisioner="static",
        static=Static(endpoints=[endpoint]),
    )
    folder.mkdir(parents=True, exist_ok=True)
    async with (
        _process("metadata", folder, AIBRIX_METADATA__LISTEN=to_metadata),
        channel(to_metadata) as there,
    ):
        await asyncio.wait_for(there.channel_ready(), START_S)
        async with planner.run(settings) as to_planner:
            yield settings, to_metadata, to_planner


async def _planned(name: str, folder: Path, url: str) -> Row:
    """From the first job enqueued until the last one has its batch; every input is read, every provision made."""
    async with (
        _roles(folder, url) as (settings, to_metadata, to_planner),
        channel(to_metadata) as files,
        channel(to_planner) as stub,
    ):
        key, data = "files/bench", json.dumps(LINE).encode() + b"\n"
        await open_store(settings).put(key, data)
        request = files_pb2.CreateFileRequest(
            object_key=key, bytes=len(data), project_id="default", filename="in.jsonl", purpose="batch"
        )
        file = (await files_pb2_grpc.FileServiceStub(files).CreateFile(request)).file
        service = jobs_pb2_grpc.JobServiceStub(stub)
        started = time.perf_counter()
        await _enqueue(service, file.id)
        enqueued = time.perf_counter() - started
        await _until_submitted(service)
        seconds = time.perf_counter() - started
    rate, way = JOBS / seconds, f"{JOBS / enqueued:.0f}/s enqueued"
    return Row(
        f"plan {JOBS:,} jobs, {name}", f"{rate:.0f}/s", way, "", f">= {LEAST_PER_SECOND}/s", rate >= LEAST_PER_SECOND
    )


async def _enqueue(service: Any, file_id: str) -> None:
    left = iter(range(JOBS))
    job = job_pb2.Job(
        project_id="default",
        input_dataset=file_id,
        endpoint="/v1/chat/completions",
        completion_window="24h",
        model="m",
        model_template_name="small",
        model_template_version="v1",
        model_template_spec_json=json.dumps(SPEC),
    )

    async def worker() -> None:
        for _ in left:
            await service.EnqueueJob(jobs_pb2.EnqueueJobRequest(job=job))

    async with asyncio.TaskGroup() as group:
        for _ in range(AT_ONCE):
            group.create_task(worker())


async def _until_submitted(service: Any) -> None:
    """Jobs that have no batch yet are in one of these states."""
    early = [job_pb2.Job.QUEUED, job_pb2.Job.PLANNED, job_pb2.Job.RESOURCE_PREPARING, job_pb2.Job.SUBMITTING]
    ended = [job_pb2.Job.FAILED, job_pb2.Job.RESOURCE_FAILED, job_pb2.Job.SUBMIT_FAILED]
    while True:
        waiting = await service.ListJobs(jobs_pb2.ListJobsRequest(project_id="default", page_size=1, statuses=early))
        if not waiting.jobs:
            break
        await asyncio.sleep(0.5)
    failed = await service.ListJobs(jobs_pb2.ListJobsRequest(project_id="default", page_size=1, statuses=ended))
    if failed.jobs:
        raise RuntimeError(f"a job failed: {failed.jobs[0]}")


async def _idle(folder: Path) -> Row:
    """CPU of a planner by itself that has a store full of finished jobs."""
    folder.mkdir(parents=True, exist_ok=True)
    await _fill(Settings(data_dir=folder))
    endpoints = json.dumps([{"name": "one", "base_url": "http://127.0.0.1:9"}])
    env = {"AIBRIX_PLANNER__LISTEN": "127.0.0.1:0", "PROVISIONER": "static", "AIBRIX_STATIC__ENDPOINTS": endpoints}
    async with _process("planner", folder, **env) as process:
        await asyncio.sleep(5.0)  # it starts
        before = sum(process.cpu_times()[:2])
        await asyncio.sleep(IDLE_S)
        share = (sum(process.cpu_times()[:2]) - before) / IDLE_S
    name = f"idle planner, {FINISHED:,} finished jobs"
    return Row(name, f"{share:.2%} of a core", "", "", f"< {MOST_IDLE:.0%}", share < MOST_IDLE)


async def _fill(settings: Settings) -> None:
    engine = create_engine(settings.planner_database_url())
    database = Database(engine)
    await migrate(database)
    then = datetime(2026, 1, 1, tzinfo=UTC)

    async def work(tx: Tx) -> None:
        await jobs.insert_all(tx, [_finished(number, then) for number in range(FINISHED)])
        await tx.run(tables.jobs.update().values(due_time=None))

    await Transactions(database).write(work)
    await engine.dispose()


def _finished(number: int, then: datetime) -> Job:
    time = then + timedelta(seconds=number)
    return Job(
        id=f"job_{number}",
        project_id="default",
        status=JobState.COMPLETED,
        input_dataset="file-1",
        endpoint="/v1/chat/completions",
        completion_window="24h",
        model_template_spec_json=json.dumps(SPEC),
        create_time=time,
        expires_time=time + timedelta(days=1),
        completed_time=time,
    )
