"""The controllers, driven with numbers: an engine that answers in a known time and refuses above a known capacity."""

from __future__ import annotations

import heapq
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.kit.spec.client import ClientPolicy
from services.runner.inference.limit import Adaptive, Controller, Fixed, controller


def simulate(
    limiter: Controller,
    *,
    seconds: float,
    latency_s: float = 0.2,
    capacity: int = 10_000,
    error_rate: float = 0.0,
    outage: tuple[float, float] = (-1.0, -1.0),
) -> list[tuple[float, int]]:
    """(time, limit) at every answer. A refusal takes a millisecond, and the line rests half a second before it is back."""
    rand = random.Random(1)
    in_flight, sent, accepted = 0, 0, 0
    events: list[tuple[float, int, bool, bool]] = []
    trace = []

    def send(now: float) -> None:
        nonlocal in_flight, sent, accepted
        while in_flight < limiter.limit():
            in_flight += 1
            sent += 1
            fits = accepted < capacity and not outage[0] <= now < outage[1] and rand.random() >= error_rate
            accepted += fits
            heapq.heappush(events, (now + (latency_s if fits else 0.001), sent, fits, True))

    send(0.0)
    while events:
        now, number, fits, _ = heapq.heappop(events)
        if now > seconds:
            break
        if fits:
            accepted -= 1
            limiter.on_success(number, in_flight)
        else:
            limiter.on_overload(number, sent, now)
        in_flight -= 1
        trace.append((now, limiter.limit()))
        send(now)
    return trace


def test_with_200_ms_latency_it_stands_at_the_cap_within_a_second() -> None:
    trace = simulate(Adaptive(256, 8.0), seconds=1.0)
    assert trace[-1][1] == 256
    assert max(limit for _, limit in trace) == 256


@pytest.mark.parametrize(("cap", "factor", "ceiling"), [(256, 8.0, 256), (256, 2.0, 64), (256, 1.5, 48), (16, 8.0, 16)])
def test_the_ceiling_is_the_cap_or_the_factor(cap: int, factor: float, ceiling: int) -> None:
    trace = simulate(Adaptive(cap, factor), seconds=5.0)
    assert trace[-1][1] == ceiling


def test_it_settles_near_a_capacity() -> None:
    trace = simulate(Adaptive(256, 8.0), seconds=60.0, capacity=100)
    late = [limit for now, limit in trace if now > 10.0]
    assert min(late) >= 60
    assert max(late) <= 125


def test_an_outage_of_a_second_does_not_collapse_it() -> None:
    limiter = Adaptive(256, 8.0)
    trace = simulate(limiter, seconds=2.0, outage=(1.0, 2.0))
    assert trace[-1][1] >= 100


def test_one_percent_of_refusals_is_noise() -> None:
    trace = simulate(Adaptive(256, 8.0), seconds=20.0, error_rate=0.01)
    late = [limit for now, limit in trace if now > 5.0]
    assert sum(late) / len(late) > 200


def test_a_burst_of_refusals_is_one_cut() -> None:
    limiter = Adaptive(256, 8.0)
    for number in range(1, 33):
        limiter.on_overload(number, 32, 10.0)
    assert limiter.limit() == 24
    assert limiter.reason == "overload"


def test_a_limit_that_is_not_used_does_not_grow() -> None:
    limiter = Adaptive(256, 8.0)
    for number in range(1, 1000):
        limiter.on_success(number, 10)
    assert limiter.limit() == 32


def test_after_a_cut_it_grows_gently_and_later_faster() -> None:
    limiter = Adaptive(256, 8.0)
    simulate(limiter, seconds=2.0)
    limiter.on_overload(10**6, 10**6, 100.0)
    for _ in range(20):
        limiter.on_overload(10**6, 10**6, 100.0)
    start = limiter.limit()
    assert start == 192
    number = 10**6
    flights = 0
    while limiter.limit() < 256:
        flights += 1
        for _ in range(limiter.limit()):
            number += 1
            limiter.on_success(number, limiter.limit())
    assert 4 <= flights <= 20


def test_the_policy_chooses() -> None:
    assert isinstance(controller(ClientPolicy(adaptive_concurrency=True)), Adaptive)
    fixed = controller(ClientPolicy(adaptive_concurrency=False, max_concurrency=7))
    assert isinstance(fixed, Fixed)
    fixed.on_overload(1, 1, 0.0)
    fixed.on_success(1, 7)
    fixed.on_ignore()
    assert fixed.limit() == 7


@given(
    cap=st.integers(1, 256),
    factor=st.floats(1, 1_000_000),
    events=st.lists(st.tuples(st.booleans(), st.floats(0, 5), st.integers(0, 300)), max_size=300),
)
def test_the_limit_stays_between_one_and_the_cap(
    cap: int, factor: float, events: list[tuple[bool, float, int]]
) -> None:
    limiter = Adaptive(cap, factor)
    now = 0.0
    for number, (good, rest, in_flight) in enumerate(events, 1):
        now += rest
        before = limiter.limit()
        if good:
            limiter.on_success(number, in_flight)
            assert before <= limiter.limit() <= before + 1
        else:
            limiter.on_overload(number, number, now)
            assert limiter.limit() >= int(before * 0.75) or limiter.limit() == 1
        assert 1 <= limiter.limit() <= cap
