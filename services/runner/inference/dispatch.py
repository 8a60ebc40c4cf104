"""Brings requests and endpoints together: as many workers as the batch may have in flight, and one place that decides
what goes next.

What waits to be sent again holds no worker and no permit, and goes before new lines. Memory is bounded by bytes and by
count: input is taken only as requests end. Everything runs on one event loop, so nothing here needs a lock.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Protocol

from services.kit.lifecycle import background
from services.kit.spec.client import ClientPolicy
from services.runner.inference.endpoints import EndpointPool, Engine
from services.runner.inference.limit import controller
from services.runner.inference.limiter import Limiter
from services.runner.inference.outcome import Kind, Outcome
from services.runner.inference.retry import retry_delay
from services.runner.inference.turnstile import Turnstile
from services.runner.metrics import REQUESTS, RETRIES
from services.runner.requests import Chunk, Request

# Requests that are begun but not done (in flight, or waiting to be sent again), per request that may be in flight.
BEGUN_PER_SLOT = 4
# Chunks of input that wait while another one is dispatched.
CHUNKS_AHEAD = 2
LEAST_WAIT_S = 0.05
WORKERS_PER_ROUND = 8

Job = tuple[Request, Engine, int]


class Sender(Protocol):
    """What the dispatcher needs of the client."""

    async def send(self, engine: Engine, body: bytes) -> Outcome: ...

    async def check(self, engine: Engine) -> bool: ...


class Dispatcher:
    """Runs the requests of one batch. `on_done` gets every request once, with its final outcome."""

    def __init__(
        self,
        client: Sender,
        policy: ClientPolicy,
        in_flight_bytes: int,
        on_done: Callable[[Request, Outcome], None],
        rand: Callable[[], float] = random.random,
    ) -> None:
        self.pool = EndpointPool(lambda: controller(policy), self._pump)
        self.limiter = Limiter(self.pool, policy.max_concurrency)
        self.retry_count = 0
        self._client = client
        self._policy = policy
        self._budget = in_flight_bytes
        self._on_done = on_done
        self._rand = rand
        self._fresh: deque[Iterator[Request]] = deque()
        self._again: deque[Request] = deque()
        self._stranded: deque[Request] = deque()
        self._timers: set[asyncio.TimerHandle] = set()
        self._stranded_timer: asyncio.TimerHandle | None = None
        self._idle: list[asyncio.Future[Job | None]] = []
        self._workers: list[asyncio.Task[None]] = []
        self._busy: dict[asyncio.Task[None], Engine] = {}
        self._room = asyncio.Event()
        self._held_bytes = 0
        self._begun = 0
        self._turnstile = Turnstile(WORKERS_PER_ROUND)
        self._pauses: set[str] = set()
        self._exhausted = False
        self._stopped = False

    async def run(self, chunks: AsyncIterator[Chunk]) -> None:
        """Return when every request is done, or, after `stop`, when none is in flight."""
        try:
            async with (
                background(self._feed(chunks), self.pool.watch(self._client.check)),
                asyncio.TaskGroup() as group,
            ):
                self._workers = [group.create_task(self._work()) for _ in range(self._policy.max_concurrency)]
        finally:
            self._stopped = True
            for timer in self._timers:
                timer.cancel()

    def stop(self, drain_s: float) -> None:
        """Start nothing more; what is in flight `drain_s` from now is given up."""
        self._stopped = True
        self._after(drain_s, self._give_up)
        self._pump()

    def lose_engines(self) -> None:
        """All engines ended: what is in flight there is tried again elsewhere, also if its connection only hangs."""
        for engine in self.pool.engines:
            engine.gone = True
        self.pool.replace(())
        for worker, engine in self._busy.items():
            if engine.gone:
                worker.cancel()

    def pause(self, why: str) -> None:
        """Start nothing until every reason is taken back by `resume`."""
        self._pauses.add(why)

    def resume(self, why: str) -> None:
        self._pauses.discard(why)
        self._pump()

    async def _work(self) -> None:
        while (job := self._match() or await self._rest()) is not None:
            request, engine, sent = job
            request.attempts += 1
            outcome = await self._attempt(request, engine, sent)
            REQUESTS[outcome.kind].inc()
            self._settle(request, outcome)
            if self._idle:
                self._pump()
            if not self._turnstile.try_pass():
                await self._turnstile.wait()

    async def _attempt(self, request: Request, engine: Engine, sent: int) -> Outcome:
        worker = asyncio.current_task()
        assert worker is not None
        self._busy[worker] = engine
        outcome = None
        try:
            if engine.gone:  # since this request was given to it
                return Outcome(Kind.DISCONNECTED, detail="the engine ended before it answered")
            outcome = await self._client.send(engine, request.body)
        except asyncio.CancelledError:
            # One cancel is that of `lose_engines`; a second one, or one without it, is meant for the worker.
            if not engine.gone or worker.cancelling() != 1:
                raise
            worker.uncancel()
            outcome = Outcome(Kind.DISCONNECTED, detail="the engine ended before it answered")
        finally:
            del self._busy[worker]
            self.limiter.leave(engine, sent, outcome)
        return outcome

    async def _rest(self) -> Job | None:
        if self._over():
            self._pump()
            return None
        turn: asyncio.Future[Job | None] = asyncio.get_running_loop().create_future()
        self._idle.append(turn)
        return await turn

    def _match(self) -> Job | None:
        """A request, and the endpoint it goes to now."""
        if self._stopped or self._pauses:
            return None
        engine = self.limiter.find()
        if engine is None:
            if not self.pool.any_healthy:
                self._strand()
            return None
        request = self._take()
        return None if request is None else (request, engine, self.limiter.enter(engine))

    def _take(self) -> Request | None:
        """The request that goes next."""
        if self._stranded:
            return self._stranded.popleft()
        if self._again:
            return self._again.popleft()
        if self._begun >= BEGUN_PER_SLOT * self._policy.max_concurrency:
            return None
        while self._fresh:
            request = next(self._fresh[0], None)
            if request is not None:
                self._begun += 1
                return request
            self._fresh.popleft()
            self._room.set()
        return None

    def _pump(self) -> None:
        """Something changed: give work to workers that rest."""
        while (turn := self._next_idle()) is not None and (job := self._match()) is not None:
            del self._idle[-1]
            turn.set_result(job)
        while self._over() and (turn := self._next_idle()) is not None:
            del self._idle[-1]
            turn.set_result(None)

    def _next_idle(self) -> asyncio.Future[Job | None] | None:
        """The worker that rested last; those that were cancelled in their rest are forgotten."""
        while self._idle and self._idle[-1].done():
            del self._idle[-1]
        return self._idle[-1] if self._idle else None

    def _over(self) -> bool:
        return self._stopped or (self._exhausted and not self._begun and not self._fresh)

    def _settle(self, request: Request, outcome: Outcome) -> None:
        if outcome.kind is not Kind.OK:
            delay = retry_delay(request.attempts, outcome, self._policy, self._rand())
            if delay is not None:
                self.retry_count += 1
                RETRIES.inc()
                self._after(delay, self._send_again, request)
                return
        self._finish(request, outcome)

    def _finish(self, request: Request, outcome: Outcome) -> None:
        self._begun -= 1
        self._held_bytes -= request.size
        self._room.set()
        self._on_done(request, outcome)

    def _send_again(self, request: Request) -> None:
        self._again.append(request)
        self._pump()

    def _strand(self) -> None:
        """No endpoint is healthy: requests that would go now wait, and each wait is counted for them."""
        if self._stranded_timer is not None:
            return
        found, self._stranded = self._stranded, deque()
        while len(found) < self._policy.max_concurrency and (request := self._take()) is not None:
            found.append(request)
        failed = False
        for request in found:
            request.waits += 1
            if request.waits > self._policy.no_endpoint_max_retries:
                failed = True
                self._finish(request, Outcome(Kind.NO_ENDPOINT, detail="no healthy endpoint was found for too long"))
            else:
                self._stranded.append(request)
        if found:
            wait_s = LEAST_WAIT_S if failed else max(LEAST_WAIT_S, self._policy.max_delay_seconds)
            self._stranded_timer = self._after(wait_s, self._look_again)

    def _look_again(self) -> None:
        self._stranded_timer = None
        self._pump()

    def _after(self, delay_s: float, call: Callable[..., None], *arguments: object) -> asyncio.TimerHandle:
        def fire() -> None:
            self._timers.discard(timer)
            call(*arguments)

        timer = asyncio.get_running_loop().call_later(delay_s, fire)
        self._timers.add(timer)
        return timer

    def _give_up(self) -> None:
        for worker in self._workers:
            worker.cancel()

    async def _feed(self, chunks: AsyncIterator[Chunk]) -> None:
        async for chunk in chunks:
            while not self._has_room(chunk):
                self._room.clear()
                await self._room.wait()
            self._held_bytes += chunk.size
            self._fresh.append(iter(chunk))
            self._pump()
        self._exhausted = True
        self._pump()

    def _has_room(self, chunk: Chunk) -> bool:
        return not self._held_bytes or (
            len(self._fresh) < CHUNKS_AHEAD and self._held_bytes + chunk.size <= self._budget
        )
