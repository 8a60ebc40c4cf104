"""Batches as their users see them: made, looked at, listed, cancelled."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import structlog

from services.kit.errors import IllegalTransition, InvalidArgument, ServiceError
from services.kit.ids import new_id
from services.kit.settings import Settings
from services.kit.spec.block import Block, parse_block
from services.kit.spec.catalog import Catalog
from services.kit.spec.profile import BEST_EFFORT, MIB, UNBOUNDED_GB, Quota, Scheduling
from services.kit.spec.resolved import Resolved, check_endpoint_supported, resolve
from services.kit.spec.window import parse_window
from services.kit.together import Together
from services.kit.transactions import Transactions, Tx
from services.metadata import metrics
from services.metadata.domain import Batch, NewBatch
from services.metadata.service import checks, requests
from services.metadata.service.bells import Bells
from services.metadata.states import BatchState
from services.metadata.store import batches, keys, runners

DEFAULT_PAGE = 20
LARGEST_PAGE = 100
NOTHING_SAID = Scheduling()
# A page ends early when its blocks and error lists hold this many characters: a message has at most 16 MiB.
PAGE_CHARACTERS = 4 * 1024 * 1024

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Order:
    """A batch that is about to be made."""

    id: str
    new: NewBatch
    window: timedelta
    block: Block
    resolved: Resolved

    @property
    def target(self) -> str:
        return self.block.target()

    @property
    def quota(self) -> Quota | None:
        return self.resolved.profile.spec.quota if self.resolved.profile else None

    @property
    def scheduling(self) -> Scheduling:
        return self.resolved.profile.spec.scheduling if self.resolved.profile else NOTHING_SAID

    def batch(self, now: datetime) -> Batch:
        new = self.new
        return Batch(
            id=self.id,
            project_id=new.project_id,
            state=BatchState.VALIDATING,
            endpoint=new.endpoint,
            input_file_id=new.input_file_id,
            completion_window=new.completion_window,
            metadata_json=new.metadata_json,
            aibrix_json=new.aibrix_json,
            create_time=now,
            expire_time=now + min(self.window, profile_window(self.scheduling) or self.window),
            output_expires_after_s=new.output_expires_after_s,
        )

    def row(self, now: datetime) -> dict[str, Any]:
        priority, resolved_json = self.scheduling.rank(), self.resolved.to_json()
        return batches.row_of(self.batch(now), target=self.target, priority=priority, resolved_json=resolved_json)


class BatchService:
    def __init__(
        self,
        transactions: Transactions,
        bells: Bells,
        settings: Settings,
        catalog: Callable[[], Catalog] = Catalog,
    ) -> None:
        """`catalog`: the templates and profiles that there are now."""
        self.transactions = transactions
        self.bells = bells
        self.settings = settings
        self.catalog = catalog
        self.memory = timedelta(seconds=settings.metadata.runner_memory_s)
        self.largest = largest_quota(settings)
        self._insert = Together(self._insert_all)

    async def create_batch(self, new: NewBatch) -> Batch:
        order = self.check(new)
        batch = await self._insert(order)
        if batch.id == order.id:
            metrics.CREATED.inc()
            said = said_of(order.resolved)
            log.info("batch created", batch_id=batch.id, project_id=batch.project_id, endpoint=batch.endpoint, **said)
        self.bells.to_validate.ring()
        return batch

    def check(self, new: NewBatch) -> Order:
        """All that is wrong with a create before the database is asked. Error: InvalidArgument with the field's path."""
        if self.settings.mds_http_body_log:
            log.info("extra_body.aibrix", aibrix=new.aibrix_json)
        checks.required(project_id=new.project_id, input_file_id=new.input_file_id)
        checks.at_most("project_id", new.project_id, 255)
        checks.at_most("input_file_id", new.input_file_id, 255)
        requests.check_endpoint(new.endpoint)
        window = parse_window(new.completion_window)
        requests.check_metadata(new.metadata_json)
        checks.lifetime("output_expires_after.seconds", new.output_expires_after_s)
        checks.idempotency(new.idempotency_key, new.request_hash)
        has_default, flags = bool(default_endpoints(self.settings)), self.settings.templates.inline_flags
        block = requests.read_block(new.aibrix_json, has_default=has_default, inline_flags=flags)
        resolved = self._resolve(block, new.endpoint)
        return Order(new_id("batch_"), new, window, block, resolved)

    async def check_target(self, order: Order) -> None:
        """Error: InvalidArgument, for a target that neither we nor a runner knows."""
        if order.target not in requests.BUILT_IN_TARGETS:

            async def work(tx: Tx) -> set[str]:
                return await runners.list_targets(tx, self.memory)

            requests.check_target(order.target, await self.transactions.read(work))

    async def _insert_all(self, orders: Sequence[Order]) -> Sequence[Batch | ServiceError]:
        """Record new batches in one transaction. What is wrong with one of them is no trouble of the others."""

        async def work(tx: Tx) -> list[Batch | ServiceError]:
            results: list[Batch | ServiceError] = []
            new: dict[str, Batch] = {}
            rows = []
            for order in orders:
                try:
                    earlier_id = await self._admit(tx, order)
                except ServiceError as error:
                    results.append(error)
                    continue
                earlier = await self._earlier(tx, order, earlier_id, new) if earlier_id else None
                if earlier is None:
                    new[order.id] = order.batch(tx.now)
                    rows.append(order.row(tx.now))
                results.append(earlier or new[order.id])
            await batches.insert_all(tx, rows)
            return results

        return await self.transactions.write(work)

    @staticmethod
    async def _earlier(tx: Tx, order: Order, id: str, new: Mapping[str, Batch]) -> Batch | None:
        """The batch of this id: perhaps one of this very group, which stands in no table yet."""
        return new.get(id) or await batches.find(tx, order.new.project_id, id)

    async def _admit(self, tx: Tx, order: Order) -> str | None:
        """The id of the batch that its idempotency key made before, if any. Error: ServiceError, and nothing is written then."""
        if order.target not in requests.BUILT_IN_TARGETS:
            requests.check_target(order.target, await runners.list_targets(tx, self.memory))
        new = order.new
        if new.idempotency_key is None:
            return None
        key, said = new.idempotency_key, new.request_hash
        claim = await keys.claim(tx, new.project_id, "batch", key, said, order.id)
        checks.same_request(key, claim.request_hash, said)
        return None if claim.resource_id == order.id else claim.resource_id

    def _read_block(self, text: str | None) -> Block:
        has_default, flags = bool(default_endpoints(self.settings)), self.settings.templates.inline_flags
        return requests.read_block(text, has_default=has_default, inline_flags=flags)

    def _resolve(self, block: Block, endpoint: str) -> Resolved:
        """What the block's references come to now. Error: InvalidArgument with the field's path."""
        resolved = resolve(block, self.catalog(), self.largest)
        check_endpoint_supported(resolved, endpoint)
        if resolved.template is not None:
            requests.check_engine(block, resolved.template, self.settings.templates)
            if resolved.template.status == "deprecated":
                log.warning("a batch uses a deprecated template", template=resolved.template.label)
        return resolved

    async def get_batch(self, project_id: str, id: str) -> Batch:
        row = await self.transactions.look(batches.one(project_id, id)) if "\0" not in id else None
        if row is None:
            raise checks.missing("batch", id)
        return batches.as_batch(row)

    async def find_batch(self, project_id: str, idempotency_key: str) -> Batch:
        checks.no_nul(idempotency_key=idempotency_key)

        async def work(tx: Tx) -> Batch | None:
            id = await keys.find(tx, project_id, "batch", idempotency_key)
            return await batches.find(tx, project_id, id) if id else None

        if (batch := await self.transactions.read(work)) is None:
            raise checks.missing("batch", idempotency_key)
        return batch

    async def list_batches(self, project_id: str, page_size: int, after: str | None) -> tuple[list[Batch], bool]:
        """One page, and whether there is more behind it."""
        checks.no_nul(after=after)
        size = checks.page_size(page_size, DEFAULT_PAGE, LARGEST_PAGE)

        async def work(tx: Tx) -> list[Batch]:
            return list(await batches.page(tx, project_id, after, size + 1))

        found = await self.transactions.read(work)
        page = cut(found[:size])
        return page, len(found) > len(page)

    async def cancel_batch(self, project_id: str, id: str) -> Batch:
        async def work(tx: Tx) -> Batch:
            if "\0" in id:
                raise checks.missing("batch", id)
            if moved := await batches.cancel(tx, project_id, id):
                return moved
            batch = await batches.find(tx, project_id, id)
            if batch is None:
                raise checks.missing("batch", id)
            if batch.state in (BatchState.CANCELLING, BatchState.CANCELLED):
                return batch
            status = batch.state.lower()
            raise IllegalTransition(f"Cannot cancel a batch with status '{status}'.", state=batch.state)

        batch = await self.transactions.write(work)
        log.info("batch is cancelled", batch_id=id, state=batch.state)
        self.bells.to_close.ring()
        self.bells.to_lease.ring()
        return batch

    async def replace_compute(self, project_id: str, id: str, aibrix_json: str) -> Batch:
        block = self._read_block(aibrix_json)

        async def work(tx: Tx) -> tuple[Batch, bool]:
            batch = await batches.find_locked(tx, project_id, id) if "\0" not in id else None
            if batch is None:
                raise checks.missing("batch", id)
            if batch.aibrix_json == aibrix_json:
                return batch, False  # again, after a lost answer; should its compute be lost by now, it stays lost
            if attempt_of(block) < attempt_of(known_block(batch)):
                raise IllegalTransition("The batch has newer compute already.", state=batch.state)
            resolved = self._resolve(block, batch.endpoint)
            if block.target() not in requests.BUILT_IN_TARGETS:
                requests.check_target(block.target(), await runners.list_targets(tx, self.memory))
            values = {"aibrix_json": aibrix_json, "target": block.target(), "resolved_json": resolved.to_json()}
            if replaced := await batches.replace_compute(tx, id, values):
                return replaced, True
            status = batch.state.lower()
            raise IllegalTransition(f"Cannot give other compute to a batch with status '{status}'.", state=batch.state)

        batch, is_new = await self.transactions.write(work)
        if is_new:
            log.info("batch has other compute", batch_id=id)
            self.bells.to_lease.ring()
        return batch

    async def close_unvalidated(self) -> int:
        """End what needs no runner: cancelled or late batches that were never validated. How many."""

        async def look(tx: Tx) -> bool:
            return await batches.has_unclosed(tx)

        if not await self.transactions.read(look):
            return 0

        async def work(tx: Tx) -> list[Batch]:
            return [*await batches.confirm_unvalidated_cancels(tx), *await batches.expire_unvalidated(tx)]

        closed = await self.transactions.write(work)
        for batch in closed:
            metrics.ended(batch)
            log.info("batch ended", batch_id=batch.id, state=batch.state)
        self.bells.to_clean.ring()
        return len(closed)


def largest_quota(settings: Settings) -> Quota:
    """What the server's own settings allow: the most that a profile which a batch brings along may say."""
    input_mb = settings.gateway.max_batch_file_bytes / MIB
    return Quota(
        max_requests_per_batch=settings.metadata.max_lines,
        max_input_size_mb=input_mb,
        max_output_size_gb=UNBOUNDED_GB,
    )


def known_block(batch: Batch) -> Block:
    """What the batch was made with; one that an earlier version accepted and this one cannot read says nothing."""
    try:
        return parse_block(batch.aibrix_json)
    except InvalidArgument:
        return Block()


def attempt_of(block: Block) -> int:
    """Which try of its job for compute a block is of: an earlier one comes from a planner that was taken over."""
    attempt = (block.resource_allocation or {}).get("attempt")
    return attempt if type(attempt) is int else 0


def profile_window(scheduling: Scheduling) -> timedelta | None:
    text = scheduling.completion_window
    return None if text in (None, BEST_EFFORT) else parse_window(text)


def said_of(resolved: Resolved) -> dict[str, str]:
    """For the log: names, never contents."""
    said = {}
    if resolved.template is not None:
        said["template"] = resolved.template.label
    if resolved.profile is not None:
        said["profile"] = resolved.profile.name
    return said


def default_endpoints(settings: Settings) -> list[str]:
    return [url for part in settings.default_endpoint.split(",") if (url := part.strip())]


def cut(page: list[Batch]) -> list[Batch]:
    """As much of a page as fits into a message; at least one batch."""
    characters = 0
    for count, batch in enumerate(page):
        characters += len(batch.aibrix_json or "") + len(batch.metadata_json or "")
        characters += sum(len(error.message) + 64 for error in batch.errors)
        if characters > PAGE_CHARACTERS and count:
            return page[:count]
    return page
