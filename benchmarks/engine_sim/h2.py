"""H2: the best controller that our research had found: engine signals for speed, a goodput referee for truth.

Its steps: (1) not used: nothing moves. (2) Preempted: x0.9 once drained, then at most 1% a second for 20 s. (3) It waits:
down to what runs. (4) Hungry: up to what 90% of the KV cache carries, by at most 15 or 50% a second. (5) Refused: x0.85, at
most once a second. (6) Referee: quiet for 5 s, try 0.75 of the limit (in turn with 1.2, where something holds it down),
wait until it is drained, measure the generated tokens for 15 s, and keep it if that is better, after a second look when
it is better by less than 35%. Without metrics only (5) is left, and it grows by 1% per success.
"""

from __future__ import annotations

from benchmarks.engine_sim.baselines import Base
from services.runner.inference.limit import EngineMetrics, Sample

QUIET_S, FIRST_S, LONGEST_S, MEASURE_S = 5.0, 10.0, 480.0, 15.0


class H2(Base):
    def __init__(self, cap: int) -> None:
        super().__init__(cap, 16)
        self._last: EngineMetrics | None = None
        self._now = 0.0
        self._cut_at = self._refused_at = self._moved_at = -1e9
        self._slow_until = 0.0
        self._referee = Referee()

    def on_success(self, sent: int, in_flight: int, sample: Sample | None = None) -> None:
        if self._last is None and in_flight + 1 >= self.value:
            self.set(self.value * 1.01, "success")

    def on_overload(self, sent: int, last_sent: int, now: float, in_flight: int | None = None) -> None:
        if now >= self._refused_at + 1.0:
            self._refused_at, self._slow_until = now, now + 10.0
            self._referee.stop()
            self._move(self.value * 0.85, "refused")

    def on_metrics(self, metrics: EngineMetrics, in_flight: int, now: float) -> None:
        last, self._last, self._now = self._last, metrics, now
        preempted = (metrics.preemptions or 0) - ((last.preemptions if last else 0) or 0)
        if self._referee.active:
            value = self._referee.watch(metrics, in_flight, now, self.value)
            if value is not None:
                self.set(value, "referee")
            return
        self._signals(metrics, in_flight, now, preempted)
        if now - self._moved_at >= QUIET_S:
            value = self._referee.begin(metrics, now, self.value, held=self.value < self.cap)
            if value is not None:
                self.set(value, "referee")

    def _signals(self, metrics: EngineMetrics, in_flight: int, now: float, preempted: int) -> None:
        running, waiting, kv = metrics.running, metrics.waiting, metrics.kv_usage or 0.0
        allowed = max(2.0, 0.06 * running)
        if in_flight < 0.85 * self.value and waiting <= allowed:
            return
        drained = in_flight <= 1.05 * self.value + 1
        if preempted > max(1.0, 0.01 * running) and now >= self._cut_at + 3 and drained:
            self._cut_at, self._slow_until = now, now + 20
            self._move(0.9 * min(self.value, running + allowed), "preempted")
        elif waiting > allowed and now >= self._cut_at + 2:
            if running + allowed < self.value:
                self._cut_at = now
                self._move(running + allowed, "waiting")
        elif waiting <= allowed and kv < 0.90:
            self._grow(running * 0.90 / max(kv, 0.01), kv, now)

    def _grow(self, towards: float, kv: float, now: float) -> None:
        rate = 0.01 if now < self._slow_until else 0.5 if kv < 0.45 else 0.15
        value = min(towards, max(self.value * (1 + rate), self.value + 1))
        ceiling = self._referee.ceiling
        if ceiling is not None:
            value = min(value, ceiling)
        if value > self.value and self.value < self.cap:
            self._move(value, "hungry")

    def _move(self, value: float, reason: str) -> None:
        if abs(value - self.value) > 0.02 * self.value:
            self._moved_at = self._now
        self.set(value, reason)


class Referee:
    """Tries another limit and compares generated tokens. `ceiling` is the limit that it found better than those above."""

    def __init__(self) -> None:
        self.active = False
        self.ceiling: float | None = None
        self._next = FIRST_S
        self._wait = 120.0
        self._down = False
        self._stage = ""
        self._base = self._base_rate = self._tried = 0.0
        self._since = self._tokens = 0.0
        self._confirming = False

    def stop(self) -> None:
        self.active = False

    def begin(self, metrics: EngineMetrics, now: float, value: float, *, held: bool) -> float | None:
        if now < self._next or value < 4 or metrics.generation_tokens is None:
            return None
        self.active, self._stage, self._base = True, "base", value
        self._down = not (self._down and held)
        self._confirming = False
        self._mark(metrics, now)
        return None

    def watch(self, metrics: EngineMetrics, in_flight: int, now: float, value: float) -> float | None:
        if self._stage in ("drain", "back") and abs(in_flight - value) <= 0.05 * value + 1:
            self._stage = "trial" if self._stage == "drain" else "base"
            self._mark(metrics, now)
        if self._stage in ("drain", "back"):
            return self._done(now, self._base, found=False) if now > self._since + 120 else None
        if now < self._since + MEASURE_S:
            return None
        rate = ((metrics.generation_tokens or 0.0) - self._tokens) / (now - self._since)
        if self._stage == "base":
            self._base_rate, self._stage, self._since = rate, "drain", now
            self._tried = self._base * (0.75 if self._down else 1.2)
            return self._tried
        return self._judge(rate, now)

    def _judge(self, rate: float, now: float) -> float:
        better = rate / max(1e-9, self._base_rate)
        if not self._down:
            return self._done(now, self._tried if better > 1.05 else self._base, found=better > 1.05)
        if better > 1.35 or (self._confirming and better > 1.10):
            self.ceiling = self._tried
            return self._done(now, self._tried, found=True)
        if better > 1.10:
            self._confirming, self._stage, self._since = True, "back", now
            return self._base
        return self._done(now, self._base, found=False)

    def _done(self, now: float, value: float, *, found: bool) -> float:
        self.active = False
        if found and not self._down and self.ceiling is not None:
            self.ceiling = max(self.ceiling, value)
        self._wait = 10.0 if found else min(LONGEST_S, self._wait * 1.5)
        self._next = now + self._wait
        return value

    def _mark(self, metrics: EngineMetrics, now: float) -> None:
        self._since, self._tokens = now, metrics.generation_tokens or 0.0
