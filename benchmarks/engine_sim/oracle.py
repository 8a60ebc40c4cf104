"""The oracle: the best fixed limits, one for each endpoint and phase of a scenario, found by search over whole runs.

It knows the future: the phases are those of the scenario. Limits at which more than 1% of the requests are refused do not
count, and of those that are equally good (within half a percent) it takes the lowest: a long queue is no merit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.engine_sim.scenarios import Scenario
from benchmarks.engine_sim.simulate import Make, Run, Simulation, simulate
from services.kit.spec.client import ClientPolicy
from services.runner.inference.limit import Controller, Fixed

GRID = (
    1,
    2,
    3,
    4,
    5,
    6,
    8,
    10,
    12,
    14,
    16,
    20,
    24,
    28,
    32,
    40,
    48,
    56,
    64,
    72,
    80,
    96,
    112,
    128,
    144,
    160,
    176,
    192,
    208,
)
GRID_ABOVE = (224, 256, 320, 400, 512, 640, 800, 1_024)
STEPS = (0.25, 0.5, 0.7, 0.85, 0.93, 1.0, 1.07, 1.15, 1.3, 1.6, 2.0, 3.0)
AS_GOOD = 0.995
MOST_REFUSED = 0.01

Limits = tuple[tuple[int, ...], ...]
"""By phase, then by endpoint."""


class Scheduled(Fixed):
    """A fixed limit that is set from outside."""

    def set(self, limit: int) -> None:
        self._limit = limit


@dataclass(frozen=True)
class Oracle:
    limits: Limits
    run: Run
    fixed: int
    """The best single limit for all endpoints and all of the time."""
    fixed_run: Run


def fixed(limit: int) -> Make:
    def make(policy: ClientPolicy, number: int) -> Controller:
        return Fixed(limit)

    return make


def scheduled(scenario: Scenario, limits: Limits, seed: int) -> Run:
    """A run in which each endpoint has its limit of the phase."""
    made: list[Scheduled] = []

    def make(policy: ClientPolicy, number: int) -> Controller:
        phase = max(i for i, at in enumerate(scenario.phases) if at <= simulation_now())
        made.append(Scheduled(limits[phase][number]))
        return made[-1]

    clock: list[Simulation] = []

    def simulation_now() -> float:
        return clock[0].world.now if clock else 0.0

    simulation = Simulation(scenario, make, seed)
    clock.append(simulation)

    def enter(phase: int) -> None:
        for controller, limit in zip(made, limits[phase], strict=False):
            controller.set(limit)
        simulation.client.pump()

    for phase, at in enumerate(scenario.phases):
        simulation.world.at(at, lambda phase=phase: enter(phase))  # type: ignore[misc]
    return simulation.run()


def find(scenario: Scenario, seed: int) -> Oracle:
    """About 30 runs, and 12 more for each endpoint and phase where there are several."""
    grid = [limit for limit in (*GRID, *GRID_ABOVE) if limit <= scenario.cap]
    if scenario.cap not in grid:
        grid.append(scenario.cap)
    runs: dict[int, Run] = {}
    for limit in grid:
        runs[limit] = simulate(scenario, fixed(limit), seed)
        if not _kind(runs[limit]):
            break  # those above are refused still more
    limit = _lowest(runs)
    for near in {max(1, round(limit * step)) for step in (0.9, 0.95, 1.05, 1.1)} - runs.keys():
        if near <= scenario.cap:
            runs[near] = simulate(scenario, fixed(near), seed)
    limit = _lowest(runs)
    limits: Limits = tuple((limit,) * _endpoints(scenario) for _ in scenario.phases)
    best = runs[limit]
    if len(scenario.phases) > 1 or _endpoints(scenario) > 1:
        limits, best = _descend(scenario, seed, limits)
        if best.useful < runs[limit].useful:
            best = runs[limit]
    return Oracle(limits, best, limit, runs[limit])


def _descend(scenario: Scenario, seed: int, limits: Limits) -> tuple[Limits, Run]:
    """One coordinate after the other, twice."""
    best = scheduled(scenario, limits, seed)
    for _ in range(2):
        for phase in range(len(scenario.phases)):
            for endpoint in range(len(limits[phase])):
                now = limits[phase][endpoint]
                tried = {now: best}
                for limit in {min(scenario.cap, max(1, round(now * step))) for step in STEPS} - {now}:
                    tried[limit] = scheduled(scenario, _with(limits, phase, endpoint, limit), seed)
                limit = _lowest(tried)
                limits, best = _with(limits, phase, endpoint, limit), tried[limit]
    return limits, best


def _with(limits: Limits, phase: int, endpoint: int, limit: int) -> Limits:
    rows = [list(row) for row in limits]
    rows[phase][endpoint] = limit
    return tuple(tuple(row) for row in rows)


def _kind(run: Run) -> bool:
    return run.counts.refused <= MOST_REFUSED * run.counts.sent


def _lowest(runs: dict[int, Run]) -> int:
    kind = {limit: run for limit, run in runs.items() if _kind(run)} or runs
    most = max(run.useful for run in kind.values())
    return min(limit for limit, run in kind.items() if run.useful >= AS_GOOD * most)


def _endpoints(scenario: Scenario) -> int:
    return len(scenario.engines) + sum(type(event).__name__ == "Add" for event in scenario.events)


def at(limits: Limits, phases: Sequence[float], second: float) -> int:
    """The sum of the oracle's limits at a time, for plots."""
    phase = max(i for i, begin in enumerate(phases) if begin <= second)
    return sum(limits[phase])
