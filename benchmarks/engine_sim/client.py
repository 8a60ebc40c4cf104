"""Sends a batch as the runner does: a cap over all endpoints, a controller for each, retries, and rests for dead ones.

The rules are those of services/runner/inference (dispatch, limiter, endpoints, retry); the clock is not.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.engine_sim.engine import Engine
from benchmarks.engine_sim.sequence import End, Sequence
from benchmarks.engine_sim.workload import Request
from benchmarks.engine_sim.world import World
from services.kit.spec.client import ClientPolicy
from services.runner.inference.dispatch import BEGUN_PER_SLOT
from services.runner.inference.endpoints import DROPS, FIRST_PROBE_S, LONGEST_PROBE_S
from services.runner.inference.limit import Controller, Sample
from services.runner.inference.outcome import Kind, Outcome
from services.runner.inference.retry import retry_delay

REFUSAL_S = 0.002
STATUS = {End.REFUSED: 429, End.UNAVAILABLE: 503, End.BROKEN: 500}


class Endpoint:
    """An engine as the client sees it."""

    def __init__(self, engine: Engine, controller: Controller) -> None:
        self.engine = engine
        self.controller = controller
        self.healthy = True
        self.in_flight = 0
        self.sent = 0
        self.drops = 0
        self.probe_s = FIRST_PROBE_S


@dataclass
class Counts:
    sent: int = 0
    done: int = 0
    failed: int = 0
    """Requests that ended in an error after all attempts."""
    refused: int = 0
    """Answers of 429."""
    broken: int = 0
    lost: int = 0
    most_in_flight: int = 0


class Faults:
    """What stands between client and engine: errors that are decided there, and a network that is late."""

    def __init__(self) -> None:
        self.error_rate = 0.0
        """Share of requests that get a 500."""
        self.unavailable = False
        """Everything gets a 503."""
        self.delay_s = 0.0
        """Mean of an exponential that every answer is late by."""


class Client:
    def __init__(
        self, world: World, policy: ClientPolicy, source: Iterator[Request], faults: Faults | None = None
    ) -> None:
        self.world = world
        self.policy = policy
        self.counts = Counts()
        self.in_flight = 0
        self.endpoints: list[Endpoint] = []
        self.faults = faults or Faults()
        self._source = source
        self._again: deque[Request] = deque()
        self._attempts: dict[int, int] = {}
        self._begun = 0
        self._dry = False

    def add(self, engine: Engine, controller: Controller) -> Endpoint:
        endpoint = Endpoint(engine, controller)
        self.endpoints.append(endpoint)
        return endpoint

    def pump(self) -> None:
        """Send what may be sent."""
        cap = self.policy.max_concurrency
        while self.in_flight < cap and (endpoint := self._pick()) and (request := self._take()):
            self._send(endpoint, request)

    def limit(self) -> int:
        return min(self.policy.max_concurrency, sum(e.controller.limit() for e in self.endpoints if e.healthy))

    def _pick(self) -> Endpoint | None:
        best = None
        for endpoint in self.endpoints:
            if (
                endpoint.healthy
                and endpoint.in_flight < endpoint.controller.limit()
                and (best is None or endpoint.in_flight < best.in_flight)
            ):
                best = endpoint
        return best

    def _take(self) -> Request | None:
        if self._again:
            return self._again.popleft()
        if self._dry or self._begun >= BEGUN_PER_SLOT * self.policy.max_concurrency:
            return None
        request = next(self._source, None)
        if request is None:
            self._dry = True
            return None
        self._begun += 1
        self._attempts[request.number] = 0
        return request

    def _send(self, endpoint: Endpoint, request: Request) -> None:
        self.in_flight += 1
        endpoint.in_flight += 1
        endpoint.sent += 1
        counts = self.counts
        counts.sent += 1
        counts.most_in_flight = max(counts.most_in_flight, self.in_flight)
        self._attempts[request.number] += 1
        number, begun, faults = endpoint.sent, self.world.now, self.faults

        def end(sequence: Sequence, how: End) -> None:
            if faults.delay_s and how is End.DONE:
                delay = self.world.rand.expovariate(1 / faults.delay_s)
                self.world.after(delay, lambda: self._ended(endpoint, sequence, number, begun, how))
            else:
                self._ended(endpoint, sequence, number, begun, how)

        sequence = Sequence(request, end, ours=True)
        how = self._meets(endpoint)
        if how is None and endpoint.engine.submit(sequence):
            return
        how = how or End.REFUSED
        self.world.after(REFUSAL_S, lambda: self._ended(endpoint, sequence, number, begun, how))

    def _meets(self, endpoint: Endpoint) -> End | None:
        faults = self.faults
        if not endpoint.engine.up:
            return End.LOST
        if faults.unavailable:
            return End.UNAVAILABLE
        if faults.error_rate and self.world.rand.random() < faults.error_rate:
            return End.BROKEN
        return None

    def _ended(self, endpoint: Endpoint, sequence: Sequence, number: int, begun: float, how: End) -> None:
        now, controller, counts = self.world.now, endpoint.controller, self.counts
        request = sequence.request
        if how is End.DONE:
            endpoint.drops = 0
            counts.done += 1
            sample = Sample(now, now - begun, request.prompt, request.output)
            controller.on_success(number, endpoint.in_flight, sample)
            self._over(request)
        else:
            if how is End.BROKEN:
                counts.broken += 1
                controller.on_ignore()
            else:
                counts.refused += how is End.REFUSED
                counts.lost += how is not End.REFUSED
                controller.on_overload(number, endpoint.sent, now, endpoint.in_flight)
            self._health(endpoint, how)
            self._retry(endpoint, request, how)
        self.in_flight -= 1
        endpoint.in_flight -= 1
        self.pump()

    def _retry(self, endpoint: Endpoint, request: Request, how: End) -> None:
        if how is End.LOST:
            outcome = Outcome(Kind.DISCONNECTED)
        else:
            wait = endpoint.engine.spec.retry_after_s if how is End.REFUSED else None
            outcome = Outcome(Kind.HTTP_ERROR, status=STATUS[how], retry_after_s=wait)
        delay = retry_delay(self._attempts[request.number], outcome, self.policy, self.world.rand.random())
        if delay is None:
            self.counts.failed += 1
            self._over(request)
            return

        def again() -> None:
            self._again.append(request)
            self.pump()

        self.world.after(delay, again)

    def _over(self, request: Request) -> None:
        self._begun -= 1
        del self._attempts[request.number]

    def _health(self, endpoint: Endpoint, how: End) -> None:
        if how is not End.LOST:
            endpoint.drops = 0
            return
        endpoint.drops += 1
        if endpoint.drops >= DROPS and endpoint.healthy:
            endpoint.healthy = False
            self.world.after(0.0, lambda: self._probe(endpoint))

    def _probe(self, endpoint: Endpoint) -> None:
        if endpoint.engine.up:
            endpoint.healthy, endpoint.drops, endpoint.probe_s = True, 0, FIRST_PROBE_S
            self.pump()
            return
        self.world.after(endpoint.probe_s, lambda: self._probe(endpoint))
        endpoint.probe_s = min(LONGEST_PROBE_S, 2 * endpoint.probe_s)


def tenant(world: World, engine: Engine, source: Iterator[Request], per_second: float, until: float) -> None:
    """Another tenant's requests: they come by themselves (Poisson), whatever we do, from now to second `until`."""

    def come() -> None:
        if world.now >= until:
            return
        if engine.up:
            engine.submit(Sequence(next(source), lambda sequence, how: None, ours=False))
        world.after(world.rand.expovariate(per_second), come)

    world.after(world.rand.expovariate(per_second), come)
