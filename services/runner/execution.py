"""One lease, from taking it to its end: bring the runtime up, run what is not committed, write the result files, finish.

The goal may change at any moment (cancel, deadline, drain), so the work is a loop: see what is to be done now, do a step,
look again. Metadata has the last word on how a batch ends; a refused end is worked out again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from dataclasses import asdict, replace
from functools import partial
from urllib.parse import urlsplit

import structlog

from services.kit import clock
from services.kit.errors import (
    GoalChanged,
    IllegalTransition,
    InvalidArgument,
    LinesOverlap,
    NotFound,
    ServiceError,
    StaleLease,
)
from services.kit.lifecycle import background, innermost
from services.kit.objects import ObjectStore
from services.kit.settings import Runner
from services.kit.spec.block import Block, parse_block
from services.kit.spec.resolved import Resolved, parse_resolved
from services.runner.allocation import Allocation, HandedOver, headline
from services.runner.domain import End, EndpointStatus, ExecutionStatus, Failure, Goal, Lease
from services.runner.ends import ENDS, INPUT_UNAVAILABLE, INTERNAL_ERROR, OUTPUT_FULL, UNFINISHED
from services.runner.finalize import Finalizer
from services.runner.held import HeldLease, LeaseLost
from services.runner.inference.client import InferenceClient
from services.runner.inference.dispatch import Dispatcher
from services.runner.inference.endpoints import Engine
from services.runner.leases import Leases
from services.runner.metrics import LEASES
from services.runner.patience import Patience
from services.runner.requests import RequestStream
from services.runner.results import Results
from services.runner.runtimes.base import Endpoint, Runtime, RuntimeFailed
from services.runner.wanted import has_planner, spec_of

# Answers are cheap to wait for and dear to lose, but a deadline is a deadline.
EXPIRE_DRAIN_S = 3.0
LONGEST_BACKOFF_S = 60.0
# How often metadata may refuse the end that its own goal asked for.
MOST_REFUSALS = 10
# Leases after which a batch whose execution fails for a reason that nobody foresaw is given up.
MOST_ATTEMPTS = 8

log = structlog.get_logger(__name__)


class Execution:
    """Made for one lease and run once."""

    def __init__(
        self,
        leases: Leases,
        lease: Lease,
        sent_at: float,
        store: ObjectStore,
        runtimes: Mapping[str, Runtime],
        settings: Runner,
    ) -> None:
        self._leases = leases
        self._lease = lease
        self._store = store
        self._settings = settings
        self._patience = Patience()
        self._phase = "starting"
        self._dispatcher: Dispatcher | None = None
        self._retry_count = 0
        self._failure: Failure | None = None
        self._retry_after_s: float | None = None
        self._handed: HandedOver | None = None
        self._lost: str | None = None
        self._others: Collection[str] = ()
        self._refused_count = 0
        self.held = HeldLease(leases, lease, sent_at, self._describe)
        self._results = Results(
            store,
            leases,
            self.held,
            self._patience,
            settings,
            lease.next_sequence,
            self._on_pressure,
            None if lease.max_output_bytes is None else lease.max_output_bytes - lease.committed_bytes,
            self._on_full,
        )
        self._finalizer = Finalizer(store, leases, self.held, self._patience, self._unfinished)
        timeout_s = lease.client.request_timeout_seconds or settings.request_timeout_s
        self._client = replace(lease.client, request_timeout_seconds=timeout_s)
        self._timeout_s = timeout_s
        self._block, self._resolved = self._parse()
        used_up = lease.max_output_bytes is not None and lease.committed_bytes > lease.max_output_bytes
        if used_up and self._is_unfinished():
            self._on_full()
        self._allocation = self._allocate(runtimes)

    async def run(self) -> None:
        """Until the batch is finished, handed back or lost. Raises nothing but a cancel."""
        self._log_start()
        end = "done"
        try:
            async with background(self.held.keep(), self.held.expire()):
                await self._work()
        except* (LeaseLost, StaleLease, LinesOverlap) as lost:
            end = "lost"
            log.warning("lease lost, its work is dropped", why=str(innermost(lost)))
        except* Exception:
            end = "error"
            log.exception("execution failed")
        if end != "done" and self._allocation is not None:
            await self._allocation.abandon()
        if end == "error":
            await self._after_error()
        LEASES.labels(end=end).inc()

    async def _after_error(self) -> None:
        """Somebody else may have more luck; a batch with which nobody has any must end all the same."""
        if self._lease.attempt >= MOST_ATTEMPTS:
            try:
                async with background(self.held.keep()):
                    await self._give_up(INTERNAL_ERROR)
            except* Exception:
                log.exception("batch not ended")
            else:
                return
        await self._release("the runner failed", self._backoff_s(self._lease.attempt))

    async def _give_up(self, failure: Failure) -> bool:
        """End a batch that cannot be ended as it should: with what is committed, if that can be read."""
        log.error("batch given up", code=failure.code)
        if self._allocation is not None:
            await self._allocation.release()
        output = error = None
        try:
            output, error = await self._finalizer.write(None)
        except* (ServiceError, OSError) as group:
            log.error("what is committed cannot be read", why=str(innermost(group)))
        batch_id, token = self._lease.batch_id, self._lease.token
        await self._patience.until_done(
            lambda: self._leases.finish(batch_id, token, End.FAILED, output, error, failure)
        )
        return True

    def drain(self, others: Collection[str] = ()) -> None:
        """Let requests in flight end, commit, and hand the batch back. `others`: targets that another runner has, too."""
        self._others = others
        self.held.drain()

    def status(self) -> ExecutionStatus:
        phase, in_flight = self._describe()
        dispatcher = self._dispatcher
        return ExecutionStatus(
            batch_id=self._lease.batch_id,
            token=self._lease.token,
            target=self._block.target(),
            phase=phase,
            client=self._client,
            template=self._resolved.template.label if self._resolved.template else "",
            profile=self._resolved.profile.name if self._resolved.profile else "",
            in_flight=in_flight,
            limit=dispatcher.limiter.limit() if dispatcher else 0,
            done_count=self._results.done.count,
            committed_count=len(self.held.committed),
            retry_count=self._retry_count + (dispatcher.retry_count if dispatcher else 0),
            rate=self._results.done.rate(),
            endpoints=[_endpoint_status(engine) for engine in dispatcher.pool.engines] if dispatcher else [],
        )

    async def _work(self) -> None:
        while True:
            if self._failure is None and self._is_unfinished() and self.held.start_running():
                await self._run_lines()
            if self.held.goal is Goal.RUN and self._is_unfinished() and await self._left_to_others():
                return None
            self._retry_after_s, self._handed, self._lost = None, None, None
            if self._is_unfinished() and self._failure is None:
                if self.held.draining and self.held.goal is Goal.RUN:
                    return await self._hand_back()
                await self._patience.until_done(self.held.refresh)
                if self.held.goal is Goal.RUN:
                    continue  # neither cancelled nor late after all
            if await self._end():
                return None

    async def _run_lines(self) -> None:
        """Run until all is committed, the goal changes, or the runtime cannot be had."""
        if self._allocation is None:
            raise ValueError(f"no runtime for target {self._block.target()}")
        self._on_launching("")
        try:
            endpoints = await self._allocation.up(self.held.interrupted)
        except RuntimeFailed as failure:
            self._on_runtime_failed(failure)
            return
        except HandedOver as handed:
            self._handed = handed
            return
        if endpoints is None:
            return
        try:
            await self._dispatch(self._allocation, endpoints)
        except* NotFound:
            self._failure = INPUT_UNAVAILABLE
        if self._failure is OUTPUT_FULL and not self._is_unfinished():
            self._failure = None  # it was the last line: there is nothing left to stop

    async def _dispatch(self, allocation: Allocation, endpoints: tuple[Endpoint, ...]) -> None:
        lease, settings = self._lease, self._settings
        async with InferenceClient.open(lease.endpoint, self._timeout_s, settings.max_answer_bytes) as client:
            dispatcher = Dispatcher(client, lease.client, settings.in_flight_bytes, self._results.add)
            dispatcher.pool.replace(endpoints)
            self._dispatcher = dispatcher
            self._phase = "dispatching"
            try:
                async with background(
                    self._results.commit(), self._watch(allocation, dispatcher), self._interrupt(dispatcher)
                ):
                    await dispatcher.run(self._unfinished().chunks())
                    await self._results.flush()
            finally:
                self._dispatcher = None
                self._retry_count += dispatcher.retry_count

    async def _watch(self, allocation: Allocation, dispatcher: Dispatcher) -> None:
        """Keep the runtime up while requests run. While it is gone nothing is sent, and nothing counted against a line."""

        def on_gone() -> None:
            self._on_launching("")
            dispatcher.pause("no runtime")
            dispatcher.lose_engines()

        def on_ready(endpoints: tuple[Endpoint, ...]) -> None:
            self._phase = "draining" if self.held.interrupted.is_set() else "dispatching"
            dispatcher.pool.replace(endpoints)
            dispatcher.resume("no runtime")

        try:
            pause = partial(dispatcher.pause, "no runtime")
            await allocation.watch(dispatcher.pool.alarm, on_gone, on_ready, pause)
        except RuntimeFailed as failure:
            self._on_runtime_failed(failure)
            dispatcher.stop(0.0)

    async def _interrupt(self, dispatcher: Dispatcher) -> None:
        await self.held.interrupted.wait()
        self._phase = "draining"
        drain_s = self._settings.drain_s
        dispatcher.stop(min(drain_s, EXPIRE_DRAIN_S) if self.held.goal is Goal.EXPIRE else drain_s)

    async def _end(self) -> bool:
        try:
            return await self._finish()
        except* NotFound:
            log.warning("the input, its index or a segment is gone")
        return await self._give_up(INPUT_UNAVAILABLE)

    async def _finish(self) -> bool:
        """Write the files and end the batch. False: it must end otherwise, look again."""
        self._phase = "finalizing"
        batch_id, token = self._lease.batch_id, self._lease.token
        if self.held.goal is Goal.RUN and self._failure is None:
            begin = self._leases.begin_finalize
            self.held.learn(await self._patience.until_done(lambda: begin(batch_id, token)))
        goal = self.held.goal
        failure = self._failure if goal is Goal.RUN else None
        end = End.FAILED if failure else ENDS[goal]
        async with asyncio.TaskGroup() as group:
            if self._allocation is not None:
                is_done = end is End.COMPLETED
                group.create_task(self._allocation.leave() if is_done else self._allocation.release())
            rest = UNFINISHED.get(goal, failure) if self._is_unfinished() else None
            files = group.create_task(self._finalizer.write(rest))
        output, error = files.result()
        try:
            await self._patience.until_done(lambda: self._leases.finish(batch_id, token, end, output, error, failure))
        except (GoalChanged, IllegalTransition) as refusal:
            self._refused_count += 1
            if self._refused_count > MOST_REFUSALS:
                raise
            log.info("batch must end otherwise", wanted=end.value, why=refusal.message)
            await self._patience.until_done(self.held.refresh)
            return False
        log.info("batch finished", end=end.value, committed=len(self.held.committed), total=self._lease.total_count)
        return True

    async def _hand_back(self) -> None:
        if self._allocation is not None:
            await self._allocation.depart(self._others)
        await self._release("drain", 0.0)

    async def _release(self, reason: str, retry_after_s: float, *, handed_over: bool = False) -> None:
        batch_id, token = self._lease.batch_id, self._lease.token
        try:
            await self._leases.release(batch_id, token, reason, retry_after_s, handed_over=handed_over)
        except ServiceError as error:
            log.warning("lease not handed back, it will run out", error=error.message)

    async def _left_to_others(self) -> bool:
        """Hand the batch back if its runtime cannot be had: for a while, or until the planner has another machine for it."""
        if (why := self._lost) is not None:
            batch_id, token = self._lease.batch_id, self._lease.token
            await self._patience.until_done(lambda: self._leases.lose_compute(batch_id, token, why))
        elif (handed := self._handed) is not None:
            await self._release(handed.detail, handed.rest_s, handed_over=True)
        elif self._retry_after_s is not None:
            await self._release("the runtime did not come up", self._retry_after_s)
        else:
            return False
        return True

    def _on_launching(self, phase: str) -> None:
        """`phase`: how far the runtime is, in a word of its own."""
        self._phase = f"launching: {phase}" if phase else "launching"

    def _on_machine_lost(self, why: str) -> None:
        """The machine is what failed, not the batch: what is committed stays, and another machine could do the rest."""
        log.warning("the machine of the batch is lost", why=headline(why))
        if has_planner(self._block):
            self._lost = why
        else:
            self._failure = Failure(code="machine_lost", message=why)

    def _on_runtime_failed(self, failure: RuntimeFailed) -> None:
        if failure.machine_lost:
            self._on_machine_lost(failure.why)
        elif failure.retryable and self._allocation is not None:
            self._retry_after_s = self._backoff_s(self._allocation.failure_count - 1)
        else:
            self._failure = Failure(code="runtime_failed", message=failure.why)

    def _on_pressure(self, is_high: bool) -> None:
        if self._dispatcher is not None:
            (self._dispatcher.pause if is_high else self._dispatcher.resume)("results wait to be committed")

    def _on_full(self) -> None:
        """The results are larger than the batch's profile allows: what was not run stays so."""
        if self._failure is None:
            log.warning("output quota is used up", max_output_bytes=self._lease.max_output_bytes)
            self._failure = OUTPUT_FULL
            if self._dispatcher is not None:
                self._dispatcher.stop(0.0)

    def _unfinished(self) -> RequestStream:
        lease = self._lease
        return RequestStream(
            self._store, self._patience, lease.input_key, lease.index_key, lease.total_count, self.held.committed
        )

    def _is_unfinished(self) -> bool:
        return len(self.held.committed) < self._lease.total_count

    def _describe(self) -> tuple[str, int]:
        phase = f"{self._phase}, waits for storage" if self._patience.waiting_for else self._phase
        return phase, self._dispatcher.limiter.in_flight if self._dispatcher else 0

    def _parse(self) -> tuple[Block, Resolved]:
        """Metadata checked the block; one that a newer metadata accepted and this runner cannot read fails the batch."""
        try:
            block = parse_block(self._lease.aibrix_json)
            return block, parse_resolved(self._lease.resolved_json, block)
        except InvalidArgument as error:
            self._failure = Failure(code="invalid_request", message=error.message)
            return Block(), Resolved()

    def _allocate(self, runtimes: Mapping[str, Runtime]) -> Allocation | None:
        """None: this runner does not know the target. It may still end a batch for which nothing was launched."""
        lease = self._lease
        runtime = runtimes.get(self._block.target())
        if runtime is None:
            return None
        spec = spec_of(lease, self._block, self._resolved, now=clock.now().timestamp())
        attempts = self._settings.launch_attempts
        return Allocation(
            runtime,
            spec,
            self._leases,
            self.held,
            self._patience,
            lease.runtime_json,
            attempts,
            self._on_launching,
        )

    def _log_start(self) -> None:
        policy = asdict(self._client)
        lease = self._lease
        log.info(
            "lease taken",
            token=lease.token,
            goal=lease.goal.value,
            target=self._block.target(),
            total=lease.total_count,
            committed=len(lease.committed),
            template=self._resolved.template.label if self._resolved.template else None,
            profile=self._resolved.profile.name if self._resolved.profile else None,
            **policy,
        )

    @staticmethod
    def _backoff_s(failures: int) -> float:
        return float(min(LONGEST_BACKOFF_S, 2.0 ** min(failures, 10)))


def _endpoint_status(engine: Engine) -> EndpointStatus:
    """Never more of the URL than where it leads: the rest may hold a credential."""
    parts = urlsplit(engine.endpoint.base_url)
    return EndpointStatus(
        url=f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}", healthy=engine.healthy, in_flight=engine.in_flight
    )
