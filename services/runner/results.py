"""Results on their way to safety: finished lines gather in the open segment, closed segments are written and committed
by one committer, in order.

A segment is closed by count, bytes or age. If two closed ones wait, dispatch pauses: memory stays bounded, and an outage
of storage costs time, not results. The open segment is in memory only; see docs/decisions/0003-segments-in-memory.md.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

import structlog

from services.kit import clock
from services.kit.lifecycle import wait_for
from services.kit.lines import LineSet
from services.kit.objects import ObjectStore
from services.kit.settings import Runner
from services.runner.domain import Segment
from services.runner.held import HeldLease
from services.runner.inference.outcome import Kind, Outcome
from services.runner.leases import Leases
from services.runner.metrics import COMMIT_SECONDS, LINES, SEGMENTS, Meter
from services.runner.patience import Patience
from services.runner.records import UsageSum, error_line, output_line
from services.runner.requests import Request

MOST_WAITING = 2

log = structlog.get_logger(__name__)


class _Open:
    """Lines that are not written yet."""

    __slots__ = ("bytes", "errors", "numbers", "opened_at", "outputs", "usage")

    def __init__(self) -> None:
        self.numbers: list[int] = []
        self.outputs: list[bytes] = []
        self.errors: list[bytes] = []
        self.usage = UsageSum()
        self.bytes = 0
        self.opened_at = clock.monotonic()


class Results:
    """`on_pressure(True)` is called when segments pile up, `on_pressure(False)` when they no longer do.

    `on_full` is called with every line that goes beyond `bytes_left`, the quota of output and error lines; None: no quota.
    """

    def __init__(
        self,
        store: ObjectStore,
        leases: Leases,
        held: HeldLease,
        patience: Patience,
        settings: Runner,
        sequence: int,
        on_pressure: Callable[[bool], None],
        bytes_left: int | None = None,
        on_full: Callable[[], None] = lambda: None,
    ) -> None:
        self.done = Meter()
        self._bytes_left = bytes_left
        self._on_full = on_full
        self._store = store
        self._leases = leases
        self._held = held
        self._patience = patience
        self._settings = settings
        self._sequence = sequence
        self._on_pressure = on_pressure
        self._open = _Open()
        self._closed: deque[_Open] = deque()
        self._wake = asyncio.Event()
        self._settled = asyncio.Event()
        self._flushing = False

    def add(self, request: Request, outcome: Outcome) -> None:
        """A request is done."""
        if not self._open.numbers:
            self._open.opened_at = clock.monotonic()
            self._wake.set()
        segment = self._open
        segment.numbers.append(request.number)
        if outcome.kind is Kind.OK:
            line = output_line(request.custom_id, outcome)
            segment.outputs.append(line)
            segment.usage.add(outcome.answer)
        else:
            line = error_line(request.custom_id, outcome)
            segment.errors.append(line)
        segment.bytes += len(line)
        self.done.add()
        if self._bytes_left is not None:
            self._bytes_left -= len(line)
            if self._bytes_left < 0:
                self._on_full()
        if len(segment.numbers) >= self._settings.segment_lines or segment.bytes >= self._settings.segment_bytes:
            self._close()

    async def commit(self) -> None:
        """Commit closed segments until cancelled. Errors: StaleLease, LinesOverlap."""
        while True:
            await self._wait()
            while self._closed:
                await self._commit_one(self._closed[0])
                self._closed.popleft()
                if len(self._closed) == MOST_WAITING - 1:
                    self._on_pressure(False)
            if not self._open.numbers:
                self._flushing = False
                self._settled.set()

    async def flush(self) -> None:
        """Return when all that was added is committed."""
        self._flushing = True
        self._settled.clear()
        self._wake.set()
        await self._settled.wait()

    async def _wait(self) -> None:
        """Return when something may have to be committed, and close the open segment if it is old."""
        while not self._closed and not self._flushing:
            self._wake.clear()
            if not self._open.numbers:
                await self._wake.wait()
                continue
            rest = self._open.opened_at + self._settings.segment_seconds - clock.monotonic()
            if rest <= 0 or not await wait_for(self._wake, rest):
                break
        if not self._closed and self._open.numbers:
            self._close()

    def _close(self) -> None:
        self._closed.append(self._open)
        self._open = _Open()
        self._wake.set()
        if len(self._closed) == MOST_WAITING:
            self._on_pressure(True)

    async def _commit_one(self, closed: _Open) -> None:
        with COMMIT_SECONDS.time():
            segment = await self._write(closed)
            lines = LineSet.of(closed.numbers)
            usage = closed.usage.sum()
            status = await self._patience.until_done(
                lambda: self._leases.commit(self._held.batch_id, segment, lines, usage)
            )
        self._sequence += 1
        self._held.add_committed(lines)
        self._held.learn(status)
        SEGMENTS.inc()
        LINES.labels(result="completed").inc(segment.completed_count)
        LINES.labels(result="failed").inc(segment.failed_count)
        log.debug(
            "segment committed", sequence=segment.sequence, completed=len(closed.outputs), failed=len(closed.errors)
        )

    async def _write(self, closed: _Open) -> Segment:
        """The objects of one segment, written at once."""
        base = f"segments/{self._held.batch_id}/{self._held.token}-{self._sequence}"
        output, error = b"".join(closed.outputs), b"".join(closed.errors)
        output_key = f"{base}.out.jsonl" if output else None
        error_key = f"{base}.err.jsonl" if error else None
        async with asyncio.TaskGroup() as group:
            for key, data in ((output_key, output), (error_key, error)):
                if key is not None:
                    group.create_task(self._put(key, data))
        return Segment(
            token=self._held.token,
            sequence=self._sequence,
            output_key=output_key,
            error_key=error_key,
            completed_count=len(closed.outputs),
            failed_count=len(closed.errors),
            output_bytes=len(output),
            error_bytes=len(error),
        )

    async def _put(self, key: str, data: bytes) -> None:
        await self._patience.until_done(lambda: self._store.put(key, data))
