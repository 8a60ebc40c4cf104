"""What a limit brings: tokens a second at one limit against another. Pure: times are arguments."""

from __future__ import annotations

import math
from collections import deque

from services.runner.inference.limit import Sample

# A prompt token costs about a quarter of one that is generated.
PROMPT_WEIGHT = 0.25
# Levels of concurrency are powers of this; of two that are `APART` steps apart, the higher one has to bring so much more.
LEVEL, APART, GAIN = 1.2, 4, 1.08
GRID_S, GRID = 0.25, 4_096
# A trial is one step down, or up. As good with less is better; more has to be worth it.
STEP_DOWN, STEP_UP, STEP_UP_BLIND = 0.75, 1.2, 1.35
AS_GOOD, BETTER = 0.975, 1.03
# The first trial, the wait after one that found nothing (it doubles), and before the one that goes the other way.
FIRST_S, FIRST_WAIT_S, LONGEST_S, OTHER_WAY_S = 10.0, 60.0, 480.0, 5.0
# Smaller limits are not tried: one request is too large a step.
LEAST = 12
# After a step, answers begin to be those of the new limit.
SETTLE_S, SETTLE_MOST_S = 3.0, 20.0
# Seconds of measuring, from and to. A trial ends as soon as it is clear.
BASE_S = (8.0, 15.0)
TRIAL_S = (5.0, 25.0)
LEAST_ANSWERS, MOST_SURE = 32, 48
SURE = 0.012
# A rate so far under that of the last trial: what was found does not hold. So far under it at a higher limit: go back.
REGIME, REGIME_S, FELL = 0.7, 10.0, 0.75


class Curve:
    """Without metrics: tokens a second against requests in flight, from the latency of each answer.

    An answer of t tokens that took s seconds while n requests were in flight stands for n * t / s tokens a second. That
    needs no steady state, long answers weigh as much as they take, and time spent in a silent queue shows at once.
    """

    def __init__(self) -> None:
        self._history: deque[float] = deque(maxlen=GRID)
        """What was in flight, every `GRID_S` back from `_at`."""
        self._at = 0.0
        self.held: Rates | None = None
        self._looked = -1
        """The level that was looked at last for as long as it takes."""
        self._levels: dict[int, list[float]] = {}
        """By level, a power of `LEVEL`: tokens times in flight, seconds, answers."""

    def answered(self, sample: Sample, in_flight: int) -> float:
        """How many were in flight while it ran, on average."""
        if not self._history or sample.now - self._at > GRID_S * GRID:
            self._history.clear()
            self._at = sample.now
        while self._at <= sample.now:
            self._history.append(in_flight)
            self._at += GRID_S
        back = min(len(self._history), 1 + int(sample.latency_s / GRID_S))
        mean = max(1.0, 0.5 * (self._history[-back] + in_flight))
        level = self._levels.setdefault(round(math.log(mean, LEVEL)), [0.0, 0.0, 0.0])
        level[0] += mean * weigh(sample)
        level[1] += sample.latency_s
        level[2] += 1.0
        return mean

    def peak(self, in_flight: float, sample: Sample) -> float | None:
        """The level to go back to, when twice as many requests bring hardly more. First suspicion, then proof.

        While the limit climbs, short answers come first, and they are the slow ones by the token. So the climb is
        `held` for as many answers as are in flight, and these decide.
        """
        here = round(math.log(in_flight, LEVEL))
        if self.held is not None:
            self.held.add(in_flight * weigh(sample), sample.latency_s)
            if self.held.count < max(MOST_SURE, in_flight):
                return None
            rate, self.held, self._looked = self.held.mean(), None, here
        else:
            rate, count = self._pool(here - 1, here)
            if here < self._looked + 2 or count < max(24.0, 0.2 * in_flight):
                return None
        pools = {level: self._pool(level - 1, level + 1) for level in self._levels if level <= here - APART}
        lower = {level: found for level, (found, answers) in pools.items() if answers >= 16.0}
        best = max(lower.values(), default=0.0)
        if rate >= GAIN * best:
            return None
        if self._looked != here:
            self.held = Rates()
            return None
        return float(LEVEL ** max(level for level, found in lower.items() if found >= AS_GOOD * best))

    def _pool(self, first: int, last: int) -> tuple[float, float]:
        """Tokens a second, and answers, of some levels together."""
        found = [self._levels[level] for level in range(first, last + 1) if level in self._levels]
        tokens, seconds, answers = (sum(values) for values in zip(*found, strict=True)) if found else (0.0, 0.0, 0.0)
        return tokens / max(1e-9, seconds), answers


def weigh(sample: Sample) -> float:
    """An engine that does not count tokens: an answer is an answer."""
    return sample.completion_tokens + PROMPT_WEIGHT * sample.prompt_tokens or 1.0


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
        self._other_way = False
        """The next one goes the other way, soon."""
        self._blind = False
        self._down = True
        self._base = self._tried = self._base_rate = self._base_error = 0.0
        self._rates = Rates()
        self._latency_s = self._rate = 0.0
        self._peak = (0.0, 0.0)
        """(limit, rate) of the highest rate since the limit was as low."""
        self._steady: tuple[float, float] = (0.0, 0.0)

    @property
    def ceiling(self) -> float:
        return max(1.0, self._ceiling - self.others)

    def found(self, limit: float) -> None:
        self._ceiling = limit + self.others

    def down_first(self) -> None:
        self._down = False

    def fell(self, value: float) -> float | None:
        """The limit to go back to, when the rate fell while the limit rose; from a rate that is averaged over seconds."""
        if self._rate >= self._peak[1] or value <= self._peak[0]:
            self._peak = (value, self._rate)
        if value > 1.15 * self._peak[0] and self._rate < FELL * self._peak[1]:
            return self._peak[0]
        return None

    def seen(self, tokens: float, seconds: float) -> None:
        if seconds > 0.0:
            self._rate += (tokens / seconds - self._rate) * min(1.0, seconds / REGIME_S)

    def share(self, others: float, seconds: float) -> None:
        """The engine's metrics: how many requests of others it has. A far lower rate than that of the last trial, for a
        while, means that what it has found does not hold any more."""
        self.others += (others - self.others) * min(1.0, seconds / REGIME_S)
        if self.running:
            return
        if self._rate < REGIME * self._base_rate:
            self._ceiling, self._base_rate = math.inf, 0.0
        else:
            self._base_rate = max(self._base_rate, self._rate)

    def stop(self, now: float) -> float | None:
        """The limit to go back to, if a higher one was being tried."""
        if not self.running:
            return None
        self.running = False
        self._due = now + 20.0
        return None if self._down or self._stage == "base" else self._base

    def consider(
        self, value: float, most: float, in_flight: int, now: float, *, blind: bool, room: bool = True
    ) -> None:
        """Begin one, once the limit has stood still; a higher one only if there is `room` for it."""
        if abs(value - self._steady[0]) > 0.1 * value:
            self._steady = (value, now)
        if value > 1.3 * self._base > 0.0:
            self._due, self._wait = min(self._due, now), FIRST_WAIT_S  # nothing is known of limits so high
        if now < self._due or now < self._steady[1] + 5.0 or value < LEAST or in_flight < 0.9 * value:
            return
        self._down = not (self._down and room and self.ceiling < most)
        self.running, self._blind = True, blind
        self._base, self._stage = value, "base"
        self._mark(now)

    def add(self, tokens: float, seconds: float) -> None:
        if self._stage != "drain":
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
        if not self._enough(now):
            return None
        measured = self._rates
        if self._stage == "base":
            self._base_rate, self._base_error = measured.mean(), measured.error()
            return self._next(now)
        if self._verdict() < self._doubt():
            return self._back(now)
        # As good with less, or better with more: stay, and go on from there.
        self._base = self._tried
        self.found(self._tried)
        self._base_rate = max(measured.mean(), self._base_rate)
        self._base_error = measured.error()
        self._wait, self._other_way = FIRST_WAIT_S, False
        return self._next(now)

    def _enough(self, now: float) -> bool:
        measured, seconds = self._rates, now - self.since
        if self._stage == "base":
            many = not self._blind or measured.count >= LEAST_ANSWERS
            return many and (seconds >= BASE_S[1] or (seconds >= BASE_S[0] and measured.error() < SURE))
        if measured.count < (LEAST_ANSWERS if self._blind else TRIAL_S[0]):
            return False
        sure = measured.error() < SURE and seconds >= 2 * TRIAL_S[0]
        if self._verdict() > self._doubt():
            return seconds >= 2 * TRIAL_S[0]
        return sure or seconds >= TRIAL_S[1] or self._verdict() < -self._doubt()

    def _verdict(self) -> float:
        """By how much the rate is better than what would be good enough, as a share."""
        least = AS_GOOD if self._down else BETTER
        return self._rates.mean() / max(1e-9, self._base_rate) - least

    def _doubt(self) -> float:
        return 1.5 * math.hypot(self._rates.error(), self._base_error)

    def _back(self, now: float) -> float:
        self.running = False
        self._other_way = not self._other_way and self._ceiling < math.inf
        if self._other_way:
            self._due = now + OTHER_WAY_S
        else:
            self._due = now + self._wait
            self._wait = min(LONGEST_S, 2 * self._wait)
        return self._base

    def _next(self, now: float) -> float:
        self._tried = self._base * (STEP_DOWN if self._down else STEP_UP_BLIND if self._blind else STEP_UP)
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
        if seconds <= 0.0:
            return
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
