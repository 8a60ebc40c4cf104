"""Nothing outlives its batch: finds what was left running, gives it back, and looks again every minute."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping

import structlog

from services.kit.errors import ServiceError
from services.runner.leases import Leases
from services.runner.runtimes.base import Handle, Runtime, RuntimeFailed, Shared

INTERVAL_S = 60.0
CALL_TIMEOUT_S = 60.0

log = structlog.get_logger(__name__)


class Orphans:
    def __init__(self, runtimes: Mapping[str, Runtime], leases: Leases) -> None:
        self._runtimes = runtimes
        self._leases = leases

    async def release_own(self) -> None:
        """At the start: what an earlier process of this runner left behind."""
        for runtime in self._runtimes.values():
            if not isinstance(runtime, Shared):
                await self._guarded(runtime, shared=False)

    async def run(self) -> None:
        """Until cancelled: what any runner left behind for batches that have ended."""
        shared = [runtime for runtime in self._runtimes.values() if isinstance(runtime, Shared)]
        while shared:
            for runtime in shared:
                await self._guarded(runtime, shared=True)
            # Runners that started together need not look at the same moment.
            await asyncio.sleep(INTERVAL_S * random.uniform(0.5, 1.5))

    async def _guarded(self, runtime: Runtime, *, shared: bool) -> None:
        """A runtime may be anybody's code, and its provider may be away: the next round may do better."""
        try:
            async with asyncio.timeout(CALL_TIMEOUT_S):
                handles = await runtime.list()
            for handle in await self._ended(handles) if shared else handles:
                await self._release(runtime, handle)
        except (RuntimeFailed, ServiceError) as error:
            log.warning("orphans could not be looked for", target=runtime.target, why=str(error))
        except Exception:
            log.exception("orphans could not be looked for", target=runtime.target)

    async def _release(self, runtime: Runtime, handle: Handle) -> None:
        """One that cannot be released does not keep the others."""
        try:
            async with asyncio.timeout(CALL_TIMEOUT_S):
                await runtime.release(handle)
        except Exception:
            log.exception("an orphan could not be released", target=runtime.target, key=handle.get("key"))
        else:
            log.info("orphan released", target=runtime.target, key=handle.get("key"))

    async def _ended(self, handles: list[Handle]) -> list[Handle]:
        """A batch that metadata does not know may be another platform's: it is left alone."""
        keys = sorted({str(handle["key"]) for handle in handles})
        ended = await self._leases.ended(keys) if keys else set()
        return [handle for handle in handles if handle["key"] in ended]
