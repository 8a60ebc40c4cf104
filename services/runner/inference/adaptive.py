"""How many requests one endpoint may have in flight: climbs fast, comes down on evidence. Pure: times are arguments.

Evidence is a refusal, a request that waits in the engine or loses its KV cache, and fewer tokens a second at a higher
limit. A longer answer is none: in an engine with continuous batching every request makes the others slower, and the sum
faster. What the engine's metrics tell is used where there are any; without them the answers have to do.
docs/adaptive-concurrency.md tells the algorithm in one page.
"""

from __future__ import annotations

import math
from collections import deque

from services.runner.inference.limit import START, EngineMetrics, Sample

# Refusals. The first cut is slight: what is still in flight was accepted, so the wall is near. If requests that were sent
# after it meet a wall again, the wall has moved, and cuts get deep: the second at once, more of them a second apart.
CUTS = (0.98, 0.75)
CUT_INTERVAL_S = REST_S = 1.0
# Two in a row, or this share of a flight: less is a flaky proxy, which must not starve a healthy engine.
NOISE = 0.03
# Answers after which a wall is tried again; each try costs two refusals, and doubles this.
TRY_WALL, TRY_WALL_MOST = 200, 1_600
# Metrics. They count as there for so long after a look at them.
FRESH_S = 10.0
# Requests that may wait in the engine, as a share of those that run: a slot that gets free finds one.
WAITING = 0.04
KV_FULL = 0.97
SOON_S = 2.0
KV_TARGET = 0.90
KV_LEAST = 0.70
SHARE_S = 30.0
# Growth per look at hungry metrics: it doubles with each, from the first to the last.
HUNGRY, HUNGRIEST = 0.04, 1.0
# A prompt token costs about a quarter of one that is generated.
PROMPT_WEIGHT = 0.25
# Without metrics: levels of concurrency, and the gain from one to the next but one that is none.
LEVEL = 1.2
GAIN = 1.03
GRID_S = 0.25


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
        self.reason = "start"

    def limit(self) -> int:
        return max(1, int(self._value) - self._wall.resting)

    def on_success(self, sent: int, in_flight: int, sample: Sample | None = None) -> None:
        self._wall.accepted(sent)
        blind = sample is None or sample.now - self._metrics_at > FRESH_S
        if sample is not None:
            self._wall.rest(sample.now)
            self._trial.answered(sample.latency_s)
            if blind:
                self._learn(sample, in_flight)
        used = in_flight + 1 >= int(self._value) and sent > self._wall.newest_at_cut
        if blind and used and not self._trial.running:
            # One more per answer: twice the limit per flight.
            ceiling = min(self._trial.ceiling, self._wall.ceiling(self._value))
            if self._climbing or self._value < ceiling < math.inf:
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
        self._trial.seen(tokens, seconds, max(0.0, metrics.running + metrics.waiting - in_flight))
        if self._trial.running and not self._signals.alarm(metrics):
            self._trial.add(tokens, seconds)
            self._try(self._trial.step(in_flight, now), now)
            return
        self._try(self._trial.stop(now), now)
        verdict = self._signals.judge(metrics, in_flight, now, self._value)
        if verdict is not None:
            value, reason = verdict
            if value > self._value:
                ceiling = min(self._trial.ceiling, self._wall.ceiling(self._value))
                value = max(self._value, min(value, ceiling))
            self._climbing = False
            self._move(value, reason)
        self._trial.consider(self._value, self._most, in_flight, now, blind=False)

    def _learn(self, sample: Sample, in_flight: int) -> None:
        mean = self._curve.answered(sample, in_flight)
        now = sample.now
        if self._trial.running:
            if now - sample.latency_s >= self._trial.since:
                self._trial.add(mean * weigh(sample), sample.latency_s)
            self._try(self._trial.step(in_flight, now), now)
        elif self._climbing:
            best = self._curve.peak(mean)
            if best is not None:
                self._climbing = False
                self._trial.found(best)
                self._move(best, "no gain")
            elif self._value >= self._most:
                self._climbing = False
        else:
            self._trial.consider(self._value, self._most, in_flight, now, blind=True)

    def _try(self, value: float | None, now: float) -> None:
        if value is not None:
            self._move(value, "trial")

    def _move(self, value: float, reason: str) -> None:
        value = max(1.0, min(self._most, value))
        if value != self._value:
            self._value, self.reason = value, reason


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
            self.resting = min(self.resting + 1, int(0.75 * value))
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
        if self._queued >= 3:
            self.calm()
            self._cut_at = now
            return (min(value, share * (running + allowed)), "waiting") if drained else None
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
        # Young requests still fill the cache: look ahead as far as they are old.
        ahead = min(20.0, 3.0 * (now - (self._begun or now)))
        expected = kv + max(0.0, self._fill) * ahead
        if kv > 0.2:
            factor = min(factor, 1.0 + 0.5 * (self._target / max(expected, 0.01) - 1.0))
        if factor <= 1.0:
            return None
        return max(value * factor, value + 1), "hungry"


class Curve:
    """Without metrics: tokens a second against requests in flight, from the latency of each answer.

    An answer of t tokens that took s seconds while n requests were in flight stands for n * t / s tokens a second. That
    needs no steady state, long answers weigh as much as they take, and time spent in a silent queue shows at once.
    """

    def __init__(self) -> None:
        self._history: deque[float] = deque(maxlen=4_096)
        """What was in flight, every `GRID_S` back from `_at`."""
        self._at = 0.0
        self._levels: dict[int, list[float]] = {}
        """By level, a power of `LEVEL`: tokens times in flight, seconds, answers."""

    def forget(self) -> None:
        self._levels.clear()

    def answered(self, sample: Sample, in_flight: int) -> float:
        """How many were in flight while it ran, on average."""
        if not self._history:
            self._at = sample.now
        while self._at <= sample.now and (sample.now - self._at) / GRID_S < 4_096:
            self._history.append(in_flight)
            self._at += GRID_S
        back = min(len(self._history), 1 + int(sample.latency_s / GRID_S))
        mean = 0.5 * (self._history[-back] + in_flight)
        level = self._levels.setdefault(round(math.log(mean, LEVEL)), [0.0, 0.0, 0.0])
        level[0] += mean * weigh(sample)
        level[1] += sample.latency_s
        level[2] += 1.0
        return mean

    def peak(self, in_flight: float) -> float | None:
        """The level to go back to, once that of `in_flight` is known and brings no more than a lower one."""
        here = round(math.log(in_flight, LEVEL))
        found = self._levels.get(here)
        if found is None or found[2] < max(12.0, 0.12 * in_flight):
            return None
        rate = found[0] / found[1]
        lower = {
            level: tokens / seconds
            for level, (tokens, seconds, count) in self._levels.items()
            if level <= here - 2 and count >= 8 and seconds > 0.0
        }
        if not lower or rate >= GAIN * max(lower.values()):
            return None
        best = max(*lower.values(), rate)
        return float(
            LEVEL ** min(level for level, had in lower.items() if had >= AS_GOOD * best or had == max(lower.values()))
        )


def weigh(sample: Sample) -> float:
    return sample.completion_tokens + PROMPT_WEIGHT * sample.prompt_tokens


# Trials.
STEP_DOWN, STEP_UP = 0.75, 1.2
FIRST_S, FIRST_WAIT_S, LONGEST_S = 10.0, 60.0, 480.0
REGIME, REGIME_S = 0.7, 10.0
SETTLE_S, SETTLE_MOST_S = 3.0, 20.0
MEASURE_S, MEASURE_MOST_S = 10.0, 25.0
LEAST = 12
AS_GOOD = 0.975
BETTER = 1.03


class Trial:
    """Now and then another limit, to see what it brings: only that shows a prefix cache which thrashes."""

    def __init__(self) -> None:
        self.running = False
        self.others = 0.0
        """Requests of others in the same engine, on average, where its metrics show them."""
        self._ceiling = math.inf
        """A trial has shown that more brings nothing: ours and those of others."""
        self.since = 0.0
        self._due = FIRST_S
        self._wait = FIRST_WAIT_S
        self._stage = ""
        self._blind = False
        self._down = True
        self._base = self._tried = self._base_rate = self._base_error = 0.0
        self._rates = Rates()
        self._latency_s = self._rate = 0.0
        self._steady: tuple[float, float] = (0.0, 0.0)

    @property
    def ceiling(self) -> float:
        return max(1.0, self._ceiling - self.others)

    def found(self, limit: float) -> None:
        self._ceiling = limit + self.others

    def seen(self, tokens: float, seconds: float, others: float) -> None:
        """Another rate than that of the last trial, for a while: the engine, or the load, is not the same any more."""
        if seconds <= 0.0:
            return
        self.others += (others - self.others) * min(1.0, seconds / REGIME_S)
        self._rate += (tokens / seconds - self._rate) * min(1.0, seconds / REGIME_S)
        if not self.running and not REGIME * self._base_rate <= self._rate <= self._base_rate / REGIME:
            self._ceiling = math.inf

    def stop(self, now: float) -> float | None:
        """The limit to go back to, if a higher one was being tried."""
        if not self.running:
            return None
        self.running = False
        self._due = now + 20.0
        return None if self._down or self._stage == "base" else self._base

    def consider(self, value: float, most: float, in_flight: int, now: float, *, blind: bool) -> None:
        """Begin one, once the limit has stood still."""
        if abs(value - self._steady[0]) > 0.05 * value:
            self._steady = (value, now)
        if value > 1.3 * self._base > 0.0:
            self._due, self._wait = min(self._due, now), FIRST_WAIT_S  # nothing is known of limits so high
        if now < self._due or now < self._steady[1] + 5.0 or value < LEAST or in_flight < 0.9 * value:
            return
        self.running, self._blind = True, blind
        self._down = not self._down if self.ceiling < most else True
        self._base, self._stage = value, "base"
        self._mark(now)

    def add(self, tokens: float, seconds: float) -> None:
        if self._stage != "drain" and seconds > 0.0:
            self._rates.add(tokens, seconds)

    def answered(self, latency_s: float) -> None:
        self._latency_s += 0.05 * (latency_s - self._latency_s)

    def step(self, in_flight: int, now: float) -> float | None:
        """The limit to stand at from now on, if another one."""
        if self._stage == "drain":
            drained = in_flight <= self._tried + 1 if self._down else in_flight >= self._tried - 2
            # As long as an answer takes: until then requests are older, or younger, than they will be.
            settle_s = max(SETTLE_S, min(SETTLE_MOST_S, self._latency_s))
            if (drained and now >= self.since + settle_s) or now > self.since + 120.0:
                self._stage = "trial"
                self._mark(now)
            return None
        measured = self._rates
        if self._stage == "trial" and self._down and self._hopeless(now):
            return self._back(now)
        if now < self.since + MEASURE_S or (self._blind and measured.count < max(32.0, in_flight)):
            return None
        if measured.error() > 0.012 and now < self.since + MEASURE_MOST_S:
            return None
        if self._stage == "base":
            self._base_rate, self._base_error = measured.mean(), measured.error()
            return self._next(now)
        least = AS_GOOD + math.hypot(measured.error(), self._base_error) if self._down else BETTER
        if measured.mean() < least * self._base_rate:
            return self._back(now)
        # As good with less, or better with more: stay, and go on from there.
        self._base = self._tried
        self.found(self._tried)
        self._base_rate = max(measured.mean(), self._base_rate)
        self._wait = FIRST_WAIT_S
        return self._next(now)

    def _hopeless(self, now: float) -> bool:
        """So much worse that there is no need to be sure."""
        enough = self._rates.count >= (16 if self._blind else 4)
        return enough and self._rates.mean() * (1 + 2 * self._rates.error()) < 0.96 * self._base_rate

    def _back(self, now: float) -> float:
        self.running = False
        self._due = now + self._wait
        self._wait = min(LONGEST_S, 2 * self._wait)
        return self._base

    def _next(self, now: float) -> float:
        self._tried = self._base * (STEP_DOWN if self._down else STEP_UP)
        self._stage, self.since = "drain", now
        return self._tried

    def _mark(self, now: float) -> None:
        self.since, self._rates = now, Rates()


class Rates:
    """A mean of rates, weighted by their time, and how sure it is."""

    def __init__(self) -> None:
        self.count = 0
        self._tokens = self._seconds = self._squares = 0.0

    def add(self, tokens: float, seconds: float) -> None:
        self.count += 1
        self._tokens += tokens
        self._seconds += seconds
        self._squares += tokens * tokens / seconds

    def mean(self) -> float:
        return self._tokens / max(1e-9, self._seconds)

    def error(self) -> float:
        """Standard error, as a share of the mean."""
        mean = self.mean()
        if self.count < 2 or mean <= 0.0:
            return 1.0
        variance = max(0.0, self._squares / self._seconds - mean * mean)
        return math.sqrt(variance / (self.count - 1)) / mean
