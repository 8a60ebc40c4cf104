"""The engine beside us: what KubernetesJob means for the runner inside of the Job, whose engine is a container of the same pod."""

from __future__ import annotations

import asyncio
from typing import ClassVar

import aiohttp
import structlog

from services.kit.clock import monotonic
from services.kit.runtime_settings import Worker
from services.runner.runtimes.base import Endpoint, Handle, Pending, Probe, Ready, Spec

HEALTH_S = 5.0
LOOK_S = 1.0

log = structlog.get_logger(__name__)


class Beside:
    """It starts and ends nothing: Kubernetes does. The Job, and its handle, belong to the runners outside."""

    target: ClassVar[str] = "KubernetesJob"

    def __init__(self, settings: Worker) -> None:
        self._settings = settings
        self._endpoint = Endpoint(base_url=settings.engine_url.rstrip("/"), health_path=settings.engine_health)
        self._session: aiohttp.ClientSession | None = None
        self.ready = asyncio.Event()
        """Whether it is, as `watch` sees it."""
        self.why = "it does not answer"
        """Why it is not ready."""

    async def launch(self, spec: Spec) -> Handle:
        return {"key": spec.key}

    async def probe(self, spec: Spec, handle: Handle) -> Probe:
        # Asked now: if requests found nobody there, the next one finds nobody either.
        if self.ready.is_set() and await self._looked():
            return Ready((self._endpoint,))
        return Pending(f"the engine is not ready: {self.why}", "loading", unreachable=True)

    async def release(self, handle: Handle) -> None:
        """It ends with the pod."""

    async def list(self) -> list[Handle]:
        return []

    async def close(self) -> None:
        """Nothing is held."""

    async def watch(self, silent: asyncio.Event) -> None:
        """Look at it every second, until cancelled; `silent` is set when it was not ready for as long as it may take to be."""
        heard_at = monotonic()
        async with aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=HEALTH_S), cookie_jar=aiohttp.DummyCookieJar(), trust_env=False
        ) as session:
            while True:
                self._session = session
                if await self._looked():
                    heard_at = monotonic()
                if monotonic() - heard_at >= self._settings.engine_ready_s:
                    silent.set()
                await asyncio.sleep(LOOK_S)

    async def _looked(self) -> bool:
        """Whether it is ready now."""
        is_well = self._session is not None and await self._is_well(self._session)
        if is_well and not self.ready.is_set():
            log.info("the engine is ready")
            self.ready.set()
        if not is_well and self.ready.is_set():
            log.warning("the engine is not ready any more", why=self.why)
            self.ready.clear()
        return is_well

    async def _is_well(self, session: aiohttp.ClientSession) -> bool:
        url = f"{self._endpoint.base_url}{self._settings.engine_health}"
        try:
            async with session.get(url, allow_redirects=False) as response:
                self.why = f"its health check answers {response.status}"
                return response.ok
        except (aiohttp.ClientError, OSError):  # a TimeoutError is an OSError
            self.why = "its health check does not answer"
            return False
