"""Uploading and downloading a large file: rate against a bare aiohttp server, and memory of the whole platform."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import aiohttp
import psutil

from benchmarks import support
from benchmarks.support import Row

SIZE = 190 * 1024 * 1024
MIB = 1024 * 1024

BARE = """
import sys
import tempfile
from pathlib import Path

import uvloop
from aiohttp import web

folder = Path(tempfile.mkdtemp(dir=sys.argv[2]))

async def store(request):
    with (folder / "file").open("wb") as out:
        async for chunk in request.content.iter_any():
            out.write(chunk)
    return web.Response()

async def fetch(request):
    response = web.StreamResponse()
    await response.prepare(request)
    with (folder / "file").open("rb") as source:
        while chunk := source.read(1 << 20):
            await response.write(chunk)
    return response

async def health(request):
    return web.Response()

app = web.Application(client_max_size=1 << 40)
app.add_routes([web.post("/file", store), web.get("/file", fetch), web.get("/health", health)])
uvloop.install()
web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), print=None)
"""


def large_file(path: Path, lines: int = 50_000, size: int = SIZE) -> None:
    """A valid batch file of about `size` bytes."""
    each = size // lines - 170
    support.chat_lines(path, lines, text="x" * each)


async def measure(folder: Path) -> list[Row]:
    source = folder / "large.jsonl"
    large_file(source)
    size = source.stat().st_size
    port = support.free_port()
    (folder / "bare.py").write_text(BARE)
    bare_url = f"http://127.0.0.1:{port}"
    argv = (str(folder / "bare.py"), str(port), str(folder))
    async with (
        support.process(*argv, log=folder / "bare.log", ready=f"{bare_url}/health"),
        support.platform(folder) as server,
        aiohttp.ClientSession() as session,
    ):
        rss = _rss(server.process)
        bare_up, bare_down, up, down = [], [], [], []
        peak = Peak(server.process)
        async with asyncio.TaskGroup() as group:
            watcher = group.create_task(peak.watch())
            for _ in range(3):
                bare_up.append(await timed(lambda: _post(session, f"{bare_url}/file", source)))
                bare_down.append(await timed(lambda: _drain(session, f"{bare_url}/file")))
                up.append(await timed(lambda: support.upload(session, server.url, source)))
                file_id = (await _newest(session, server.url))["id"]
                content = f"{server.url}/v1/files/{file_id}/content"
                down.append(await timed(lambda url=content: _drain(session, url, size)))  # type: ignore[misc]
            watcher.cancel()
    grown = (peak.bytes - rss) / MIB
    return [
        _row("upload", size, up, bare_up),
        _row("download", size, down, bare_down),
        Row("memory of all roles above idle meanwhile", f"{grown:.0f} MiB", "", "", "<= 64 MiB", grown <= 64),
    ]


class Peak:
    """The largest resident memory seen."""

    def __init__(self, process: psutil.Process) -> None:
        self.process = process
        self.bytes = 0

    async def watch(self) -> None:
        while True:
            self.bytes = max(self.bytes, _rss(self.process))
            await asyncio.sleep(0.02)


def _rss(process: psutil.Process) -> int:
    return int(process.memory_info().rss)


def _row(name: str, size: int, ours: list[float], bare: list[float]) -> Row:
    mine, theirs = size / MIB / sorted(ours)[1], size / MIB / sorted(bare)[1]
    ratio = mine / theirs
    title = f"{name} of {size / MIB:.0f} MiB"
    return Row(title, f"{mine:.0f} MiB/s", f"{theirs:.0f} MiB/s", f"{ratio:.2f}", ">= 0.50", ratio >= 0.5)


async def timed(work: Callable[[], Awaitable[object]]) -> float:
    started = time.perf_counter()
    await work()
    return time.perf_counter() - started


async def _post(session: aiohttp.ClientSession, url: str, path: Path) -> None:
    """The same stream as an upload to the platform."""
    async with session.post(url, data=support.form(path)) as answer:
        answer.raise_for_status()


async def _drain(session: aiohttp.ClientSession, url: str, at_least: int = 1) -> None:
    got = 0
    async with session.get(url) as answer:
        answer.raise_for_status()
        async for chunk in answer.content.iter_any():
            got += len(chunk)
    if got < at_least:
        raise RuntimeError(f"{got} of {at_least} bytes arrived")


async def _newest(session: aiohttp.ClientSession, base: str) -> dict[str, str]:
    async with session.get(f"{base}/v1/files?limit=1") as answer:
        found: dict[str, str] = (await answer.json())["data"][0]
    return found
