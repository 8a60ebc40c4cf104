"""The endpoints of one batch, and how they are: who gets the next request, who rests until a probe says it is back.

A refused connection takes an endpoint out at once, dropped connections do when several come in a row: servers close
idle connections as they like. The list may change while requests run; those in flight on a removed endpoint end there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import structlog

from services.kit import clock
from services.kit.lifecycle import wait_for
from services.runner.inference.limit import Controller
from services.runner.inference.outcome import Kind, Outcome
from services.runner.runtimes.base import Endpoint

# Dropped connections in a row, without an answer between, that mean: it is down.
DROPS = 5
FIRST_PROBE_S = 0.1
LONGEST_PROBE_S = 5.0

log = structlog.get_logger(__name__)


class Engine:
    """An endpoint as the client uses it."""

    __slots__ = (
        "controller",
        "drops",
        "endpoint",
        "gone",
        "healthy",
        "in_flight",
        "probe_at",
        "probe_delay_s",
        "route",
        "sent",
    )

    def __init__(self, endpoint: Endpoint, controller: Controller) -> None:
        self.endpoint = endpoint
        self.controller = controller
        self.route: Any = None
        """The client's own: what is the same in every request here."""
        self.healthy = True
        self.gone = False
        """It ended: nobody waits for its answers any more."""
        self.in_flight = 0
        self.sent = 0
        """Requests sent so far, and so the sequence number of the newest."""
        self.drops = 0
        self.probe_at = 0.0
        self.probe_delay_s = FIRST_PROBE_S


class EndpointPool:
    """`on_change` is called when a request may find an endpoint that it did not find before."""

    def __init__(self, controller: Callable[[], Controller], on_change: Callable[[], None]) -> None:
        self._controller = controller
        self._on_change = on_change
        self._next = 0
        self._wake = asyncio.Event()
        self.engines: list[Engine] = []
        self._healthy: list[Engine] = []
        self.alarm = asyncio.Event()
        """Set when an endpoint goes down: whoever started it may want to look."""

    @property
    def any_healthy(self) -> bool:
        return bool(self._healthy)

    def limit(self) -> int:
        """How many requests all healthy endpoints would take now."""
        return sum(engine.controller.limit() for engine in self._healthy)

    def replace(self, endpoints: Sequence[Endpoint]) -> None:
        """Use these from now on. Those that were there stay as they are."""
        known = {id(engine): engine for engine in self.engines}
        engines = []
        for endpoint in endpoints:
            found = next((engine for engine in known.values() if engine.endpoint == endpoint), None)
            if found:
                del known[id(found)]
            engines.append(found or Engine(endpoint, self._controller()))
        self.engines = engines
        self._refresh()

    def pick(self) -> Engine | None:
        """A healthy endpoint with room: the one with the least in flight, in turn among equals."""
        healthy = self._healthy
        count = len(healthy)
        best, place = None, 0
        for step in range(count):
            index = (self._next + step) % count
            engine = healthy[index]
            if engine.in_flight < engine.controller.limit() and (best is None or engine.in_flight < best.in_flight):
                best, place = engine, index
        if best is not None:
            self._next = place + 1
        return best

    def settle(self, engine: Engine, sent: int, outcome: Outcome) -> None:
        """Learn from the request `sent`, which is still counted in `in_flight`."""
        if engine.gone:
            return
        if outcome.kind is Kind.OK:
            engine.drops = 0
            engine.controller.on_success(sent, engine.in_flight)
            return
        if outcome.overloaded:
            engine.controller.on_overload(sent, engine.sent, clock.monotonic())
        else:
            engine.controller.on_ignore()
        if outcome.kind is Kind.DISCONNECTED:
            engine.drops += 1
        elif outcome.kind is not Kind.TIMEOUT:
            engine.drops = 0
        if outcome.kind is Kind.REFUSED or engine.drops >= DROPS:
            self._mark_down(engine)

    async def watch(self, check: Callable[[Engine], Awaitable[bool]]) -> None:
        """Probe what is down until it is back; `check` says how it is and raises nothing."""
        while True:
            self._wake.clear()
            down = [engine for engine in self.engines if not engine.healthy]
            if not down:
                await self._wake.wait()
                continue
            rest = min(engine.probe_at for engine in down) - clock.monotonic()
            if rest > 0:
                await wait_for(self._wake, rest)
                continue
            async with asyncio.TaskGroup() as group:
                for engine in down:
                    if engine.probe_at <= clock.monotonic():
                        group.create_task(self._probe(engine, check))

    async def _probe(self, engine: Engine, check: Callable[[Engine], Awaitable[bool]]) -> None:
        if await check(engine):
            engine.healthy, engine.drops, engine.probe_delay_s = True, 0, FIRST_PROBE_S
            log.info("endpoint is back")
            self._refresh()
            return
        engine.probe_at = clock.monotonic() + engine.probe_delay_s
        engine.probe_delay_s = min(LONGEST_PROBE_S, 2 * engine.probe_delay_s)

    def _mark_down(self, engine: Engine) -> None:
        if not engine.healthy:
            return
        engine.healthy = False
        engine.probe_at = clock.monotonic()
        log.warning("endpoint is down", in_flight=engine.in_flight, dropped=engine.drops)
        self.alarm.set()
        self._refresh()

    def _refresh(self) -> None:
        self._healthy = [engine for engine in self.engines if engine.healthy]
        self._wake.set()
        self._on_change()
