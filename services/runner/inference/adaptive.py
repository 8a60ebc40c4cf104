"""How many requests one endpoint may have in flight: climbs fast, comes down on evidence. Pure: times are arguments.

Evidence is a refusal, a request that waits in the engine or loses its KV cache, and fewer tokens a second at a higher
limit. A longer answer is none: in an engine with continuous batching every request makes the others slower, and the sum
faster. What the engine's metrics tell is used where there are any; without them the answers have to do.
docs/adaptive-concurrency.md tells the algorithm in one page.
"""

from __future__ import annotations

import math

from services.runner.inference.evidence import KV_TARGET, Signals, Wall
from services.runner.inference.goodput import STEP_UP, Curve, Rates, Trial, weigh
from services.runner.inference.limit import START, EngineMetrics, Sample

# Metrics count as there for so long after a look at them: until then the limit stands rather than climb unseen.
FRESH_S = 60.0
# Without metrics: answers that make a rate, as a share of a flight, and the longest time that one stands for.
CHUNK, CHUNK_S = 0.25, 10.0


class AdaptiveController:
    """Of one endpoint. `cap` is that of the job; it never stands above it, nor above `max_factor` times its start."""

    def __init__(self, cap: int, max_factor: float, start: int = START) -> None:
        self._value = float(min(start, cap))
        self._most = float(min(cap, math.ceil(self._value * max_factor)))
        self._climbing = True
        self._wall = Wall()
        self._signals = Signals()
        self._curve = Curve()
        self._trial = Trial()
        self._metrics_at = -math.inf
        self._chunk, self._chunk_at = Rates(), 0.0
        """The last answers, while nothing else shows the rate."""
        self.reason = "start"

    def limit(self) -> int:
        return max(1, int(self._value) - self._wall.resting)

    def on_success(self, sent: int, in_flight: int, sample: Sample | None = None) -> None:
        self._wall.accepted(sent)
        blind = sample is None or sample.now - self._metrics_at > FRESH_S
        if sample is None:
            self._wall.resting = 0  # nobody says how late it is
        else:
            self._wall.rest(sample.now)
            self._trial.answered(sample.latency_s)
            if blind:
                self._learn(sample, in_flight)
        used = in_flight + 1 >= int(self._value) and sent > self._wall.newest_at_cut
        if blind and used and not self._trial.running and self._curve.held is None:
            # One more per answer: twice the limit per flight.
            ceiling = min(self._trial.ceiling, self._wall.ceiling(self._value))
            self._move(max(self._value, min(self._value + 1.0, ceiling)), "climbing")

    def on_overload(self, sent: int, last_sent: int, now: float, in_flight: int | None = None) -> None:
        value = self._wall.refused(sent, last_sent, now, in_flight, self._value)
        if value is not None:
            self._climbing = False
            self._trial.stop(now)
            self._signals.calm()
            self._move(value, "overload")

    def on_ignore(self) -> None:
        """A broken answer is no sign of load."""

    def on_metrics(self, metrics: EngineMetrics, in_flight: int, now: float) -> None:
        self._metrics_at = now
        self._wall.rest(now)
        tokens, seconds = self._signals.look(metrics, now)
        self._trial.seen(tokens, seconds)
        self._trial.share(max(0.0, metrics.running + metrics.waiting - in_flight), seconds)
        if self._trial.running and not self._signals.alarm(metrics):
            self._trial.add(tokens, seconds)
            self._try(self._trial.step(in_flight, now), now)
            return
        self._try(self._trial.stop(now), now)
        self._watch()
        verdict = self._signals.judge(metrics, in_flight, now, self._value)
        if verdict is not None:
            value, reason = verdict
            if value > self._value:
                ceiling = min(self._trial.ceiling, self._wall.ceiling(self._value))
                value = max(self._value, min(value, ceiling))
            self._climbing = False
            self._move(value, reason)
        room = STEP_UP * (metrics.kv_usage or 0.0) < KV_TARGET
        if metrics.generation_tokens is not None:
            self._trial.consider(self._value, self._most, in_flight, now, blind=False, room=room)

    def _learn(self, sample: Sample, in_flight: int) -> None:
        mean = self._curve.answered(sample, in_flight)
        now = sample.now
        self._chunk.add(mean * weigh(sample), sample.latency_s)
        if self._chunk.count >= max(16.0, CHUNK * in_flight) and now > self._chunk_at:
            seconds = min(CHUNK_S, now - self._chunk_at)
            self._trial.seen(self._chunk.mean() * seconds, seconds)
            self._chunk, self._chunk_at = Rates(), now
            if not self._trial.running:
                self._watch()
        if self._trial.running:
            if now - sample.latency_s >= self._trial.since:
                self._trial.add(mean * weigh(sample), sample.latency_s)
            self._try(self._trial.step(in_flight, now), now)
        elif self._climbing:
            best = self._curve.peak(mean, sample)
            if best is not None:
                self._climbing = False
                self._trial.found(best)
                self._trial.down_first()
                self._move(best, "no gain")
            elif self._value >= self._most:
                self._climbing = False
        else:
            self._trial.consider(self._value, self._most, in_flight, now, blind=True)

    def _watch(self) -> None:
        fell = self._trial.fell(self._value)
        if fell is not None:
            self._climbing = False
            self._trial.found(fell)
            self._move(fell, "fewer tokens")

    def _try(self, value: float | None, now: float) -> None:
        if value is not None:
            self._move(value, "trial")

    def _move(self, value: float, reason: str) -> None:
        value = max(1.0, min(self._most, value))
        if value != self._value:
            self._value, self.reason = value, reason
