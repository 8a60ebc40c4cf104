"""The work protocol, first half: who holds a batch. See leases.proto for the rules."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import timedelta
from time import monotonic
from typing import Any

import structlog

from services.kit.errors import InvalidArgument, ProtocolMismatch, StaleLease
from services.kit.lifecycle import wait_for
from services.kit.settings import Settings
from services.kit.spec.block import parse_block
from services.kit.spec.client import Client, effective
from services.kit.spec.profile import ProfileSpec, Scheduling
from services.kit.spec.resolved import parse_resolved
from services.kit.transactions import Transactions, Tx
from services.metadata import metrics
from services.metadata.domain import Batch, Lease, LeaseStatus, Lines, Work, lease_status, milliseconds
from services.metadata.service import checks
from services.metadata.service.batches import default_endpoints
from services.metadata.service.bells import Bells
from services.metadata.store import leases, segments

PROTOCOL_VERSION = 1
LONGEST_WAIT_MS = 60_000
LONGEST_REST = timedelta(days=1)
LONGEST_RUNTIME_STATE = 64 * 1024
LONGEST_REASON = 4000
MOST_ASKED = 1000
# Seconds between two looks at the database while an acquirer waits: batches may become free on another replica.
POLL_S = 1.0

log = structlog.get_logger(__name__)


class LeaseService:
    def __init__(self, transactions: Transactions, bells: Bells, settings: Settings) -> None:
        self.transactions = transactions
        self.bells = bells
        self.settings = settings
        self.ttl = timedelta(seconds=settings.metadata.lease_ttl_s)
        self.endpoints = default_endpoints(settings)
        self._closing = asyncio.Event()

    def stop_waiting(self) -> None:
        """Send everybody home who waits for work: the server goes down."""
        self._closing.set()
        self.bells.to_lease.ring()

    async def acquire_lease(
        self, runner_id: str, targets: Sequence[str], *, wait_ms: int, protocol_version: int, batch_id: str = ""
    ) -> Lease | None:
        if protocol_version != PROTOCOL_VERSION:
            raise ProtocolMismatch(
                f"the runner speaks version {protocol_version} of the lease protocol, this server version "
                f"{PROTOCOL_VERSION}: update the older one",
                runner_version=str(protocol_version),
                server_version=str(PROTOCOL_VERSION),
            )
        checks.required(runner_id=runner_id)
        checks.at_most("runner_id", runner_id, 255)
        checks.between("wait_ms", wait_ms, 0, LONGEST_WAIT_MS)
        if batch_id and not await self.transactions.read(lambda tx: leases.find(tx, batch_id)):
            raise checks.missing("batch", batch_id)
        until = monotonic() + wait_ms / 1000
        while True:
            rung = self.bells.to_lease.listen()
            if lease := await self._acquire_now(runner_id, targets, batch_id):
                return lease
            left = until - monotonic()
            if left <= 0 or self._closing.is_set():
                return None
            await wait_for(rung, min(left, POLL_S))

    async def _acquire_now(self, runner_id: str, targets: Sequence[str], batch_id: str) -> Lease | None:
        async def look(tx: Tx) -> bool:
            return await leases.is_waiting(tx, targets, batch_id)

        # The look costs no write lock, which idle runners would otherwise take every second.
        if not await self.transactions.read(look):
            return None

        async def work(tx: Tx) -> Lease | None:
            id = await leases.pick(tx, targets, batch_id)
            if id is None:
                return None
            taken = await leases.take(tx, id, runner_id, self.ttl, attempts=1)
            committed = Lines(bits=(await segments.committed(tx, id)).to_bytes())
            return self._lease(taken, committed, await segments.committed_bytes(tx, id), tx)

        lease = await self.transactions.write(work)
        if lease is not None:
            metrics.LEASED.inc()
            log.info(
                "batch leased",
                batch_id=lease.batch.id,
                runner_id=runner_id,
                token=lease.token,
                goal=lease.goal,
                attempt=lease.attempt,
            )
        return lease

    def _lease(self, taken: Work, committed: Lines, committed_bytes: int, tx: Tx) -> Lease:
        batch = taken.batch
        client, profile = understood(batch, taken.resolved_json)
        scheduling = profile.scheduling if profile else Scheduling()
        assert taken.input_key is not None
        assert taken.index_key is not None
        return Lease(
            batch=batch,
            token=taken.lease_token,
            ttl_ms=milliseconds(self.ttl),
            goal=batch.goal(tx.now),
            input_key=taken.input_key,
            input_bytes=taken.input_bytes,
            index_key=taken.index_key,
            committed=committed,
            next_sequence=1,
            runtime_json=taken.runtime_json,
            deadline_ms=milliseconds(batch.expire_time - tx.now),
            default_endpoints=self.endpoints,
            attempt=taken.attempt - 1,
            client=effective(
                client,
                self.settings,
                max_concurrency=scheduling.max_concurrency,
                request_timeout_seconds=scheduling.request_timeout_seconds,
            ),
            resolved_json=taken.resolved_json,
            committed_bytes=committed_bytes,
            max_output_bytes=profile.quota.output_bytes() if profile else None,
        )

    async def renew_lease(self, batch_id: str, token: int, *, phase: str, in_flight: int) -> LeaseStatus:
        checks.no_nul(phase=phase)

        async def work(tx: Tx) -> LeaseStatus:
            said = {"phase": phase[:64], "in_flight": in_flight}
            batch = require_held(await leases.renew(tx, batch_id, token, self.ttl, **said), batch_id, token)
            return lease_status(batch, tx.now, self.ttl)

        return await self.transactions.write(work)

    async def save_runtime_state(self, batch_id: str, token: int, runtime_json: str | None) -> None:
        checks.no_nul(runtime_json=runtime_json)
        if runtime_json is not None and len(runtime_json) > LONGEST_RUNTIME_STATE:
            raise InvalidArgument("the runtime state is too long", param="runtime_json")

        async def work(tx: Tx) -> None:
            require_held(await leases.set_held(tx, batch_id, token, runtime_json=runtime_json), batch_id, token)

        await self.transactions.write(work)

    async def release_lease(
        self, batch_id: str, token: int, *, reason: str, retry_after_ms: int, handed_over: bool = False
    ) -> None:
        checks.between("retry_after_ms", retry_after_ms, 0, milliseconds(LONGEST_REST))

        async def work(tx: Tx) -> Batch | None:
            rest = timedelta(milliseconds=retry_after_ms)
            return await leases.release(tx, batch_id, token, rest, handed_over=handed_over)

        if await self.transactions.write(work):
            log.info(
                "lease handed back", batch_id=batch_id, token=token, reason=reason[:256], retry_after_ms=retry_after_ms
            )
            self.bells.to_lease.ring()

    async def list_ended(self, batch_ids: Sequence[str]) -> list[str]:
        if len(batch_ids) > MOST_ASKED:
            raise InvalidArgument(f"at most {MOST_ASKED} batches at once", param="batch_ids")

        async def look(tx: Tx) -> list[str]:
            return await leases.ended(tx, batch_ids)

        return await self.transactions.read(look)

    async def lose_compute(self, batch_id: str, token: int, *, reason: str) -> None:
        checks.no_nul(reason=reason)
        why = reason[:LONGEST_REASON] or "The machine of this batch is gone."

        async def work(tx: Tx) -> Batch | None:
            return await leases.lose_compute(tx, batch_id, token, why)

        if batch := await self.transactions.write(work):
            needs_other = batch.compute_lost is not None
            log.warning("batch lost its compute", batch_id=batch_id, token=token, needs_other=needs_other)
            self.bells.to_lease.ring()


def understood(batch: Batch, resolved_json: str | None) -> tuple[Client | None, ProfileSpec | None]:
    """How the batch wants to be run. One that an earlier version accepted and this one cannot read is leased all the same:
    its runner ends it, and it holds up nobody else."""
    try:
        block = parse_block(batch.aibrix_json)
        profile = parse_resolved(resolved_json, block).profile
    except InvalidArgument as error:
        log.warning("the block of a batch cannot be read", batch_id=batch.id, error=error.message)
        return None, None
    return block.client, profile.spec if profile else None


def stale(batch_id: str, token: int) -> StaleLease:
    metrics.STALE.inc()
    message = f"token {token} of batch {batch_id} is not current: stop working on it"
    return StaleLease(message, batch_id=batch_id, token=str(token))


def require_held(found: Any, batch_id: str, token: int) -> Batch:
    if found is None:
        raise stale(batch_id, token)
    assert isinstance(found, Batch)
    return found


def require_current(work: Work | None, batch_id: str, token: int) -> Work:
    if work is None or not work.held_with(token):
        raise stale(batch_id, token)
    return work
