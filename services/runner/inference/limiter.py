"""Admission: how many requests of the batch are in flight, over all endpoints, and whether one more may go.

No locks and no waiting here: everything runs on one event loop, and the dispatcher wakes who waits.
"""

from __future__ import annotations

from services.runner.inference.endpoints import EndpointPool, Engine
from services.runner.inference.outcome import Outcome


class Limiter:
    """The job-global cap, and below it what each endpoint's controller admits."""

    def __init__(self, pool: EndpointPool, cap: int) -> None:
        self._pool = pool
        self._cap = cap
        self.in_flight = 0

    def limit(self) -> int:
        return min(self._cap, self._pool.limit())

    def find(self) -> Engine | None:
        """An endpoint that a request may go to now. None: wait."""
        return self._pool.pick() if self.in_flight < self._cap else None

    def enter(self, engine: Engine) -> int:
        """A request goes to `engine`; its sequence number there."""
        self.in_flight += 1
        engine.in_flight += 1
        engine.sent += 1
        return engine.sent

    def leave(self, engine: Engine, sent: int, outcome: Outcome | None) -> None:
        """The request is done; without an outcome it was given up by us, and nothing is learned."""
        if outcome is not None:
            self._pool.settle(engine, sent, outcome)
        self.in_flight -= 1
        engine.in_flight -= 1
