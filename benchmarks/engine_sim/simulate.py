"""One run: a scenario, a controller for each endpoint, a seed."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from benchmarks.engine_sim.client import Client, Counts, Endpoint, Faults, tenant
from benchmarks.engine_sim.engine import Engine
from benchmarks.engine_sim.scenarios import Add, Burst, Change, Event, Lose, Restart, Scenario, Tenant
from benchmarks.engine_sim.sequence import End, EngineSpec
from benchmarks.engine_sim.world import World
from services.kit.spec.client import ClientPolicy
from services.runner.inference.limit import START, Controller

SAMPLE_S = 1.0

Make = Callable[[ClientPolicy, int], Controller]
"""A controller for the endpoint with this number."""


@dataclass
class Run:
    """What came of it. The series have one value a second."""

    counts: Counts
    useful: float
    """Tokens of prompts and outputs, each counted once."""
    preemptions: int
    recomputed: int
    ended: float
    limits: list[int] = field(default_factory=list)
    tokens: list[float] = field(default_factory=list)
    """Useful ones so far."""
    in_flight: list[int] = field(default_factory=list)
    waiting: list[int] = field(default_factory=list)
    """Requests that the engines have but do not run."""


class Simulation:
    def __init__(self, scenario: Scenario, make: Make, seed: int, requests: int | None = None) -> None:
        self.world = World(seed)
        factor = max(8.0, scenario.cap / START)
        self.policy = ClientPolicy(max_concurrency=scenario.cap, adaptive_max_factor=factor)
        self.scenario = scenario
        source = itertools.islice(scenario.workload.requests(seed), requests)
        faults = Faults()
        faults.error_rate, faults.delay_s = scenario.error_rate, scenario.delay_s
        self.client = Client(self.world, self.policy, source, faults)
        self.engines: list[Engine] = []
        self._make = make
        self._seed = seed
        for spec in scenario.engines:
            self._add(spec)
        for event in scenario.events:
            self._arrange(event)

    def run(self) -> Run:
        world, scenario = self.world, self.scenario
        run = Run(self.client.counts, 0.0, 0, 0, 0.0)
        world.every(SAMPLE_S, lambda: self._sample(run), scenario.seconds)
        if scenario.metrics:
            world.every(scenario.poll_s, self._poll, scenario.seconds)
        self.client.pump()
        world.run(scenario.seconds)
        run.useful = sum(engine.useful_now() for engine in self.engines)
        run.preemptions = sum(engine.preempted for engine in self.engines)
        run.recomputed = sum(engine.recomputed for engine in self.engines)
        run.ended = world.now
        return run

    def _add(self, spec: EngineSpec) -> Endpoint:
        engine = Engine(self.world, spec)
        self.engines.append(engine)
        return self.client.add(engine, self._make(self.policy, len(self.engines) - 1))

    def _sample(self, run: Run) -> None:
        run.limits.append(self.client.limit())
        run.tokens.append(sum(engine.useful_now() for engine in self.engines))
        run.in_flight.append(self.client.in_flight)
        run.waiting.append(sum(len(engine.waiting) for engine in self.engines))

    def _poll(self) -> None:
        for endpoint in self.client.endpoints:
            if endpoint.engine.up and endpoint.healthy:
                endpoint.controller.on_metrics(endpoint.engine.metrics(), endpoint.in_flight, self.world.now)
        self.client.pump()

    def _arrange(self, event: Event) -> None:
        at = self.world.at
        match event:
            case Change():
                at(event.at, lambda: self.engines[event.engine].change(event.spec))
            case Restart():
                at(event.at, self.engines[event.engine].stop)
                at(event.at + event.seconds, self.engines[event.engine].start)
            case Burst():
                at(event.at, lambda: self._burst(event))
            case Tenant():
                at(event.at, lambda: self._tenant(event))
            case Add():
                at(event.at, lambda: self._join(event.spec))
            case Lose():
                at(event.at, lambda: self._lose(event.engine))

    def _burst(self, event: Burst) -> None:
        faults = self.client.faults
        faults.unavailable = True

        def over() -> None:
            faults.unavailable = False

        self.world.after(event.seconds, over)
        for engine in self.engines:
            engine.abort(End.UNAVAILABLE)

    def _tenant(self, event: Tenant) -> None:
        source = replace(self.scenario.workload, groups=0).requests(self._seed + 1)
        tenant(self.world, self.engines[event.engine], source, event.per_second, event.until)

    def _join(self, spec: EngineSpec) -> None:
        self._add(spec)
        self.client.pump()

    def _lose(self, number: int) -> None:
        engine = self.engines[number]
        self.client.endpoints = [e for e in self.client.endpoints if e.engine is not engine]
        engine.stop()
        self.client.pump()


def simulate(scenario: Scenario, make: Make, seed: int, requests: int | None = None) -> Run:
    return Simulation(scenario, make, seed, requests).run()
