"""How far a controller is from the oracle, in the terms of the table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from benchmarks.engine_sim.scenarios import Scenario
from benchmarks.engine_sim.simulate import SAMPLE_S, Run

WINDOW = 10
SETTLED = 0.9
REST = 30
"""Seconds after a disturbance that do not count as oscillation."""
SWING = 60
"""Seconds in which a limit that goes up and down oscillates; slower, it follows the load."""


@dataclass(frozen=True)
class Score:
    fraction: float
    """Useful tokens against those of the oracle, ramp included."""
    refused: float
    """Answers of 429 per request that was done."""
    preempted: float
    """Preemptions per request that was done."""
    failed: int
    """Requests that ended in an error."""
    settle_s: float
    """The longest that it took, after the start or a disturbance, until ten seconds brought 90% of the oracle's tokens."""
    oscillation: float
    """Half the range of the limit within a minute, over its middle, from 30 s after a disturbance to the next; the worst."""
    queued: float
    """Requests that waited in the engines, on average."""


def score(scenario: Scenario, run: Run, oracle: Run) -> Score:
    done = max(1, run.counts.done)
    edges = [*scenario.disturbances, scenario.seconds]
    spans = [(int(a), int(b)) for a, b in pairwise(edges)]
    settles = [_settle(run.tokens, oracle.tokens, begin, end) for begin, end in spans]
    return Score(
        fraction=run.useful / oracle.useful,
        refused=run.counts.refused / done,
        preempted=run.preemptions / done,
        failed=run.counts.failed,
        settle_s=max(settles),
        oscillation=max(_oscillation(run.limits[begin + REST : end - 1]) for begin, end in spans),
        queued=sum(run.waiting) / max(1, len(run.waiting)),
    )


def _settle(tokens: Sequence[float], best: Sequence[float], begin: int, end: int) -> float:
    """Seconds from `begin`; the length of the span if it never settles."""
    end = min(end, len(tokens) - 1)
    mean = (best[end] - best[min(begin + WINDOW, end - 1)]) / max(1, end - min(begin + WINDOW, end - 1))
    for second in range(begin, end - WINDOW):
        wanted = min(best[second + WINDOW] - best[second], mean * WINDOW)
        if tokens[second + WINDOW] - tokens[second] >= SETTLED * wanted:
            return (second - begin) * SAMPLE_S
    return (end - begin) * SAMPLE_S


def _oscillation(limits: Sequence[int]) -> float:
    worst = 0.0
    for begin in range(0, max(1, len(limits) - SWING), 5):
        span = limits[begin : begin + SWING]
        if span:
            low, high = min(span), max(span)
            worst = max(worst, (high - low) / max(1, high + low))
    return worst
