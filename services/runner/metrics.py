"""All instruments of the runner, and a meter for the rate that people see."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import Counter, Gauge, Histogram

from services.kit import clock
from services.runner.inference.outcome import Kind

_requests = Counter("aibrix_runner_requests", "Attempts of requests to engines, by outcome.", ["outcome"])
# Bound once: a look-up by label for every request would cost more than the count.
REQUESTS = {kind: _requests.labels(outcome=kind.value) for kind in Kind}
RETRIES = Counter("aibrix_runner_retries", "Attempts that are made again.")
LINES = Counter("aibrix_runner_lines", "Lines committed, by result.", ["result"])
SEGMENTS = Counter("aibrix_runner_segments", "Segments committed.")
COMMIT_SECONDS = Histogram("aibrix_runner_commit_seconds", "Time to write and commit one segment.")
LEASES = Counter("aibrix_runner_leases", "Leases held, by how they ended.", ["end"])
_in_flight = Gauge("aibrix_runner_in_flight", "Requests in flight to engines.")
_limit = Gauge("aibrix_runner_limit", "Requests that the controllers admit now, over all batches.")


def watch(in_flight: Callable[[], int], limit: Callable[[], int]) -> None:
    """Ask these when somebody scrapes."""
    _in_flight.set_function(in_flight)
    _limit.set_function(limit)


WINDOW_S = 5


class Meter:
    """Events per second over the last whole seconds."""

    def __init__(self) -> None:
        self.count = 0
        self._first = int(clock.monotonic())
        self._seconds: dict[int, int] = {}

    def add(self) -> None:
        self.count += 1
        second = int(clock.monotonic())
        if second in self._seconds:
            self._seconds[second] += 1
            return
        self._seconds = {s: n for s, n in self._seconds.items() if s >= second - WINDOW_S}
        self._seconds[second] = 1

    def rate(self) -> float:
        now = int(clock.monotonic())
        width = max(1, min(WINDOW_S, now - self._first))
        return sum(n for s, n in self._seconds.items() if now - width <= s < now) / width
