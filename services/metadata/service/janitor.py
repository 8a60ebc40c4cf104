"""Clears away what is over: work objects of ended batches, objects that no row names, old keys, silent runners."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

import structlog

from services.kit import clock
from services.kit.objects import ObjectStore
from services.kit.settings import Settings
from services.kit.transactions import Transactions, Tx
from services.metadata import metrics
from services.metadata.service.runners import RunnerRegistryService
from services.metadata.store import batches, keys, leases, objects, segments

# Folders of objects that belong to a batch: the second part of the key is its id.
WORK_KINDS = ("segments", "indexes", "results")
NAMED_KINDS = ("files", "uploads")
PAGE = 500

log = structlog.get_logger(__name__)


class JanitorService:
    def __init__(
        self, transactions: Transactions, store: ObjectStore, runners: RunnerRegistryService, settings: Settings
    ) -> None:
        self.transactions = transactions
        self.store = store
        self.runners = runners
        self.orphan_age = timedelta(seconds=settings.metadata.orphan_age_s)

    async def clean_batches(self) -> int:
        """Delete segments, index and stale results of ended batches; how many batches."""

        async def due(tx: Tx) -> Sequence[str]:
            return await batches.list_uncleaned(tx, 100)

        ids = await self.transactions.read(due)
        for id in ids:
            await self._clean(id)
        return len(ids)

    async def _clean(self, batch_id: str) -> None:
        for kind in WORK_KINDS:
            useless = [found.key async for found in self.store.list(f"{kind}/{batch_id}/")]
            # The results that the batch ended with are files now.
            await self.store.delete(sorted(set(useless) - await self._named(useless)))

        async def work(tx: Tx) -> None:
            await segments.delete(tx, batch_id)
            await batches.set_cleaned(tx, batch_id)

        await self.transactions.write(work)

    async def delete_orphans(self) -> int:
        """Delete objects that no row names and that are old enough to be nobody's work; how many.

        A crash between the writing of an object and its row leaves one, and so does a runner that lost its lease.
        """
        deleted = await self.store.delete_unfinished(self.orphan_age.total_seconds())
        for kind in (*WORK_KINDS, *NAMED_KINDS):
            page: list[str] = []
            async for found in self.store.list(f"{kind}/"):
                if clock.now() - found.modified_time >= self.orphan_age:
                    page.append(found.key)
                if len(page) == PAGE:
                    deleted += await self._delete_unnamed(kind, page)
                    page = []
            deleted += await self._delete_unnamed(kind, page)
        if deleted:
            log.info("orphan objects deleted", count=deleted)
        return deleted

    async def _delete_unnamed(self, kind: str, keys: list[str]) -> int:
        if not keys:
            return 0
        kept = await self._named(keys)
        if kind in WORK_KINDS:
            live = await self._live({batch_of(key) for key in keys})
            kept |= {key for key in keys if batch_of(key) in live}
        orphans = sorted(set(keys) - kept)
        await self.store.delete(orphans)
        return len(orphans)

    async def _named(self, keys: list[str]) -> set[str]:
        named: set[str] = set()
        for start in range(0, len(keys), PAGE):
            part = keys[start : start + PAGE]

            async def work(tx: Tx, part: list[str] = part) -> set[str]:
                return await objects.list_named(tx, part)

            named |= await self.transactions.read(work)
        return named

    async def _live(self, ids: set[str]) -> set[str]:
        async def work(tx: Tx) -> set[str]:
            return await batches.list_live_ids(tx, sorted(ids))

        return await self.transactions.read(work)

    async def forget_old_keys(self) -> int:
        return await self.transactions.write(keys.forget_old)

    async def count(self) -> None:
        """Set the gauges."""

        async def work(tx: Tx) -> None:
            for state, count in (await batches.count_live(tx)).items():
                metrics.LIVE.labels(state.lower()).set(count)
            metrics.WAITING.set(await leases.count_waiting(tx))
            metrics.HELD.set(await leases.count_held(tx))

        await self.transactions.read(work)
        metrics.RUNNERS.set(len(await self.runners.list_runners()))


def batch_of(key: str) -> str:
    return key.split("/")[1]
