"""The runner in a KubernetesJob: waits for the engine beside it, runs one batch to its end, and exits with a code that says how.

The lease protocol is that of every runner. It asks for its batch by the id, so it gets it also while the batch rests, which
is how a runner outside hands it over.
"""

from __future__ import annotations

import asyncio
from enum import IntEnum
from pathlib import Path

import structlog
import uvloop

from services.kit import clock
from services.kit import log as logs
from services.kit.clock import monotonic
from services.kit.errors import InvalidArgument, NotFound, ProtocolMismatch, ServiceError
from services.kit.lifecycle import any_of, background, innermost, until_signalled, wait_for
from services.kit.objects import ObjectStore
from services.kit.settings import Settings
from services.runner import server
from services.runner.domain import Lease
from services.runner.execution import Execution
from services.runner.leases import Leases
from services.runner.runtimes.beside import Beside
from services.runner.service import RunnerService

WAIT_S = 20.0
AFTER_ERROR_S = 1.0
# Metadata may be away for a while; an address at which nobody ever answers is a wrong one.
SILENT_S = 300.0
LONGEST_WORDS = 4000

log = structlog.get_logger(__name__)


class Exit(IntEnum):
    """Exit codes of a one-batch runner, of those that sysexits.h has names for. The Job's podFailurePolicy knows them."""

    ENDED = 0
    """The batch has ended, one way or another."""
    ENGINE_NEVER_READY = 69
    HANDED_BACK = 75
    """It is not done: another pod may go on."""
    BAD_CONFIGURATION = 78


class OneBatch:
    """Leases one batch until it has ended."""

    def __init__(
        self,
        batch_id: str,
        service: RunnerService,
        leases: Leases,
        store: ObjectStore,
        engine: Beside,
        settings: Settings,
    ) -> None:
        self._batch_id = batch_id
        self._service = service
        self._leases = leases
        self._store = store
        self._runtimes = {engine.target: engine}
        self._settings = settings.runner
        self._stopping = asyncio.Event()
        self._began = monotonic()
        self._was_heard = False
        self.why = ""
        """Why the configuration is wrong."""

    def drain(self) -> None:
        """Commit, hand the batch back, and return."""
        self._service.draining = True
        self._stopping.set()
        for execution in self._service.executions:
            execution.drain(self._service.shared_targets)

    async def run(self) -> Exit:
        while not self._stopping.is_set():
            try:
                if await self._step():
                    return Exit.ENDED
            except (NotFound, InvalidArgument, ProtocolMismatch) as error:
                self.why = f"metadata refuses the batch {self._batch_id}: {error.message}"
                return Exit.BAD_CONFIGURATION
            except ServiceError as error:
                log.warning("metadata does not answer, trying again", error=error.message)
                if not self._was_heard and monotonic() - self._began > SILENT_S:
                    self.why = f"metadata has not answered for {SILENT_S:g} s: {error.message}"
                    return Exit.BAD_CONFIGURATION
                await wait_for(self._stopping, AFTER_ERROR_S)
        return Exit.ENDED if await self._has_ended() else Exit.HANDED_BACK

    async def _has_ended(self) -> bool:
        """What was in flight when we were told to end may have been the rest of it."""
        try:
            return bool(await self._leases.ended([self._batch_id]))
        except ServiceError as error:
            log.warning("nobody knows whether the batch has ended", error=error.message)
            return False

    async def _step(self) -> bool:
        """Whether the batch has ended. Errors: NotFound, and outages."""
        if await self._leases.ended([self._batch_id]):
            return True
        sent_at = clock.monotonic()
        lease = await self._lease()
        self._was_heard = True
        if lease is not None:
            with structlog.contextvars.bound_contextvars(batch_id=lease.batch_id):
                execution = Execution(self._leases, lease, sent_at, self._store, self._runtimes, self._settings)
                self._service.executions.add(execution)
                if self._stopping.is_set():
                    execution.drain(self._service.shared_targets)
                try:
                    await execution.run()
                finally:
                    self._service.executions.discard(execution)
        return False

    async def _lease(self) -> Lease | None:
        """None: somebody else holds it, or we are told to stop."""
        answers: list[Lease | ServiceError | None] = []
        answered = asyncio.Event()

        async def ask() -> None:
            try:
                answers.append(await self._leases.acquire(self._service.targets, WAIT_S, self._batch_id))
            except ServiceError as error:
                answers.append(error)
            answered.set()

        async with background(ask()):
            await any_of(answered, self._stopping)
        answer = answers[0] if answers else None
        if isinstance(answer, ServiceError):
            raise answer
        return answer


async def run(settings: Settings, batch_id: str) -> Exit:
    """Until the batch has ended, a signal came, or the engine does not come up, or back, in time."""
    engine = Beside(settings.worker)
    silent, signalled = asyncio.Event(), asyncio.Event()
    async with background(engine.watch(silent), _on_signal(signalled)):
        await any_of(engine.ready, silent, signalled)
        code = Exit.HANDED_BACK
        if engine.ready.is_set() and not signalled.is_set():
            async with server.opened(settings, {engine.target: engine}) as opened:
                one = OneBatch(batch_id, opened.service, opened.leases, opened.store, engine, settings)
                async with background(_drain(one, silent, signalled)):
                    code = await one.run()
                if code is Exit.BAD_CONFIGURATION:
                    tell(settings, one.why)
        if code is Exit.HANDED_BACK and silent.is_set():
            tell(settings, f"the engine was not ready within {settings.worker.engine_ready_s:g} s: {engine.why}")
            return Exit.ENGINE_NEVER_READY
    return code


async def _drain(one: OneBatch, *events: asyncio.Event) -> None:
    await any_of(*events)
    one.drain()


async def _on_signal(signalled: asyncio.Event) -> None:
    await until_signalled()
    signalled.set()


def main(settings: Settings, batch_id: str) -> int:
    """Run a process of one batch; its exit code."""
    logs.configure(settings.log)
    try:
        code = uvloop.run(run(settings, batch_id))
    except (KeyboardInterrupt, asyncio.CancelledError):  # before our own handlers are there
        return Exit.HANDED_BACK
    except Exception as error:
        # An address that cannot be bound, a store that cannot be opened: the next pod would fare no better.
        log.exception("stopped by a failure")
        tell(settings, f"the worker cannot run: {type(innermost(error)).__name__}")
        return Exit.BAD_CONFIGURATION
    log.info("stopping", code=code.name)
    return code


def tell(settings: Settings, words: str) -> None:
    """Last words, which Kubernetes shows beside the exit code. They hold no prompt and no secret."""
    log.error("giving up", why=words)
    if settings.worker.last_words_file:
        Path(settings.worker.last_words_file).write_text(words[:LONGEST_WORDS])
