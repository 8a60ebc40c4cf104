"""Quotas: how much a project may use at once, and in a month."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import datetime
from typing import Protocol

import structlog

from services.console.access import Live, Quota, QuotaChange
from services.console.service import checks
from services.console.store import access_quotas as quotas
from services.kit.errors import InvalidArgument, QuotaExceeded
from services.kit.transactions import Transactions, Tx

CODE = "insufficient_quota"
LARGEST_COST_USD = 1e9

log = structlog.get_logger(__name__)


class Usage(Protocol):
    """What a project uses, as the planner knows it. Errors of both: the planner's."""

    async def live(self, project_id: str, *, with_gpus: bool = False) -> Live:
        """`with_gpus`: GPUs are counted too."""
        ...

    async def cost_since(self, project_id: str, since: datetime) -> float:
        """US dollars that the compute which was asked for since then has cost so far."""
        ...


class QuotaService:
    def __init__(self, transactions: Transactions, usage: Usage) -> None:
        self.transactions = transactions
        self.usage = usage

    async def get_quota(self, project_id: str) -> Quota:
        """With what is used now. Error: Unavailable (the planner does not say)."""
        quota, _ = await self._find(project_id)
        live = await self.usage.live(project_id)
        return replace(quota, live_jobs=live.jobs)

    async def update_quota(self, change: QuotaChange) -> Quota:
        """Errors: InvalidArgument, Conflict (another revision)."""
        check_change(change)
        live = await self.usage.live(change.project_id)

        async def work(tx: Tx) -> Quota:
            if changed := await quotas.update(tx, change):
                return changed
            now = await quotas.find(tx, change.project_id)
            if now.revision == change.revision + 1 and replace(now, **quotas.given(change)) == now:
                return now  # the same call, whose answer was lost
            raise checks.changed("quota", change.revision, now.revision)

        quota = await self.transactions.write(work)
        log.info("quota changed", project_id=quota.project_id, revision=quota.revision)
        return replace(quota, live_jobs=live.jobs)

    async def check_quota(self, project_id: str, *, gpus: int) -> None:
        """Whether the project may have one more job, which takes `gpus` GPUs. Errors: QuotaExceeded; the planner's.

        Of jobs that are made at the same moment each may find room for itself: a quota is overrun by as many.
        """
        quota, now = await self._find(project_id)
        if quota.max_live_jobs is not None or quota.max_gpus is not None:
            live = await self.usage.live(project_id, with_gpus=quota.max_gpus is not None)
            check_live(quota, live, gpus)
        if quota.max_monthly_cost_usd is not None:
            month = now.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
            cost = await self.usage.cost_since(project_id, month)
            if cost >= quota.max_monthly_cost_usd:
                raise exceeded(
                    f"The compute of this month has cost {cost:.2f} US dollars, and this project may spend "
                    f"{quota.max_monthly_cost_usd:.2f}. The next month begins at the 1st, 00:00 UTC."
                )

    async def _find(self, project_id: str) -> tuple[Quota, datetime]:
        async def work(tx: Tx) -> tuple[Quota, datetime]:
            return await quotas.find(tx, project_id), tx.now

        return await self.transactions.read(work)


def check_live(quota: Quota, live: Live, gpus: int) -> None:
    """Error: QuotaExceeded."""
    if quota.max_live_jobs is not None and live.jobs >= quota.max_live_jobs:
        raise exceeded(
            f"This project has {live.jobs} jobs that have not ended, and may have {quota.max_live_jobs}. "
            "Wait until one ends, or cancel one."
        )
    if quota.max_gpus is not None and live.gpus + gpus > quota.max_gpus:
        raise exceeded(
            f"The job takes {gpus} GPUs. The live jobs of this project take {live.gpus}, and it may have {quota.max_gpus}."
        )


def exceeded(message: str) -> QuotaExceeded:
    return QuotaExceeded(message, code=CODE)


def check_change(change: QuotaChange) -> None:
    """Error: InvalidArgument."""
    for param in ("max_live_jobs", "max_gpus"):
        value = getattr(change, param)
        if value is not None and value < 0:
            message = f"Invalid '{param}': integer below minimum value. Expected a value >= 0, but got {value} instead."
            raise InvalidArgument(message, param=param, code="integer_below_min_value")
    cost = change.max_monthly_cost_usd
    if cost is not None and not (math.isfinite(cost) and 0 <= cost <= LARGEST_COST_USD):
        raise checks.invalid("max_monthly_cost_usd", "it must be a number of US dollars, from 0")
    if not 0 <= change.revision < checks.REVISIONS:
        raise checks.invalid("revision", "it must be at least 0; 0 says that no quota was set yet")
