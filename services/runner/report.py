"""Tells metadata, every few seconds, that this runner is alive, what it can run, and which models its endpoints serve."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import aiohttp
import msgspec
import structlog

from brix.metadata.v1 import runners_pb2 as pb
from brix.metadata.v1 import runners_pb2_grpc as pb_grpc
from services.kit.errors import ServiceError
from services.kit.spec.block import Block
from services.runner.runtimes.base import Endpoint, Ready, Runtime, RuntimeFailed, Spec
from services.runner.service import VERSION, RunnerService

INTERVAL_S = 5.0
MODELS_TIMEOUT_S = 2.0
# Who stops waits for this, twice.
LEAVE_S = 2.0
MOST_MODELS = 1000
MOST_BYTES = 4 * 1024 * 1024
PIECE_BYTES = 256 * 1024

log = structlog.get_logger(__name__)


class Reporter:
    def __init__(
        self, stub: pb_grpc.RunnerRegistryServiceAsyncStub, service: RunnerService, external: Runtime | None
    ) -> None:
        self._stub = stub
        self._service = service
        self._external = external
        self._models: list[str] = []
        self._leaving = False

    async def run(self) -> None:
        """Until cancelled. A report that fails is made up for by the next."""
        known: Sequence[str] | None = None
        async with aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=MODELS_TIMEOUT_S), cookie_jar=aiohttp.DummyCookieJar(), trust_env=False
        ) as session:
            while True:
                defaults = await self._report()
                if defaults is not None:
                    self._models = await self._list_models(session, defaults)
                    if defaults != known:
                        known = defaults
                        await self._report()
                await asyncio.sleep(INTERVAL_S)

    async def leave(self) -> None:
        """Say that no more batches are taken here, and learn who could take over those that are held."""
        self._leaving = True
        try:
            async with asyncio.timeout(LEAVE_S):
                await self._report()
        except TimeoutError:
            log.warning("metadata was not told that this runner leaves")

    async def _report(self) -> list[str] | None:
        """The server's default endpoints; None if it did not answer."""
        info = pb.RunnerInfo(
            id=self._service.runner_id,
            version=VERSION,
            targets=self._service.targets,
            slot_count=self._service.slot_count,
            active_count=len(self._service.executions),
            models=self._models,
        )
        try:
            response = await self._stub.ReportRunner(pb.ReportRunnerRequest(runner=info, leaving=self._leaving))
        except ServiceError as error:
            log.warning("runner not reported", error=error.message)
            return None
        self._service.shared_targets = frozenset(response.shared_targets)
        return list(response.default_endpoints)

    async def _list_models(self, session: aiohttp.ClientSession, defaults: Sequence[str]) -> list[str]:
        if not defaults or self._external is None:
            return []
        # The External runtime knows the credentials of the operator's endpoints.
        spec = Spec(key="models", block=Block(), default_endpoints=tuple(defaults))
        try:
            probe = await self._external.probe(spec, await self._external.launch(spec))
        except RuntimeFailed as failure:
            log.warning("default endpoints cannot be used", why=failure.why)
            return []
        endpoints = probe.endpoints if isinstance(probe, Ready) else ()
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(_models(session, endpoint)) for endpoint in endpoints]
        return sorted({model for task in tasks for model in task.result()})[:MOST_MODELS]


class _Entry(msgspec.Struct):
    id: str


class _Listed(msgspec.Struct):
    data: list[_Entry]


_decode = msgspec.json.Decoder(_Listed).decode


async def _models(session: aiohttp.ClientSession, endpoint: Endpoint) -> list[str]:
    """The ids that `GET /v1/models` lists; none if it does not answer as it should."""
    url = endpoint.base_url.rstrip("/") + "/v1/models"
    try:
        async with session.get(url, headers=dict(endpoint.headers), allow_redirects=False) as response:
            if response.status != 200 or (response.content_length or 0) > MOST_BYTES:
                return []
            pieces: list[bytes] = []
            async for piece in response.content.iter_chunked(PIECE_BYTES):
                pieces.append(piece)
                if sum(map(len, pieces)) > MOST_BYTES:
                    return []
        return [entry.id for entry in _decode(b"".join(pieces)).data]
    except (aiohttp.ClientError, OSError, ValueError, RecursionError):
        return []
