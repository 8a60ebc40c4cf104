"""The simulated engine keeps to its physics, and the bench around it measures what it says."""

from __future__ import annotations

import itertools
import xml.etree.ElementTree as ET
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import adaptive
from benchmarks.engine_sim import oracle
from benchmarks.engine_sim.client import Client
from benchmarks.engine_sim.engine import Engine
from benchmarks.engine_sim.scenarios import SCENARIOS, Restart, Scenario, hard
from benchmarks.engine_sim.score import score
from benchmarks.engine_sim.sequence import EngineSpec
from benchmarks.engine_sim.simulate import simulate
from benchmarks.engine_sim.specs import H100_8B
from benchmarks.engine_sim.workload import ANSWERS_LONG, CHAT, SHARED, Lengths, Request, Workload
from benchmarks.engine_sim.world import World
from services.kit.spec.client import ClientPolicy
from services.runner.inference.limit import Fixed

SMALL_KV = replace(H100_8B, kv_tokens=20_000)
SHORT = Scenario("short", "for tests", (H100_8B,), CHAT, seconds=60.0)


def batch(spec: EngineSpec, requests: list[Request], limit: int) -> tuple[World, Engine, Client]:
    """All of them through one engine, `limit` at a time."""
    world = World(1)
    engine = Engine(world, spec)
    client = Client(world, ClientPolicy(max_concurrency=limit), iter(requests))
    client.add(engine, Fixed(limit))
    client.pump()
    world.run(1e9)
    return world, engine, client


def some(workload: Workload, count: int, seed: int = 1) -> list[Request]:
    return list(itertools.islice(workload.requests(seed), count))


@given(
    lengths=st.lists(st.tuples(st.integers(1, 3_000), st.integers(1, 600)), min_size=1, max_size=60),
    limit=st.integers(1, 64),
    kv=st.integers(4_000, 30_000),
    seqs=st.integers(1, 32),
)
@settings(deadline=None, max_examples=60)
def test_every_token_is_made_once_and_all_memory_comes_back(
    lengths: list[tuple[int, int]], limit: int, kv: int, seqs: int
) -> None:
    requests = [Request(i, prompt, output) for i, (prompt, output) in enumerate(lengths)]
    _, engine, client = batch(replace(H100_8B, kv_tokens=kv, max_seqs=seqs), requests, limit)
    assert client.counts.done == len(requests)
    assert engine.generated == sum(r.output for r in requests)
    assert engine.useful == sum(r.prompt + r.output for r in requests)
    assert (engine.kv, len(engine.running), len(engine.waiting)) == (0, 0, 0)


def test_a_request_alone_takes_what_its_steps_take() -> None:
    prompt, output = 1_000, 300
    spec = H100_8B
    world, _, _ = batch(spec, [Request(0, prompt, output)], 1)
    seconds = spec.base_s + spec.prefill_s * prompt
    for step in range(output - 1):
        seconds += spec.base_s + spec.sequence_s + spec.context_s * (prompt + 1 + step)
    assert world.now == pytest.approx(seconds)


def test_a_long_prompt_is_cut_to_the_budget() -> None:
    spec = replace(H100_8B, max_batched=1_000)
    world, _, _ = batch(spec, [Request(0, 4_500, 1)], 1)
    assert world.now == pytest.approx(5 * spec.base_s + 4_500 * spec.prefill_s)


def test_preemption_only_beyond_the_cache() -> None:
    requests = some(ANSWERS_LONG, 300)
    most = max(r.prompt + r.output for r in requests)
    fits = SMALL_KV.kv_tokens // most - 1
    assert batch(SMALL_KV, requests, fits)[1].preempted == 0
    _, engine, client = batch(SMALL_KV, requests, 64)
    assert engine.preempted > 50
    assert engine.recomputed > 0
    assert client.counts.done == len(requests)


def test_the_cache_and_the_sequences_stay_within_their_limits() -> None:
    spec = replace(SMALL_KV, max_seqs=24)
    world = World(1)
    engine = Engine(world, spec)
    client = Client(world, ClientPolicy(max_concurrency=64), iter(some(ANSWERS_LONG, 200)))
    client.add(engine, Fixed(64))
    seen = []
    world.every(0.05, lambda: seen.append((engine.metrics(), engine.kv)), 60.0)
    client.pump()
    world.run(60.0)
    assert max(metrics.running for metrics, _ in seen) <= 24
    assert max(kv for _, kv in seen) <= spec.kv_tokens
    assert max(metrics.kv_usage or 0.0 for metrics, _ in seen) > 0.9
    generated = [metrics.generation_tokens for metrics, _ in seen]
    assert generated == sorted(generated)


def test_a_cached_prefix_needs_no_prefill() -> None:
    requests = some(SHARED, 900)
    with_cache = batch(H100_8B, requests, 32)[0].now
    without = batch(replace(H100_8B, prefix_caching=False), requests, 32)[0].now
    assert with_cache < 0.8 * without


def test_a_cache_too_small_for_the_cycle_thrashes() -> None:
    requests = some(SHARED, 2_000)
    small = replace(H100_8B, kv_tokens=250_000, prefill_s=150e-6)
    assert batch(replace(small, kv_tokens=600_000), requests, 64)[0].now < 0.7 * batch(small, requests, 64)[0].now


def test_it_refuses_what_is_more_than_it_takes() -> None:
    _, engine, client = batch(hard(H100_8B, 8, 2), some(CHAT, 200), 10)
    assert client.counts.refused == 0
    _, _, client = batch(hard(H100_8B, 8, 2), some(CHAT, 200), 14)
    assert client.counts.refused > 0
    assert client.counts.done + client.counts.failed == 200
    assert engine.spec.max_waiting == 2


def test_a_restart_loses_the_work_and_the_batch_goes_on() -> None:
    scenario = replace(SHORT, events=(Restart(20.0, 10.0),), seconds=400.0)
    run = simulate(scenario, oracle.fixed(64), 1, requests=2_000)
    assert run.counts.lost >= 64
    assert run.counts.done == 2_000
    assert run.useful == sum(r.prompt + r.output for r in some(CHAT, 2_000))
    assert run.tokens[19] < run.tokens[18] + 20_000
    assert run.tokens[28] == run.tokens[22] < run.tokens[18]


def test_more_at_once_brings_more_until_the_knee() -> None:
    knee = replace(SHORT, engines=(replace(H100_8B, max_seqs=32),), seconds=200.0)
    useful = [simulate(knee, oracle.fixed(limit), 1).useful for limit in (4, 8, 16, 32, 64)]
    assert useful[:4] == sorted(useful[:4])
    assert useful[4] == pytest.approx(useful[3], rel=0.02)


@pytest.mark.parametrize("spec", [H100_8B, SMALL_KV, hard(H100_8B, 48)], ids=["free", "small cache", "hard"])
def test_the_oracle_is_a_maximum(spec: EngineSpec) -> None:
    scenario = replace(SHORT, engines=(spec,), workload=ANSWERS_LONG, seconds=120.0, cap=96)
    best = oracle.find(scenario, 1)
    for limit in (5, 17, 33, 47, 61, 79, 96):
        run = simulate(scenario, oracle.fixed(limit), 1)
        if run.counts.refused <= 0.01 * run.counts.sent:
            assert run.useful <= best.run.useful / oracle.AS_GOOD * 1.01, limit


def test_the_oracle_gives_each_endpoint_its_own_limit() -> None:
    slow = replace(H100_8B, max_seqs=8, speed=0.25)
    scenario = replace(SHORT, engines=(replace(H100_8B, max_seqs=48), slow), seconds=120.0, cap=56)
    best = oracle.find(scenario, 1)
    assert best.run.useful > 1.02 * best.fixed_run.useful
    assert best.limits[0][0] > 3 * best.limits[0][1]


def test_the_same_seed_is_the_same_run() -> None:
    scenario = replace(SHORT, error_rate=0.02, delay_s=0.5, engines=(replace(H100_8B, jitter=0.3),))
    make = adaptive.CONTROLLERS[adaptive.OURS]
    assert simulate(scenario, make, 5) == simulate(scenario, make, 5)
    assert simulate(scenario, make, 5).tokens != simulate(scenario, make, 6).tokens


def test_fifty_thousand_requests_run_to_the_end() -> None:
    requests = some(CHAT, 50_000)
    world, engine, client = batch(H100_8B, requests, 256)
    assert client.counts.done == 50_000
    assert engine.useful == sum(r.prompt + r.output for r in requests)
    assert 1_000 < world.now < 2_000


@given(median=st.floats(2, 5_000), sigma=st.floats(0, 2), low=st.integers(1, 50), seed=st.integers(0, 99))
def test_lengths_stay_within_their_bounds(median: float, sigma: float, low: int, seed: int) -> None:
    workload = Workload(Lengths(median, sigma, low, 4_096), Lengths(10, 0.0))
    for request in some(workload, 20, seed):
        assert low <= request.prompt <= 4_096
        assert request.output == 10


def test_scenarios_are_named_once_and_all_that_were_asked_for_are_there() -> None:
    names = [scenario.name for scenario in SCENARIOS]
    assert len(names) == len(set(names)) >= 14
    assert len({adaptive.file_name(scenario) for scenario in SCENARIOS}) == len(names)
    assert {event.__class__.__name__ for scenario in SCENARIOS for event in scenario.events} == {
        "Add",
        "Burst",
        "Change",
        "Lose",
        "Restart",
        "Tenant",
    }


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_the_cap_of_the_job_holds_in_every_scenario(scenario: Scenario) -> None:
    run = simulate(replace(scenario, seconds=60.0), adaptive.CONTROLLERS[adaptive.OURS], 2)
    assert 0 < run.counts.most_in_flight <= scenario.cap
    assert max(run.limits) <= scenario.cap


def test_the_score_of_the_oracle_is_one() -> None:
    best = simulate(SHORT, oracle.fixed(200), 1)
    own = score(SHORT, best, best)
    assert (own.fraction, own.settle_s, own.oscillation, own.refused) == (1.0, 0.0, 0.0, 0.0)
    worse = score(SHORT, simulate(SHORT, oracle.fixed(16), 1), best)
    assert worse.fraction < 0.5
    assert worse.settle_s > 50.0


@pytest.fixture(scope="module")
def results() -> list[list[adaptive.Result]]:
    """Two small scenarios, through everything that the bench does."""
    small = replace(SHORT, seconds=40.0, cap=48)
    other = replace(small, name="hard & <refusing>", engines=(hard(H100_8B, 24),), metrics=False)
    return [[adaptive.evaluate(small, 1)], [adaptive.evaluate(other, 1)]]


def test_the_table_has_a_row_for_each_scenario_and_one_for_the_mean(results: list[list[adaptive.Result]]) -> None:
    lines = adaptive.table(results).splitlines()
    assert len(lines) == 2 + 2 + 2
    assert {line.count("|") for line in lines} == {3 + len(adaptive.NAMES)}
    assert len(adaptive.details(results).splitlines()) == 4
    assert adaptive.rows(results)[0].goal.startswith(">= 95%")


def test_the_plots_are_well_formed(results: list[list[adaptive.Result]]) -> None:
    for row in results:
        root = ET.fromstring(adaptive.plot(row[0]))
        assert len(root.findall("{http://www.w3.org/2000/svg}polyline")) == 5
