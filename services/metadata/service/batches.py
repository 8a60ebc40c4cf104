"""Batches as their users see them: made, looked at, listed, cancelled."""

from __future__ import annotations

from datetime import timedelta

import structlog

from services.kit.errors import IllegalTransition
from services.kit.ids import new_id
from services.kit.settings import Settings
from services.kit.spec.window import parse_window
from services.metadata import metrics
from services.metadata.domain import Batch, NewBatch
from services.metadata.service import checks, requests
from services.metadata.service.bells import Bells
from services.metadata.states import BatchState
from services.metadata.store import batches, keys, runners
from services.metadata.store.transactions import Transactions, Tx

DEFAULT_PAGE = 20
LARGEST_PAGE = 100
# A page ends early when its blocks and error lists hold this many characters: a message has at most 16 MiB.
PAGE_CHARACTERS = 4 * 1024 * 1024

log = structlog.get_logger(__name__)


class BatchService:
    def __init__(self, transactions: Transactions, bells: Bells, settings: Settings) -> None:
        self.transactions = transactions
        self.bells = bells
        self.settings = settings
        self.memory = timedelta(seconds=settings.metadata.runner_memory_s)

    async def create_batch(self, new: NewBatch) -> Batch:
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
        block = requests.read_block(new.aibrix_json, has_default=bool(default_endpoints(self.settings)))
        id = new_id("batch_")

        async def work(tx: Tx) -> Batch:
            if new.idempotency_key is not None:
                key, said = new.idempotency_key, new.request_hash
                claim = await keys.claim(tx, new.project_id, "batch", key, said, id)
                checks.same_request(key, claim.request_hash, said)
                if claim.resource_id != id and (earlier := await batches.find(tx, new.project_id, claim.resource_id)):
                    return earlier
            if block.target() not in requests.BUILT_IN_TARGETS:
                requests.check_target(block.target(), await runners.list_targets(tx, self.memory))
            batch = as_batch(new, id, window, tx)
            await batches.insert(tx, batch, block.target())
            return batch

        batch = await self.transactions.write(work)
        if batch.id == id:
            metrics.CREATED.inc()
            log.info("batch created", batch_id=id, project_id=batch.project_id, endpoint=batch.endpoint)
        self.bells.to_validate.ring()
        return batch

    async def get_batch(self, project_id: str, id: str) -> Batch:
        row = await self.transactions.look(batches.one(project_id, id)) if "\0" not in id else None
        if row is None:
            raise checks.missing("batch", id)
        return batches.as_batch(row)

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


def default_endpoints(settings: Settings) -> list[str]:
    return [url for part in settings.default_endpoint.split(",") if (url := part.strip())]


def as_batch(new: NewBatch, id: str, window: timedelta, tx: Tx) -> Batch:
    return Batch(
        id=id,
        project_id=new.project_id,
        state=BatchState.VALIDATING,
        endpoint=new.endpoint,
        input_file_id=new.input_file_id,
        completion_window=new.completion_window,
        metadata_json=new.metadata_json,
        aibrix_json=new.aibrix_json,
        create_time=tx.now,
        expire_time=tx.now + window,
        output_expires_after_s=new.output_expires_after_s,
    )


def cut(page: list[Batch]) -> list[Batch]:
    """As much of a page as fits into a message; at least one batch."""
    characters = 0
    for count, batch in enumerate(page):
        characters += len(batch.aibrix_json or "") + len(batch.metadata_json or "")
        characters += sum(len(error.message) + 64 for error in batch.errors)
        if characters > PAGE_CHARACTERS and count:
            return page[:count]
    return page
