"""The platform as real processes that a test may kill, and an engine in the test's own process that sees everything."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sqlite3
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import orjson
from aiohttp import web
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.kit.lines import LineSet

PATIENCE_S = 60.0


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


async def eventually(
    holds: Callable[[], Awaitable[bool]], what: str, details: Callable[[], str] = str, seconds: float = PATIENCE_S
) -> None:
    """Ask until it holds; the deadline is for a broken platform, never the normal way out."""
    try:
        async with asyncio.timeout(seconds):
            while not await holds():
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(f"not within {seconds} s: {what} {details()}") from None


class Witness:
    """An OpenAI-compatible engine that remembers every request, in order. `reached(n)` waits for the n-th."""

    def __init__(self, latency_s: float) -> None:
        self.latency_s = latency_s
        self.seen: list[str] = []
        self.url = ""
        self._news = asyncio.Condition()

    async def answer(self, request: web.Request) -> web.Response:
        body = orjson.loads(await request.read())
        text = body["messages"][0]["content"]
        async with self._news:
            self.seen.append(text)
            self._news.notify_all()
        await asyncio.sleep(self.latency_s)  # the work of the engine
        usage = {"prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5}
        choice = {"index": 0, "message": {"role": "assistant", "content": text.upper()}, "finish_reason": "stop"}
        return web.json_response({"id": "c", "object": "chat.completion", "choices": [choice], "usage": usage})

    async def reached(self, count: int) -> None:
        async with asyncio.timeout(PATIENCE_S), self._news:
            await self._news.wait_for(lambda: len(self.seen) >= count)

    def times(self) -> Counter[str]:
        return Counter(self.seen)


@asynccontextmanager
async def witness(latency_s: float = 0.02) -> AsyncIterator[Witness]:
    engine = Witness(latency_s)
    app = web.Application()
    app.router.add_post("/v1/chat/completions", engine.answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    port = free_port()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    engine.url = f"http://127.0.0.1:{port}"
    try:
        yield engine
    finally:
        await runner.cleanup()


class Suite:
    """Roles as processes on fixed ports over one folder, so that one that was killed can be started again."""

    def __init__(self, folder: Path, **env: str) -> None:
        self.folder = folder
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        listens = {role: f"127.0.0.1:{free_port()}" for role in ("metadata", "planner", "console", "runner")}
        self.listens = listens | {"gateway": f"127.0.0.1:{self.port}"}
        ours = {name: value for name, value in os.environ.items() if not name.startswith("AIBRIX_")}
        self.env = ours | {
            "AIBRIX_DATA_DIR": str(folder / "data"),
            "AIBRIX_METADATA_ADDR": listens["metadata"],
            "AIBRIX_PLANNER_ADDR": listens["planner"],
            "AIBRIX_CONSOLE_ADDR": listens["console"],
            "AIBRIX_EXTERNAL__ALLOWED_HOSTS": "*",
            "AIBRIX_METADATA__LEASE_TTL_S": "2",
        }
        self.env |= {f"AIBRIX_{role.upper()}__LISTEN": address for role, address in listens.items()}
        self.env |= env
        self.running: dict[str, asyncio.subprocess.Process] = {}

    async def start(self, role: str) -> None:
        """`role` is one of the five, or `all`. Returns when it serves."""
        argv = [sys.executable, "-m", "cli", "serve", "--host", "127.0.0.1", "--port", str(self.port)]
        argv += [] if role == "all" else ["--role", role]
        with (self.folder / f"{role}.log").open("ab") as log:
            self.running[role] = await asyncio.create_subprocess_exec(*argv, env=self.env, stdout=log, stderr=log)
        await eventually(lambda: self.serves(role), f"{role} serves", lambda: self.log(role)[-3000:])

    async def serves(self, role: str) -> bool:
        child = self.running[role]
        assert child.returncode is None, self.log(role)[-3000:]
        if role in ("all", "gateway"):
            return await self._answers(f"{self.url}/{'readyz' if role == 'all' else 'healthz'}")
        async with aio.insecure_channel(self.listens[role]) as channel:
            try:
                stub = health_pb2_grpc.HealthStub(channel)
                answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=1)
            except aio.AioRpcError:
                return False
        return answer.status == health_pb2.HealthCheckResponse.SERVING

    async def _answers(self, url: str) -> bool:
        async with aiohttp.ClientSession() as session:
            try:
                async with session.get(url) as answer:
                    return answer.status == 200
            except aiohttp.ClientError:
                return False

    def log(self, role: str) -> str:
        return (self.folder / f"{role}.log").read_text(errors="replace")

    async def kill(self, role: str) -> None:
        child = self.running.pop(role)
        child.send_signal(signal.SIGKILL)
        await child.wait()

    async def stop(self) -> dict[str, int]:
        """SIGTERM to all, in reverse order of start; their exit codes."""
        codes = {}
        for role, child in reversed(list(self.running.items())):
            if child.returncode is None:
                child.terminate()
            async with asyncio.timeout(PATIENCE_S):
                codes[role] = await child.wait()
        self.running.clear()
        return codes

    def committed(self, batch_id: str) -> LineSet:
        """Lines whose commit was acknowledged or at least durable, read from the database file itself."""
        with sqlite3.connect(self.folder / "data" / "metadata.db") as connection:
            row = connection.execute("SELECT committed FROM batch_lines WHERE batch_id = ?", (batch_id,)).fetchone()
        return LineSet.from_bytes(row[0]) if row and row[0] else LineSet()


@asynccontextmanager
async def suite(folder: Path, *roles: str, **env: str) -> AsyncIterator[Suite]:
    platform = Suite(folder, **env)
    try:
        for role in roles:
            await platform.start(role)
        yield platform
    finally:
        await platform.stop()
