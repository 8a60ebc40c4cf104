"""`aibrix-batch demo`: a real batch, end to end, on this machine, with the official SDK and a mock engine."""

from __future__ import annotations

import json
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import openai
import uvloop
from rich.console import Console

from cli import exits
from cli.embedded import back, embedded, front, logging_to, unless_signalled
from cli.exits import Failed
from cli.progress import Show, Snapshot, follow, showing
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


def run(base: Settings) -> int:
    console = Console()
    with tempfile.TemporaryDirectory(prefix="aibrix-demo-") as name:
        folder = Path(name)
        settings = embedded(base, folder / "data", drain_s=1.0)
        log = folder / "server.log"
        with logging_to(log, settings):
            try:
                finished = uvloop.run(_run(folder, settings, console))
            except KeyboardInterrupt:
                finished = None
            except Exception as error:
                console.print(log.read_text()[-4000:], markup=False, highlight=False, soft_wrap=True)
                raise Failed(f"demo: {exits.innermost(error)}") from error
    return exits.OK if finished else exits.INTERRUPTED


async def _run(folder: Path, settings: Settings, console: Console) -> bool:
    _say(console, "demo: starting metadata, planner, console, runner and gateway in this process")
    async with back(settings) as settings, front(settings) as (client, runner):
        return await unless_signalled(_batch(folder, client, runner, console)) is not None


async def _batch(folder: Path, client: openai.AsyncOpenAI, runner: str, console: Console) -> bool:
    source = folder / "input.jsonl"
    source.write_text("".join(json.dumps(request(number)) + "\n" for number in range(COUNT)))
    _say(console, f"demo: uploading {COUNT} requests to {client.base_url}")
    with source.open("rb") as data:
        uploaded = await client.files.create(file=data, purpose="batch")
    batch = await client.batches.create(
        input_file_id=uploaded.id,
        endpoint=ENDPOINT,
        completion_window="24h",
        extra_body={"aibrix": BLOCK},
    )
    _say(console, f"demo: created {batch.id}; the Local runtime starts a mock engine for it")
    with showing(console) as show:
        watch = Stopwatch(show)
        batch = await follow(client, runner, batch.id, watch)
    if batch.status != "completed" or batch.output_file_id is None:
        raise Failed(f"the batch ended as {batch.status}: {batch.errors}")
    content = await client.files.content(batch.output_file_id)
    check(console, content.text.splitlines())
    counts = batch.request_counts
    assert counts is not None
    rate = COUNT / (watch.ended - watch.started)
    _say(console, f"demo: {counts.completed}/{counts.total} completed, {counts.failed} failed, {rate:.0f} req/s")
    if counts.failed:
        raise Failed(f"{counts.failed} requests failed")
    return True


def request(number: int) -> dict[str, Any]:
    """One line of the input file."""
    body = {"model": MODEL, "messages": [{"role": "user", "content": f"Tell me about the number {number}."}]}
    return {"custom_id": f"request-{number}", "method": "POST", "url": ENDPOINT, "body": body}


def check(console: Console, lines: list[str]) -> None:
    """Every custom_id once, and three lines to look at. Error: Failed."""
    answers = [json.loads(line) for line in lines]
    times = Counter(answer["custom_id"] for answer in answers)
    if times != Counter(f"request-{number}" for number in range(COUNT)):
        raise Failed("the output does not hold every custom_id exactly once")
    _say(console, f"demo: the output holds each of the {COUNT} custom_ids exactly once; three of them:")
    for answer in answers[:: COUNT // 3][:3]:
        text = answer["response"]["body"]["choices"][0]["message"]["content"]
        _say(console, f"  {answer['custom_id']}: {text[:80]}")


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)
