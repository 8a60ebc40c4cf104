"""`aibrix-batch demo`: a real batch, end to end, on this machine, with the official SDK and a mock engine."""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import openai
import uvloop
from openai.types import Batch
from rich.console import Console

from cli import exits
from cli.embedded import back, embedded, front, logging_to, unless_signalled
from cli.exits import Failed
from cli.progress import Show, Snapshot, follow, showing
from services.kit.lifecycle import remembering_signals
from services.kit.settings import Settings

COUNT = 1000
LATENCY_MS = 60
CONCURRENCY = 64
ENDPOINT: Final = "/v1/chat/completions"
MODEL = "demo-model"
# What a platform team would keep as a template: here the batch brings it along.
BLOCK: dict[str, Any] = {
    "model": MODEL,
    "runtime": {"target": "Local", "options": {}},
    "model_template": {
        "name": "demo",
        "version": "v1",
        "spec": {
            "engine": {"type": "mock", "serve_args": ["--latency-ms", str(LATENCY_MS)]},
            "model_source": {"type": "local", "uri": MODEL},
            "accelerator": {"type": "cpu", "count": 1},
            "supported_endpoints": [ENDPOINT],
        },
    },
    "client": {"max_concurrency": CONCURRENCY, "adaptive_concurrency": False},
}


@dataclass
class Stopwatch:
    """From the first request that the runner sent until the batch ended."""

    show: Show
    started: float = 0.0
    ended: float = 0.0

    def __call__(self, now: Snapshot) -> None:
        if not self.started and (now.in_flight or now.done):
            self.started = time.monotonic()
        self.ended = time.monotonic()
        self.show(now)


@dataclass(frozen=True, kw_only=True)
class Stage:
    """What a demonstration has: a server in this process, a folder that is deleted at the end, and a voice."""

    name: str
    folder: Path
    client: openai.AsyncOpenAI
    runner: str
    console: Console

    def say(self, text: str) -> None:
        say(self.console, f"{self.name}: {text}")

    def show(self, text: str) -> None:
        say(self.console, f"  {text}")

    async def run(
        self,
        requests: Iterable[dict[str, Any]],
        endpoint: Literal["/v1/chat/completions", "/v1/completions"],
        block: dict[str, Any],
        engine: str,
    ) -> tuple[Batch, list[dict[str, Any]], float]:
        """The batch that ended, its output lines, and the seconds from the first request on. Error: Failed."""
        source = self.folder / "input.jsonl"
        lines = [json.dumps(request) + "\n" for request in requests]
        source.write_text("".join(lines))
        self.say(f"uploading {len(lines)} requests to {self.client.base_url}")
        with source.open("rb") as data:
            uploaded = await self.client.files.create(file=data, purpose="batch")
        batch = await self.client.batches.create(
            input_file_id=uploaded.id,
            endpoint=endpoint,
            completion_window="24h",
            extra_body={"aibrix": block},
        )
        self.say(f"created {batch.id}; the Local runtime starts {engine} for it")
        with showing(self.console) as show:
            watch = Stopwatch(show)
            batch = await follow(self.client, self.runner, batch.id, watch)
        if batch.status != "completed" or batch.output_file_id is None:
            raise Failed(f"the batch ended as {batch.status}: {batch.errors}")
        content = await self.client.files.content(batch.output_file_id)
        return batch, [json.loads(line) for line in content.text.splitlines()], watch.ended - watch.started


Play = Callable[[Stage], Awaitable[None]]


def perform(name: str, base: Settings, play: Play) -> int:
    """Run `play` against a server of its own; its exit code. Error: Failed, after the end of the server's log."""
    console = Console()
    with tempfile.TemporaryDirectory(prefix="aibrix-demo-") as temporary:
        folder = Path(temporary)
        settings = embedded(base, folder / "data", drain_s=1.0)
        log = folder / "server.log"
        with logging_to(log, settings), remembering_signals():
            try:
                finished = uvloop.run(_perform(name, folder, settings, console, play))
            except (KeyboardInterrupt, asyncio.CancelledError):  # a second Ctrl-C
                finished = False
            except Exception as error:
                console.print(log.read_text()[-4000:], markup=False, highlight=False, soft_wrap=True)
                raise Failed(f"{name}: {exits.innermost(error)}") from error
    return exits.OK if finished else exits.INTERRUPTED


async def _perform(name: str, folder: Path, settings: Settings, console: Console, play: Play) -> bool:
    say(console, f"{name}: starting metadata, planner, console, runner and gateway in this process")

    async def played(stage: Stage) -> bool:
        await play(stage)
        return True

    async with back(settings) as settings, front(settings) as (client, runner):
        stage = Stage(name=name, folder=folder, client=client, runner=runner, console=console)
        return await unless_signalled(played(stage)) is not None


def run(base: Settings) -> int:
    return perform("demo", base, _play)


async def _play(stage: Stage) -> None:
    requests = (request(number) for number in range(COUNT))
    batch, answers, seconds = await stage.run(requests, ENDPOINT, BLOCK, "a mock engine")
    times = Counter(answer["custom_id"] for answer in answers)
    if times != Counter(f"request-{number}" for number in range(COUNT)):
        raise Failed("the output does not hold every custom_id exactly once")
    stage.say(f"the output holds each of the {COUNT} custom_ids exactly once; three of them:")
    for answer in answers[:: COUNT // 3][:3]:
        text = answer["response"]["body"]["choices"][0]["message"]["content"]
        stage.show(f"{answer['custom_id']}: {text[:80]}")
    stage.say(f"{counted(batch)}, {COUNT / seconds:.0f} req/s")
    check_none_failed(batch)


def request(number: int) -> dict[str, Any]:
    """One line of the input file."""
    body = {"model": MODEL, "messages": [{"role": "user", "content": f"Tell me about the number {number}."}]}
    return {"custom_id": f"request-{number}", "method": "POST", "url": ENDPOINT, "body": body}


def counted(batch: Batch) -> str:
    counts = batch.request_counts
    assert counts is not None
    return f"{counts.completed}/{counts.total} completed, {counts.failed} failed"


def check_none_failed(batch: Batch) -> None:
    """Error: Failed."""
    if batch.request_counts is not None and batch.request_counts.failed:
        raise Failed(f"{batch.request_counts.failed} requests failed")


def say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)
