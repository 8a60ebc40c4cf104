"""The fake clock: a queue of what happens when."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable


class World:
    """Everything that happens, in order of time and, at the same time, in the order in which it was asked for."""

    def __init__(self, seed: int) -> None:
        self.now = 0.0
        self.rand = random.Random(seed)
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0

    def at(self, time: float, call: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._events, (time, self._count, call))

    def after(self, seconds: float, call: Callable[[], None]) -> None:
        self.at(self.now + seconds, call)

    def run(self, until: float) -> None:
        """Until second `until`, or until nothing is left to happen."""
        events = self._events
        while events and events[0][0] <= until:
            self.now, _, call = heapq.heappop(events)
            call()
        if events:
            self.now = until

    def every(self, seconds: float, call: Callable[[], None], until: float) -> None:
        def tick() -> None:
            call()
            if self.now + seconds <= until:
                self.after(seconds, tick)

        self.after(seconds, tick)
