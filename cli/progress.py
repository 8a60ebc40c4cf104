"""How far a batch is: asked from the server while it runs, and shown as a bar, or as a few lines where there is no terminal."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import openai
from openai.types import Batch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from brix.runner.v1 import runner_pb2, runner_pb2_grpc
from services.kit.errors import ServiceError
from services.kit.server import channel

POLL_S = 0.1
PACE_S = 3.0
TERMINAL = frozenset({"completed", "failed", "expired", "cancelled"})
LINE_EVERY_S = 5.0
LINE_EVERY_PART = 0.1


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    phase: str
    total: int
    done: int = 0
    failed: int = 0
    in_flight: int = 0
    rate: float = 0.0

    def text(self) -> str:
        failed = f"  {self.failed} failed" if self.failed else ""
        return f"{self.done}/{self.total}  {self.rate:.0f} req/s  {self.in_flight} in flight  ETA {self.eta()}{failed}"

    def eta(self) -> str:
        left = self.total - self.done
        if left == 0:
            return "0:00"
        if self.rate <= 0:
            return "-:--"
        minutes, seconds = divmod(round(left / self.rate), 60)
        hours, minutes = divmod(minutes, 60)
        return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


Show = Callable[[Snapshot], None]


@contextmanager
def showing(console: Console) -> Iterator[Show]:
    """A bar on a terminal, else a line at every tenth, or every few seconds."""
    if not console.is_terminal:
        yield _lines(console)
        return
    columns = (TextColumn("{task.fields[phase]:<11}"), BarColumn(), TextColumn("{task.fields[text]}"))
    with Progress(*columns, console=console, transient=False) as bar:
        task = bar.add_task("", phase="", text="", total=None)

        def show(now: Snapshot) -> None:
            bar.update(task, total=now.total or None, completed=now.done, phase=now.phase, text=now.text())

        yield show


def _lines(console: Console) -> Show:
    shown_part, shown_time = 0.0, time.monotonic()

    def show(now: Snapshot) -> None:
        nonlocal shown_part, shown_time
        part = now.done / now.total if now.total else 0.0
        late = time.monotonic() - shown_time >= LINE_EVERY_S
        if part >= shown_part + LINE_EVERY_PART or late:
            shown_part, shown_time = part, time.monotonic()
            console.print(f"{now.phase}: {now.text()}", soft_wrap=True, highlight=False)

    return show


class Pace:
    """Finished requests per second, over the last seconds."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()

    def add(self, done: int) -> float:
        now = time.monotonic()
        self._seen.append((now, done))
        while now - self._seen[0][0] > PACE_S:
            self._seen.popleft()
        since, before = self._seen[0]
        return (done - before) / (now - since) if now > since else 0.0


async def follow(client: openai.AsyncOpenAI, runner: str, batch_id: str, show: Show) -> Batch:
    """Show how the batch goes until it ends."""
    async with channel(runner) as to_runner:
        stub: runner_pb2_grpc.RunnerServiceAsyncStub = runner_pb2_grpc.RunnerServiceStub(to_runner)
        done, pace = 0, Pace()
        while True:
            execution = await _execution(stub, batch_id)
            batch = await client.batches.retrieve(batch_id)
            done = _done(batch, execution, done)
            show(_snapshot(batch, execution, done, pace.add(done)))
            if batch.status in TERMINAL:
                return batch
            await asyncio.sleep(POLL_S)


async def _execution(stub: runner_pb2_grpc.RunnerServiceAsyncStub, batch_id: str) -> runner_pb2.Execution | None:
    """What the runner does with the batch. It only adorns the bar, so a runner that does not answer is no failure."""
    try:
        status = await stub.GetStatus(runner_pb2.GetStatusRequest())
    except ServiceError:
        return None
    return next((one for one in status.executions if one.batch_id == batch_id), None)


def _done(batch: Batch, execution: runner_pb2.Execution | None, before: int) -> int:
    """Committed lines, and those that are finished in a segment that is still open."""
    counts = batch.request_counts
    assert counts is not None
    waiting = execution.done_count - execution.committed_count if execution else 0
    return min(max(counts.completed + counts.failed + waiting, before), counts.total)


def _snapshot(batch: Batch, execution: runner_pb2.Execution | None, done: int, rate: float) -> Snapshot:
    counts = batch.request_counts
    assert counts is not None
    return Snapshot(
        phase=batch.status.replace("_", " "),
        total=counts.total,
        done=done,
        failed=counts.failed,
        in_flight=execution.in_flight if execution else 0,
        rate=rate,
    )
