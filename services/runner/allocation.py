"""The runtime of one batch: launched, or found again after a takeover, watched, and given back.

A handle is saved with the lease before it is relied upon. How often the runtime failed is saved with it, so that a batch
whose engine never comes up fails in the end, whoever tries.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Coroutine
from dataclasses import replace
from typing import NoReturn, TypeVar

import orjson
import structlog

from services.kit import clock
from services.kit.lifecycle import wait_for
from services.runner.held import HeldLease
from services.runner.leases import Leases
from services.runner.patience import Patience
from services.runner.runtimes.base import (
    Alerting,
    Endpoint,
    Explaining,
    Gone,
    Handle,
    HandOver,
    LeftToOthers,
    OwnedByRunner,
    Pending,
    Probe,
    Ready,
    Reusable,
    Runtime,
    RuntimeFailed,
    Spec,
)

T = TypeVar("T")

READY_TIMEOUT_S = 600.0
WATCH_S = 5.0
FIRST_PROBE_S = 0.02
LONGEST_PROBE_S = 1.0
CALL_TIMEOUT_S = 60.0
RELEASE_ATTEMPTS = 3
# How often in a row, without a line done, a process that should run the batch may be ready and not take it.
MOST_HAND_OVERS = 10

log = structlog.get_logger(__name__)


class HandedOver(Exception):
    """The batch is another process's, which asks for it by its id."""

    def __init__(self, detail: str, rest_s: float) -> None:
        super().__init__(detail)
        self.detail = detail
        self.rest_s = rest_s


class Allocation:
    def __init__(
        self,
        runtime: Runtime,
        spec: Spec,
        leases: Leases,
        held: HeldLease,
        patience: Patience,
        runtime_json: str | None,
        attempts: int,
        on_phase: Callable[[str], None] = lambda phase: None,
    ) -> None:
        self._runtime = runtime
        self._spec = spec
        self._leases = leases
        self._held = held
        self._patience = patience
        self._attempts = attempts
        self._on_phase = on_phase
        saved = orjson.loads(runtime_json) if runtime_json else {}
        self._handle: Handle | None = saved.get("handle")
        # What the next launch should know: how often its machine failed, which host key it had.
        self._previous: Handle | None = saved.get("previous")
        self._failure_count: int = saved.get("failure_count", 0)
        # How often it was handed over in a row, and how many lines were committed then.
        self._handed: tuple[int, int] = (saved.get("handed_count", 0), saved.get("handed_at", 0))
        self._launch_s = float(spec.template.engine.ready_timeout_seconds) if spec.template else READY_TIMEOUT_S
        self._progress = len(held.committed)

    @property
    def failure_count(self) -> int:
        return self._failure_count

    def _count_failure(self) -> None:
        """Failures in a row: if lines were committed since the last one, this is a new trouble."""
        progress = len(self._held.committed)
        self._failure_count = self._failure_count + 1 if progress == self._progress else 1
        self._progress = progress

    async def up(self, stop: asyncio.Event) -> tuple[Endpoint, ...] | None:
        """Its endpoints, once it is ready; None if `stop` came first.

        Errors: RuntimeFailed, retryable while tries are left; HandedOver.
        """
        try:
            return await self._up(stop)
        except RuntimeFailed as failure:
            self._count_failure()
            await self._drop_handle()
            again = failure.retryable and not failure.machine_lost and self._failure_count < self._attempts
            log.warning("runtime failed", why=headline(failure.why), failure_count=self._failure_count, again=again)
            raise RuntimeFailed(failure.why, retryable=again, machine_lost=failure.machine_lost) from failure

    async def watch(
        self,
        alarm: asyncio.Event,
        on_gone: Callable[[], None],
        on_ready: Callable[[tuple[Endpoint, ...]], None],
        on_unreachable: Callable[[], None],
    ) -> None:
        """Look after it while requests run: every few seconds, and at `alarm`. Error: RuntimeFailed."""
        try:
            await self._watch(alarm, on_gone, on_ready, on_unreachable)
        finally:
            self._alert(None)

    async def _watch(
        self,
        alarm: asyncio.Event,
        on_gone: Callable[[], None],
        on_ready: Callable[[tuple[Endpoint, ...]], None],
        on_unreachable: Callable[[], None],
    ) -> None:
        while True:
            self._alert(alarm.set)
            await wait_for(alarm, WATCH_S)
            alarm.clear()
            probe = await self._probe()
            if isinstance(probe, Ready):
                on_ready(probe.endpoints)
            if isinstance(probe, Pending) and probe.phase:
                self._on_phase(probe.phase)
            if isinstance(probe, Pending) and probe.unreachable:
                on_unreachable()
            if not isinstance(probe, Gone):
                await asyncio.sleep(FIRST_PROBE_S)
                continue
            log.warning("runtime is gone", why=headline(probe.why))
            on_gone()
            await self._lost(probe)
            endpoints = await self.up(self._held.interrupted)
            if endpoints is None:
                return
            on_ready(endpoints)

    async def _lost(self, gone: Gone) -> None:
        """Error: RuntimeFailed, if nothing is to be launched in its place."""
        self._count_failure()
        await self._drop_handle()
        if gone.machine_lost or not gone.retryable or self._failure_count >= self._attempts:
            raise RuntimeFailed(gone.why, retryable=False, machine_lost=gone.machine_lost)

    def _alert(self, wake: Callable[[], None] | None) -> None:
        if self._handle is not None and isinstance(self._runtime, Alerting):
            self._runtime.alert(self._handle, wake)

    async def release(self) -> None:
        """Give it back, and forget it. What cannot be given back now is found as an orphan later."""
        if self._handle is None:
            return
        self._alert(None)
        for attempt in range(RELEASE_ATTEMPTS):
            try:
                await _guarded(self._runtime.release(self._handle), CALL_TIMEOUT_S)
            except RuntimeFailed as failure:
                log.warning("runtime not released", why=headline(failure.why))
                if not failure.retryable:
                    return
                await asyncio.sleep(2.0**attempt)
            else:
                self._handle = None
                return

    async def leave(self) -> None:
        """The batch is done: keep the engine for the next one of its kind, or give it back."""
        handle = self._handle
        if handle is not None and self._spec.kind is not None and isinstance(self._runtime, Reusable):
            try:
                if await _guarded(self._runtime.leave(self._spec, handle), CALL_TIMEOUT_S):
                    self._handle = None
                    return
            except RuntimeFailed as failure:
                log.warning("runtime not kept", why=headline(failure.why))
        await self.release()

    async def depart(self, shared_targets: Collection[str]) -> None:
        """The runner drains: end what nobody else is there for."""
        if isinstance(self._runtime, LeftToOthers) and self._runtime.target not in shared_targets:
            await self._drop_handle()

    async def abandon(self) -> None:
        """The lease is lost: end what nobody else can end, and leave the rest to the next holder."""
        if isinstance(self._runtime, OwnedByRunner):
            await self.release()

    async def _up(self, stop: asyncio.Event) -> tuple[Endpoint, ...] | None:
        if self._handle is not None:
            probe = await _unless(stop, self._probe())
            if probe is None:
                return None
            if isinstance(probe, Gone):
                log.info("runtime of an earlier holder is gone", why=headline(probe.why))
                if probe.machine_lost or not probe.retryable:
                    raise RuntimeFailed(probe.why, retryable=False, machine_lost=probe.machine_lost)
                await self._drop_handle()
            elif isinstance(probe, Ready):
                log.info("runtime found again")
        if self._handle is None:
            spec = replace(self._spec, previous=self._previous)
            self._handle = await _guarded(self._runtime.launch(spec), self._launch_s)
            await self._save()
        return await self._ready(stop)

    async def _ready(self, stop: asyncio.Event) -> tuple[Endpoint, ...] | None:
        give_up_at = clock.monotonic() + self._launch_s
        rest = FIRST_PROBE_S
        while True:
            probe = await _unless(stop, self._probe())
            if probe is None:
                return None
            if isinstance(probe, Ready):
                return probe.endpoints
            if isinstance(probe, Gone):
                raise RuntimeFailed(probe.why, retryable=probe.retryable, machine_lost=probe.machine_lost)
            if isinstance(probe, HandOver):
                await self._hand_over(probe)
            give_up_at = await self._pending(probe, give_up_at)
            if await wait_for(stop, rest):
                return None
            rest = min(LONGEST_PROBE_S, 1.5 * rest)

    async def _pending(self, probe: Pending, give_up_at: float) -> float:
        """Until when it may go on like this. Error: RuntimeFailed, if that is over."""
        self._on_phase(probe.phase)
        now = clock.monotonic()
        if not probe.counts:
            return now + self._launch_s
        if now < give_up_at:
            return give_up_at
        why = f"not ready after {self._launch_s:.0f} s: {probe.detail}"
        raise RuntimeFailed(why + await self._explanation(), retryable=True)

    async def _hand_over(self, probe: HandOver) -> NoReturn:
        """Errors: HandedOver; RuntimeFailed, if it was handed over too often for nothing."""
        if not probe.queued:
            count, at = self._handed
            committed = len(self._held.committed)
            self._handed = (count + 1 if committed == at else 1, committed)
            if count >= MOST_HAND_OVERS and committed == at:
                why = f"{probe.detail}, {count} times in a row, but it did not take the batch"
                raise RuntimeFailed(why + await self._explanation(), retryable=False)
            await self._save()
        raise HandedOver(probe.detail, probe.rest_s)

    async def _probe(self) -> Probe:
        assert self._handle is not None
        try:
            probe = await _guarded(self._runtime.probe(self._spec, self._handle), CALL_TIMEOUT_S)
        except RuntimeFailed as failure:
            return Pending(failure.why)
        if isinstance(probe, Pending | Ready) and probe.handle is not None:
            self._handle = probe.handle
            await self._save()
        return probe

    async def _explanation(self) -> str:
        """What the runtime knows of why its engine did not come up, to be appended to a reason."""
        if self._handle is None or not isinstance(self._runtime, Explaining):
            return ""
        try:
            lines = await _guarded(self._runtime.explain(self._handle), CALL_TIMEOUT_S)
        except RuntimeFailed as failure:
            return f"; its log cannot be read: {failure.why}"
        return f"; its last output:\n{lines}" if lines else ""

    async def _drop_handle(self) -> None:
        if self._handle is not None:
            self._previous = self._handle
        await self.release()
        self._handle = None
        await self._save()

    async def _save(self) -> None:
        state = {
            "target": self._runtime.target,
            "handle": self._handle,
            "previous": self._previous,
            "failure_count": self._failure_count,
        }
        if self._handed[0]:
            state |= {"handed_count": self._handed[0], "handed_at": self._handed[1]}
        text = orjson.dumps(state).decode()
        await self._patience.until_done(lambda: self._leases.save_runtime(self._held.batch_id, self._held.token, text))


async def _guarded(call: Awaitable[T], timeout_s: float) -> T:
    """A call of a runtime, which may be anybody's code: whatever goes wrong in it is a failure that may pass."""
    try:
        async with asyncio.timeout(timeout_s):
            return await call
    except RuntimeFailed:
        raise
    except TimeoutError as error:
        raise RuntimeFailed(f"the runtime did not answer within {timeout_s:.0f} s", retryable=True) from error
    except Exception as error:
        log.exception("runtime raised an unexpected error")
        raise RuntimeFailed("the runtime raised an unexpected error", retryable=True) from error


async def _unless(stop: asyncio.Event, call: Coroutine[None, None, T]) -> T | None:
    """What `call` returns; None if `stop` came first, and the call was cancelled."""
    result: T | None = None

    async with asyncio.TaskGroup() as group:

        async def to_the_end() -> None:
            nonlocal result
            result = await call
            waiting.cancel()

        async def until_stopped() -> None:
            await stop.wait()
            working.cancel()

        waiting = group.create_task(until_stopped())
        working = group.create_task(to_the_end())
    return result


def headline(why: str) -> str:
    """The first line of a reason. What follows is the end of the engine's log, which may hold prompts: it is for the batch's
    owner, in the batch's errors, and never for our log."""
    return why.partition("\n")[0][:256]
