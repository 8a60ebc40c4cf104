"""The controllers that ours is measured against, written anew from what their authors say.

- `Aimd`: the textbook: one more per flight of successes, half on an overload, once per flight.
- `Earlier`: the rule of the system before this one: one more per 8 healthy answers, a quarter more until the first decrease;
  x0.9 when at least 2 and 10% of a window of max(8, limit) failed; x0.8 when an answer's latency per token is over 1.75
  times its moving average (0.2, after 8 answers); it starts at the number of endpoints.
- `Vegas` and `Gradient2`: Netflix concurrency-limits (VegasLimit.java, Gradient2Limit.java, WindowedLimit.java), with their
  defaults, but for the highest limit, which is the cap here.
- `H2`: engine signals and a goodput referee, as our own research described it, is in `h2`.
"""

from __future__ import annotations

import math
import random

from services.runner.inference.limit import START, EngineMetrics, Sample


class Base:
    """What the baselines share: a limit, and no interest in metrics."""

    def __init__(self, cap: int, start: float) -> None:
        self.cap = cap
        self.value = min(float(cap), start)
        self.reason = "start"

    def limit(self) -> int:
        return int(self.value)

    def set(self, value: float, reason: str, least: float = 1.0) -> None:
        self.value = max(least, min(float(self.cap), value))
        self.reason = reason

    def on_success(self, sent: int, in_flight: int, sample: Sample | None = None) -> None:
        """Nothing is learned."""

    def on_overload(self, sent: int, last_sent: int, now: float, in_flight: int | None = None) -> None:
        """Nothing is learned."""

    def on_ignore(self) -> None:
        """Nothing is learned."""

    def on_metrics(self, metrics: EngineMetrics, in_flight: int, now: float) -> None:
        """Nothing is learned."""


class Aimd(Base):
    def __init__(self, cap: int) -> None:
        super().__init__(cap, START)
        self._newest_at_cut = 0

    def on_success(self, sent: int, in_flight: int, sample: Sample | None = None) -> None:
        if in_flight + 1 >= self.value:
            self.set(self.value + 1 / self.value, "success")

    def on_overload(self, sent: int, last_sent: int, now: float, in_flight: int | None = None) -> None:
        if sent > self._newest_at_cut:
            self._newest_at_cut = last_sent
            self.set(self.value / 2, "overload")


class Earlier(Base):
    def __init__(self, cap: int, start: int = 1) -> None:
        super().__init__(cap, start)
        self._healthy = self._seen = self._failed = 0
        self._window = 8
        self._probing = True
        self._average = 0.0
        self._samples = 0

    def on_success(self, sent: int, in_flight: int, sample: Sample | None = None) -> None:
        self._count(failed=False)
        if sample is not None and self._is_slow(sample.latency_s / max(1, sample.completion_tokens)):
            self._decrease(0.8, "slow")
            return
        self._healthy += 1
        if self._healthy >= 8:
            self._healthy = 0
            self.set(self.value + max(1, math.ceil(self.value / 4) if self._probing else 1), "healthy")

    def on_overload(self, sent: int, last_sent: int, now: float, in_flight: int | None = None) -> None:
        self._count(failed=True)

    def on_ignore(self) -> None:
        self._count(failed=True)

    def _is_slow(self, latency: float) -> bool:
        slow = self._samples >= 8 and latency > 1.75 * self._average
        self._average = latency if not self._samples else 0.8 * self._average + 0.2 * latency
        self._samples += 1
        return slow

    def _count(self, *, failed: bool) -> None:
        self._seen += 1
        self._failed += failed
        if self._seen < self._window:
            return
        if self._failed >= 2 and self._failed >= 0.1 * self._seen:
            self._decrease(0.9, "errors")
        self._seen = self._failed = 0
        self._window = max(8, self.limit())

    def _decrease(self, factor: float, reason: str) -> None:
        self._probing, self._healthy = False, 0
        self.set(min(self.value - 1, math.floor(self.value * factor)), reason)


class Vegas(Base):
    def __init__(self, cap: int, seed: int = 0) -> None:
        super().__init__(cap, 20)
        self._rand = random.Random(seed)
        self._least = 0.0
        self._samples = 0
        self._jitter = self._rand.uniform(0.5, 1.0)

    def on_success(self, sent: int, in_flight: int, sample: Sample | None = None) -> None:
        if sample is None:
            return
        self._samples += 1
        rtt = max(1e-6, sample.latency_s)
        if self._samples >= self._jitter * 30 * self.value:
            self._jitter, self._samples, self._least = self._rand.uniform(0.5, 1.0), 0, rtt
        elif not self._least or rtt < self._least:
            self._least = rtt
        elif in_flight * 2 >= self.value:
            self._step(math.ceil(self.value * (1 - self._least / rtt)))

    def on_overload(self, sent: int, last_sent: int, now: float, in_flight: int | None = None) -> None:
        self.set(self.value - self._log(), "drop")

    def _step(self, queue: int) -> None:
        log = self._log()
        if queue <= log:
            self.set(self.value + 6 * log, "no queue")
        elif queue < 3 * log:
            self.set(self.value + log, "short queue")
        elif queue > 6 * log:
            self.set(self.value - log, "queue")

    def _log(self) -> int:
        return max(1, int(math.log10(max(1.0, self.value))))


class Gradient2(Base):
    """Once a second, from at least 10 answers: the mean of a window against a long average (600 windows)."""

    def __init__(self, cap: int) -> None:
        super().__init__(cap, 20)
        self._least = min(20.0, cap)
        self._long = 0.0
        self._windows = 0
        self._sum, self._count, self._most, self._ends = 0.0, 0, 0, 0.0

    def on_success(self, sent: int, in_flight: int, sample: Sample | None = None) -> None:
        if sample is None:
            return
        self._sum += sample.latency_s
        self._count += 1
        self._most = max(self._most, in_flight)
        if self._count >= 10 and sample.now >= self._ends:
            self._update(self._sum / self._count, self._most)
            self._sum, self._count, self._most, self._ends = 0.0, 0, 0, sample.now + 1.0

    def _update(self, short: float, in_flight: int) -> None:
        self._windows += 1
        if self._windows <= 10:
            self._long += (short - self._long) / self._windows
        else:
            self._long += (short - self._long) * 2 / 601
        if self._long / short > 2:
            self._long *= 0.9
        if in_flight < self.value / 2:
            return
        gradient = max(0.5, min(1.0, self._long / short))
        self.set(0.8 * self.value + 0.2 * (gradient * self.value + 4), "gradient", self._least)
