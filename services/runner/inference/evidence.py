"""Evidence that an engine has enough: refusals, and what its own metrics say. Pure: times are arguments."""

from __future__ import annotations

import math

from services.runner.inference.goodput import PROMPT_WEIGHT
from services.runner.inference.limit import EngineMetrics

# The first cut is slight: what is still in flight was accepted, so the wall is near. If requests that were sent after it
# meet a wall again, the wall has moved, and cuts get deep: the second at once, more of them a second apart.
CUTS = (0.98, 0.75)
CUT_INTERVAL_S = REST_S = 1.0
MOST_RESTING = 0.5
# Two in a row, or this share of a flight: less is a flaky proxy, which must not starve a healthy engine.
NOISE = 0.03
# Answers after which a wall is tried again, at the cost of a refusal or two; a try that fails doubles it.
TRY_WALL, TRY_WALL_MOST = 200, 1_600
# Requests that may wait in the engine, as a share of those that run: a slot that gets free finds one.
WAITING = 0.04
# Looks at a longer queue that make it one; while requests are still let in, it is none.
QUEUED = 3
# KV cache usage: what to grow to, less after every preemption; and what is too much now, or in a moment.
KV_TARGET, KV_LEAST = 0.88, 0.70
KV_FULL, SOON_S = 0.97, 2.0
# Usage comes in waves: the share of one request is averaged over so long.
SHARE_S = 30.0
# Young requests still fill the cache: so far ahead, at most, and so many times their age.
AHEAD_S, AHEAD = 20.0, 3.0
# Growth per look at hungry metrics: it doubles with each, from the first to the last.
HUNGRY, HUNGRIEST = 0.04, 1.0


class Wall:
    """Refusals: where the engine, or what stands before it, takes no more."""

    def __init__(self) -> None:
        self.newest_at_cut = 0
        self.resting = 0
        """Slots of requests that were refused within the last second: filled again at once, they would storm."""
        self._rest_since = -math.inf
        self._limit = math.inf
        """As many were in flight when one more was refused."""
        self._cut_at = -math.inf
        self._row = 0
        self._answered = self._refused = 0
        """In this flight."""
        self._depth = 0
        self._accepted = 0
        self._wait = TRY_WALL

    def accepted(self, sent: int) -> None:
        if sent > self.newest_at_cut:
            self._row = 0
            self._accepted += 1
            self._answered += 1

    def rest(self, now: float) -> None:
        if now >= self._rest_since + REST_S:
            self.resting = 0

    def ceiling(self, value: float) -> float:
        """How far the limit may grow: to the wall, or beyond it when it is time to try it; once passed, it is gone."""
        if value > self._limit + 2:
            self._limit, self._wait = math.inf, TRY_WALL
        return math.inf if self._accepted >= self._wait else self._limit

    def refused(self, sent: int, last_sent: int, now: float, in_flight: int | None, value: float) -> float | None:
        """The new limit, if this is evidence. Requests that were sent before the last cut are none."""
        if sent <= self.newest_at_cut:
            return None
        if self._answered + self._refused > 2 * value:
            self._answered = self._refused = 0
        self._row += 1
        self._refused += 1
        others = value if in_flight is None else min(value, in_flight - 1.0)
        if self._limit < math.inf:
            if now >= self._rest_since + REST_S:
                self._rest_since, self.resting = now, 0
            self.resting = min(self.resting + 1, int(MOST_RESTING * value))
        known = others >= self._limit  # the wall is where it was
        enough = known or self._row >= min(2, value) or (self._refused >= 2 and self._refused >= NOISE * value)
        if not enough or (self._depth >= len(CUTS) and now < self._cut_at + CUT_INTERVAL_S):
            return None
        self._cut_at, self.newest_at_cut = now, last_sent
        return self._cut(others, value)

    def _cut(self, others: float, value: float) -> float:
        if self._accepted > value:  # a whole flight went well
            self._depth = 0
        if self._depth == 0 and self._accepted >= self._wait and self._limit < math.inf:
            self._wait = min(TRY_WALL_MOST, 2 * self._wait)
        self._limit = max(1.0, others)
        cut = CUTS[min(self._depth, len(CUTS) - 1)]
        self._depth += 1
        self._row = self._accepted = self._answered = self._refused = 0
        return max(cut * value, min(others, value - 1.0)) if self._depth == 1 else cut * value


class Signals:
    """The engine's metrics: what waits, what was preempted, how full the KV cache is and how fast it fills."""

    def __init__(self) -> None:
        self.preempted = 0
        self._last: EngineMetrics | None = None
        self._last_at = 0.0
        self._begun: float | None = None
        self._fill = 0.0
        """KV usage per second, smoothed."""
        self._share = 0.0
        """Of the cache that one running request holds, on a long average: usage comes in waves."""
        self._target = KV_TARGET
        self._cut_at = -math.inf
        self._hungry = HUNGRIEST
        self._queued = 0
        self._admitting = False

    def calm(self) -> None:
        self._hungry = HUNGRY

    def look(self, metrics: EngineMetrics, now: float) -> tuple[float, float]:
        """Tokens, weighted, and seconds since the last look."""
        last, last_at, self._last, self._last_at = self._last, self._last_at, metrics, now
        if self._begun is None:
            self._begun = now
        self.preempted = 0
        if last is None or now <= last_at or (metrics.generation_tokens or 0.0) < (last.generation_tokens or 0.0):
            self._fill, self._begun = 0.0, now
            return 0.0, 0.0
        seconds = now - last_at
        self.preempted = max(0, (metrics.preemptions or 0) - (last.preemptions or 0))
        filled = ((metrics.kv_usage or 0.0) - (last.kv_usage or 0.0)) / seconds
        self._fill += (filled - self._fill) * min(1.0, seconds / 3.0)
        self._admitting = metrics.running > 1.03 * last.running
        if metrics.running:
            share = (metrics.kv_usage or 0.0) / metrics.running
            self._share += (share - self._share) * min(1.0, seconds / SHARE_S)
        generated = (metrics.generation_tokens or 0.0) - (last.generation_tokens or 0.0)
        prompts = (metrics.prompt_tokens or 0.0) - (last.prompt_tokens or 0.0)
        return generated + PROMPT_WEIGHT * prompts, seconds

    def alarm(self, metrics: EngineMetrics) -> bool:
        """Requests lose their cache, or would in the next seconds."""
        return bool(self.preempted) or (metrics.kv_usage or 0.0) + SOON_S * self._fill > KV_FULL

    def judge(self, metrics: EngineMetrics, in_flight: int, now: float, value: float) -> tuple[float, str] | None:
        running, waiting = metrics.running, metrics.waiting
        allowed = max(1.0, WAITING * running)
        share = in_flight / max(1, running + waiting)
        drained = in_flight <= value + 1 and now >= self._cut_at + 2.0
        self._target = min(KV_TARGET, self._target + 0.0002)
        self._queued = self._queued + 1 if waiting > 2 * allowed and not self._admitting else 0
        if self.alarm(metrics):
            return self._cut(0.93 * running * share, value, now) if drained else None
        if self._queued >= QUEUED and drained:
            self.calm()
            self._cut_at = now
            return min(value, share * (running + allowed)), "waiting"
        if waiting > 0.5 * allowed or in_flight < 0.9 * value:
            return None
        return self._grow(metrics, now, value)

    def _cut(self, to: float, value: float, now: float) -> tuple[float, str]:
        self.calm()
        self._cut_at = now
        if self.preempted:
            self._target = max(KV_LEAST, self._target - 0.04)
        return min(value - 1, to), "preempted" if self.preempted else "KV cache full"

    def _grow(self, metrics: EngineMetrics, now: float, value: float) -> tuple[float, str] | None:
        factor = 1.0 + self._hungry
        self._hungry = min(HUNGRIEST, 2 * self._hungry)
        kv = max(metrics.kv_usage or 0.0, self._share * metrics.running)
        ahead = min(AHEAD_S, AHEAD * (now - (self._begun or now)))
        expected = kv + max(0.0, self._fill) * ahead
        if kv > 0.2:
            factor = min(factor, 1.0 + 0.5 * (self._target / max(expected, 0.01) - 1.0))
        if factor <= 1.0:
            return None
        return max(value * factor, value + 1), "hungry"
