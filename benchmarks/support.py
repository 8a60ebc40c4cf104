"""What every measurement needs: real processes on loopback, an HTTP client, a table."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import orjson
import psutil

READY_S = 60.0
UPLOAD_PIECE = 256 * 1024


@dataclass(frozen=True)
class Row:
    """One line of the table: what was measured, against what, and the goal."""

    name: str
    value: str
    bare: str
    ratio: str
    goal: str
    met: bool


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@contextmanager
def scratch() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="aibrix-bench-") as name:
        yield Path(name)


@asynccontextmanager
async def process(*argv: str, log: Path, ready: str, **env: str) -> AsyncIterator[psutil.Process]:
    """A child process, from when GET `ready` answers 200 until the block ends; then SIGTERM and a wait."""
    with log.open("wb") as out:
        child = await asyncio.create_subprocess_exec(
            sys.executable, *argv, env={**os.environ, **env}, stdout=out, stderr=out
        )
    try:
        await until_ready(ready, lambda: child.returncode is None, log)
        yield psutil.Process(child.pid)
    finally:
        if child.returncode is None:
            child.terminate()
        await child.wait()


async def until_ready(url: str, alive: Callable[[], bool], log: Path) -> None:
    async with asyncio.timeout(READY_S), aiohttp.ClientSession() as session:
        while True:
            try:
                async with session.get(url) as answer:
                    if answer.status == 200:
                        return
            except aiohttp.ClientError:
                if not alive():
                    raise RuntimeError(f"the process ended early: {log.read_text()[-2000:]}") from None
            await asyncio.sleep(0.02)


@dataclass(frozen=True)
class Platform:
    """A running all-in-one server."""

    url: str
    metadata: str
    process: psutil.Process


@asynccontextmanager
async def platform(folder: Path, **env: str) -> AsyncIterator[Platform]:
    port, metadata = free_port(), f"127.0.0.1:{free_port()}"
    argv = ("-m", "cli", "serve", "--data-dir", str(folder / "data"), "--port", str(port))
    url = f"http://127.0.0.1:{port}"
    settings = {"AIBRIX_METADATA__LISTEN": metadata} | env
    async with process(*argv, log=folder / "serve.log", ready=f"{url}/readyz", **settings) as child:
        yield Platform(url, metadata, child)


@asynccontextmanager
async def engine(folder: Path, *options: str) -> AsyncIterator[str]:
    """The mock engine in its own process; its URL."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    argv = ("-m", "cli", "mock-engine", "--port", str(port), *options)
    async with process(*argv, log=folder / "engine.log", ready=f"{url}/health"):
        yield url


def chat_lines(path: Path, count: int, text: str = "Say hello to number") -> None:
    """A batch file of `count` small chat requests."""
    with path.open("wb") as out:
        for number in range(count):
            body = {"model": "mock", "messages": [{"role": "user", "content": f"{text} {number}"}], "max_tokens": 8}
            line = {"custom_id": f"r-{number}", "method": "POST", "url": "/v1/chat/completions", "body": body}
            out.write(orjson.dumps(line) + b"\n")


def form(path: Path) -> aiohttp.MultipartWriter:
    """What the SDK sends for `files.create(file=path, purpose="batch")`, read in large pieces."""

    async def pieces() -> AsyncIterator[bytes]:
        with path.open("rb") as source:
            while piece := source.read(UPLOAD_PIECE):
                yield piece

    writer = aiohttp.MultipartWriter("form-data")
    writer.append("batch").set_content_disposition("form-data", name="purpose")
    part = writer.append(pieces(), {"Content-Type": "application/octet-stream"})
    part.set_content_disposition("form-data", name="file", filename=path.name)
    return writer


async def upload(session: aiohttp.ClientSession, base: str, path: Path) -> str:
    async with session.post(f"{base}/v1/files", data=form(path)) as answer:
        body = await answer.json()
        if answer.status != 200:
            raise RuntimeError(f"upload failed: {body}")
    return str(body["id"])


async def create(session: aiohttp.ClientSession, base: str, file_id: str, engine_url: str, **client: object) -> str:
    payload = {
        "input_file_id": file_id,
        "endpoint": "/v1/chat/completions",
        "completion_window": "24h",
        "aibrix": {"runtime": {"target": "External", "options": {"base_url": engine_url}}, "client": client},
    }
    async with session.post(f"{base}/v1/batches", json=payload) as answer:
        body = await answer.json()
        if answer.status != 200:
            raise RuntimeError(f"create failed: {body}")
    return str(body["id"])


async def until_terminal(
    session: aiohttp.ClientSession, base: str, batch_id: str, every: float = 0.05, taken: list[float] | None = None
) -> dict[str, object]:
    """The batch when it has ended; looks every so many seconds, and appends the seconds that each look took."""
    while True:
        started = time.perf_counter()
        async with session.get(f"{base}/v1/batches/{batch_id}") as answer:
            batch: dict[str, object] = await answer.json()
        if taken is not None:
            taken.append(time.perf_counter() - started)
        if batch["status"] in ("completed", "failed", "expired", "cancelled"):
            if batch["status"] != "completed":
                raise RuntimeError(f"the batch did not complete: {batch}")
            return batch
        await asyncio.sleep(every)


def table(rows: list[Row]) -> str:
    head = ("measure", "platform", "bare", "ratio", "goal", "met")
    cells = [head, *((r.name, r.value, r.bare, r.ratio, r.goal, "yes" if r.met else "NO") for r in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    lines = ["| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) + " |" for row in cells]
    lines.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    return "\n".join(lines)
