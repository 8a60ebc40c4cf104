"""How many requests one endpoint may have in flight. Pure: times and sequence numbers are arguments.

`Adaptive` takes no latency for a signal: engines queue, and a longer answer is not overload. It doubles per round trip
until the engine says that it has enough, cuts once per flight and at most once a second, and then climbs gently, the
faster the longer nothing happens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

from services.kit.spec.client import ClientPolicy

START = 32
CUT = 0.75
CUT_INTERVAL_S = 1.0
# A single refusal, or fewer than this share of a flight, is noise: a flaky proxy must not starve a healthy engine.
NOISE_COUNT = 2
NOISE = 0.03
GENTLE = 0.05
FASTEST = 0.5
# Flights without a refusal after which the gentle growth doubles.
QUIET_FLIGHTS = 20


@dataclass(frozen=True, slots=True)
class Sample:
    """What a request that was answered tells besides that."""

    now: float
    """Seconds on the monotonic clock, when the answer was there."""
    latency_s: float
    prompt_tokens: int = 0
    """As the engine counts them in `usage`; 0: it does not say."""
    completion_tokens: int = 0
    ttft_s: float | None = None
    """Until the first token, where the answer was streamed."""


@dataclass(frozen=True, slots=True)
class EngineMetrics:
    """One look at the engine's own metrics. None: this engine does not show it. Counters only grow, but for a restart."""

    running: int
    waiting: int
    kv_usage: float | None = None
    """Share of the KV cache that running requests hold, 0 to 1."""
    preemptions: int | None = None
    """Counter of requests that lost their KV cache and are computed again."""
    generation_tokens: float | None = None
    """Counter of tokens generated."""
    prompt_tokens: float | None = None
    """Counter of prompt tokens, those from the prefix cache included."""


class Controller(Protocol):
    """Told about every request that ends; asked before every request that starts."""

    reason: str
    """Why the limit moved last."""

    def limit(self) -> int: ...

    def on_success(self, sent: int, in_flight: int, sample: Sample | None = None) -> None:
        """The request with sequence number `sent` was answered; `in_flight` counts it still."""
        ...

    def on_overload(self, sent: int, last_sent: int, now: float, in_flight: int | None = None) -> None:
        """The engine refused the request `sent`, or let it die, at second `now`; `last_sent` is the newest request.

        `in_flight` counts the request still.
        """
        ...

    def on_ignore(self) -> None:
        """It ended in a way that says nothing about load."""
        ...

    def on_metrics(self, metrics: EngineMetrics, in_flight: int, now: float) -> None:
        """What the engine's metrics said at second `now`; never called for an engine without."""
        ...


class Fixed:
    """`adaptive_concurrency: false`."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.reason = "fixed"

    def limit(self) -> int:
        return self._limit

    def on_success(self, sent: int, in_flight: int, sample: Sample | None = None) -> None:
        """The limit does not move."""

    def on_overload(self, sent: int, last_sent: int, now: float, in_flight: int | None = None) -> None:
        """The limit does not move."""

    def on_ignore(self) -> None:
        """The limit does not move."""

    def on_metrics(self, metrics: EngineMetrics, in_flight: int, now: float) -> None:
        """The limit does not move."""


class Adaptive:
    """Additive in successes, multiplicative in refusals."""

    def __init__(self, cap: int, max_factor: float, start: int = START) -> None:
        self._value = float(min(start, cap))
        self._ceiling = float(min(cap, math.ceil(self._value * max_factor)))
        self._climbing = True
        self._cut_at = -math.inf
        self._newest_at_cut = 0
        self._quiet = 0
        self._answered = 0
        self._refused = 0
        self.reason = "start"

    def limit(self) -> int:
        return int(self._value)

    def on_success(self, sent: int, in_flight: int, sample: Sample | None = None) -> None:
        if sent <= self._newest_at_cut:
            return  # it was sent under an earlier limit
        self._count()
        self._quiet += 1
        if in_flight + 1 < int(self._value) or self._value >= self._ceiling:
            return  # a limit that is not reached says nothing about a higher one
        # Per success, so that a flight of `limit` of them adds up: to twice the limit, or to a few percent more.
        self._value = min(self._ceiling, self._value + self._growth())
        self.reason = "climbing" if self._climbing else "recovering"

    def on_overload(self, sent: int, last_sent: int, now: float, in_flight: int | None = None) -> None:
        if sent <= self._newest_at_cut:
            return
        self._refused += 1
        self._count()
        if (
            self._refused < max(min(NOISE_COUNT, self._value), NOISE * self._value)
            or now < self._cut_at + CUT_INTERVAL_S
        ):
            return
        self._value = max(1.0, self._value * CUT)
        self._climbing = False
        self._cut_at, self._newest_at_cut = now, last_sent
        self._quiet = self._answered = self._refused = 0
        self.reason = "overload"

    def on_ignore(self) -> None:
        """A broken answer is no sign of load."""

    def on_metrics(self, metrics: EngineMetrics, in_flight: int, now: float) -> None:
        """It does not use them."""

    def _growth(self) -> float:
        if self._climbing:
            return 1.0
        flights = self._quiet / self._value
        return float(min(FASTEST, GENTLE * 2.0 ** min(flights // QUIET_FLIGHTS, 8)))

    def _count(self) -> None:
        """Refusals are counted per flight: old ones are no evidence."""
        self._answered += 1
        if self._answered > self._value:
            self._answered = self._refused = 0


def controller(policy: ClientPolicy) -> Controller:
    if policy.adaptive_concurrency:
        return Adaptive(policy.max_concurrency, policy.adaptive_max_factor)
    return Fixed(policy.max_concurrency)
