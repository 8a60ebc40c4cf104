"""The adaptive controller: what holds whatever comes, and what it does in the cases that it was made for."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.engine_sim.scenarios import Burst, Scenario, hard
from benchmarks.engine_sim.simulate import simulate
from benchmarks.engine_sim.specs import H100_8B, H100X4_70B
from benchmarks.engine_sim.workload import CHAT, MIXED
from services.kit.spec.client import ClientPolicy
from services.runner.inference.adaptive import AdaptiveController
from services.runner.inference.evidence import CUTS, Wall
from services.runner.inference.goodput import Curve, Rates, Trial
from services.runner.inference.limit import EngineMetrics, Fixed, Sample, controller

SHORT = Scenario("short", "for tests", (H100_8B,), CHAT, seconds=120.0)


def ours(policy: ClientPolicy, number: int) -> AdaptiveController:
    return AdaptiveController(policy.max_concurrency, policy.adaptive_max_factor)


EVENTS = st.one_of(
    st.tuples(st.just("success"), st.integers(0, 400), st.floats(0.0, 100.0), st.integers(0, 9_000)),
    st.tuples(st.just("overload"), st.integers(0, 400), st.floats(0.0, 100.0), st.integers(0, 9_000)),
    st.tuples(st.just("metrics"), st.integers(0, 400), st.floats(0.0, 1.0), st.integers(0, 900)),
    st.tuples(st.just("ignore"), st.just(0), st.just(0.0), st.just(0)),
)


@given(
    cap=st.integers(1, 300),
    factor=st.floats(1.0, 1e6),
    start=st.integers(1, 64),
    events=st.lists(st.tuples(EVENTS, st.floats(0.0, 20.0), st.booleans()), max_size=200),
)
@settings(deadline=None, max_examples=150)
def test_the_limit_stays_between_one_and_the_cap(
    cap: int,
    factor: float,
    start: int,
    events: list[tuple[tuple[str, int, float, int], float, bool]],
) -> None:
    limiter = AdaptiveController(cap, factor, start)
    highest = min(cap, max(1, int(min(start, cap) * factor) + 1))
    now, preemptions = 0.0, 0
    for number, ((kind, many, value, tokens), rest, told) in enumerate(events, 1):
        now += rest
        match kind:
            case "success":
                sample = Sample(now, value, tokens, tokens // 3) if told else None
                limiter.on_success(number, many, sample)
            case "overload":
                limiter.on_overload(number, number + many, now, many if told else None)
            case "metrics":
                preemptions += tokens % 3
                counters = (preemptions, float(number * tokens), float(tokens)) if told else (None, None, None)
                limiter.on_metrics(EngineMetrics(many, tokens, value if told else None, *counters), many, now)
            case _:
                limiter.on_ignore()
        assert 1 <= limiter.limit() <= highest


@given(st.lists(st.integers(1, 256), min_size=2, max_size=256), st.integers(33, 256))
def test_one_decrease_per_flight(refused: list[int], in_flight: int) -> None:
    """Whatever comes back refused of what was sent before the decrease, in whatever order, it does not count again."""
    limiter = AdaptiveController(256, 8.0, start=256)
    for number in refused:
        limiter.on_overload(number, 256, 10.0, in_flight)
    assert limiter.limit() >= int(CUTS[0] * 256)


def test_a_refusal_here_and_there_is_noise_and_two_in_a_row_are_a_wall() -> None:
    limiter = AdaptiveController(256, 8.0, start=200)
    limiter.on_overload(1, 200, 1.0, 200)
    limiter.on_success(2, 200)
    limiter.on_overload(3, 200, 1.1, 200)
    assert limiter.limit() >= 200
    limiter.on_overload(4, 200, 1.2, 200)
    assert limiter.limit() < 200
    assert limiter.reason == "overload"


def test_refused_slots_rest_for_a_second_and_half_of_them_at_most() -> None:
    wall = Wall()
    for sent in range(1, 100):
        wall.refused(sent, sent, 1.0, 64, 64.0)
    assert wall.resting == 32
    wall.rest(1.9)
    assert wall.resting == 32
    wall.rest(2.0)
    assert wall.resting == 0


def test_without_evidence_it_doubles_per_flight() -> None:
    limiter = AdaptiveController(256, 8.0)
    number = 0
    for flight in (64, 128, 256):
        for _ in range(limiter.limit()):
            number += 1
            limiter.on_success(number, limiter.limit())
        assert limiter.limit() == flight


def test_a_limit_that_is_not_reached_does_not_grow() -> None:
    limiter = AdaptiveController(256, 8.0)
    for number in range(1, 1_000):
        limiter.on_success(number, 10, Sample(0.1 * number, 1.0, 10, 10))
    for second in range(60):
        limiter.on_metrics(EngineMetrics(10, 0, 0.1, 0, 100.0 * second, 0.0), 10, float(100 + second))
    assert limiter.limit() == 32


@pytest.mark.parametrize("metrics", [True, False])
def test_a_longer_answer_is_no_evidence(metrics: bool) -> None:
    """From 32 to 256 in flight a step of this engine takes twice as long, and throughput grows on."""
    scenario = replace(SHORT, engines=(H100X4_70B,), workload=MIXED, metrics=metrics)
    run = simulate(scenario, ours, 1)
    assert max(run.limits) >= 200
    assert run.limits[-1] >= 150


def test_hungry_metrics_bring_it_to_the_cap_in_seconds() -> None:
    run = simulate(SHORT, ours, 1)
    assert run.limits[14] == 256


def test_what_waits_in_the_engine_brings_it_to_what_runs() -> None:
    scenario = replace(SHORT, engines=(replace(H100_8B, max_seqs=50),))
    run = simulate(scenario, ours, 1)
    assert 50 <= run.limits[-1] <= 56
    assert max(run.waiting[30:]) <= 12


def test_a_hard_limit_is_found_and_held() -> None:
    scenario = replace(SHORT, engines=(hard(H100_8B, 48),), metrics=False, seconds=300.0)
    run = simulate(scenario, ours, 1)
    assert run.counts.refused <= 0.01 * run.counts.done
    assert run.counts.failed == 0
    assert sum(run.limits[60:]) / len(run.limits[60:]) > 0.9 * 48
    assert max(run.limits) <= 50


@pytest.mark.parametrize("metrics", [True, False])
def test_after_a_burst_of_errors_it_is_back_within_seconds(metrics: bool) -> None:
    scenario = replace(SHORT, events=(Burst(60.0, 1.0),), metrics=metrics)
    run = simulate(scenario, ours, 1)
    before = run.limits[58]
    assert min(run.limits[59:70]) >= 0.3 * before
    assert run.limits[70] >= 0.9 * before


def test_errors_that_are_no_overload_move_nothing() -> None:
    calm = simulate(SHORT, ours, 1)
    errors = simulate(replace(SHORT, error_rate=0.01), ours, 1)
    assert errors.counts.broken > 10
    assert abs(errors.limits[-1] - calm.limits[-1]) <= 2


def test_without_metrics_a_silent_queue_ends_the_climb() -> None:
    scenario = replace(SHORT, engines=(replace(H100_8B, max_seqs=32),), cap=1_024, metrics=False, seconds=300.0)
    run = simulate(scenario, ours, 1)
    assert max(run.limits[60:]) < 200
    assert run.limits[-1] < 100


def test_adaptive_off_is_exact() -> None:
    fixed = controller(ClientPolicy(adaptive_concurrency=False, max_concurrency=37))
    assert isinstance(fixed, Fixed)
    run = simulate(replace(SHORT, cap=37), lambda policy, number: fixed, 1)
    assert set(run.limits) == {37}
    assert run.counts.most_in_flight == 37


@pytest.mark.parametrize(("power", "stops"), [(1.0, True), (0.5, False)])
def test_the_curve_knows_when_more_brings_nothing(power: float, stops: bool) -> None:
    """The latency grows with what is in flight to this power: 1 is a silent queue."""
    curve, now, found = Curve(), 0.0, []
    for many in (32, 64, 128):
        for _ in range(300):
            now += 0.5
            sample = Sample(now, 0.25 * (many / 32) ** power, 0, 100)
            curve.answered(sample, many)
            found.append(curve.peak(float(many), sample))
    assert any(found) == stops
    assert all(level is None or 24 <= level <= 80 for level in found)


def test_a_trial_keeps_what_is_as_good_and_gives_back_what_is_worse() -> None:
    for lower, kept in ((100.0, True), (80.0, False)):
        trial, value, now = Trial(), 100.0, 0.0
        limits = []
        while now < 120.0:
            now += 1.0
            if not trial.running:
                trial.consider(value, 256.0, int(value), now, blind=False)
            else:
                trial.add(100.0 if value > 99.0 else lower, 1.0)
                value = trial.step(int(value), now) or value
            limits.append(value)
        assert min(limits) < 76.0
        assert (limits[-1] < 76.0) == kept


@given(st.lists(st.tuples(st.floats(0.1, 1e4), st.floats(0.01, 100.0)), min_size=2, max_size=50))
def test_a_mean_of_equal_rates_is_sure(pairs: list[tuple[float, float]]) -> None:
    rates = Rates()
    for rate, seconds in pairs:
        rates.add(rate * seconds, seconds)
    lowest, highest = min(rate for rate, _ in pairs), max(rate for rate, _ in pairs)
    assert lowest * 0.999 <= rates.mean() <= highest * 1.001
    assert rates.error() >= 0.0
    same = Rates()
    for _, seconds in pairs:
        same.add(7.0 * seconds, seconds)
    assert same.error() < 1e-5
