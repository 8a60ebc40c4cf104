"""Quotas in SQL."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from services.console.access import Quota, QuotaChange
from services.console.store.tables_access import quotas as t
from services.kit.transactions import Row, Tx

LIMITS = ("max_live_jobs", "max_gpus", "max_monthly_cost_usd")
COLUMNS = [t.c[name] for name in ("project_id", *LIMITS, "revision")]


def as_quota(row: Row) -> Quota:
    return Quota(**row)


async def find(tx: Tx, project_id: str) -> Quota:
    """The project's quota; one without limits if nobody has set any."""
    row = await tx.find(sa.select(*COLUMNS).where(t.c.project_id == project_id))
    return as_quota(row) if row else Quota(project_id=project_id)


def given(change: QuotaChange) -> dict[str, Any]:
    """The limits that it sets."""
    return {name: value for name in LIMITS if (value := getattr(change, name)) is not None}


async def update(tx: Tx, change: QuotaChange) -> Quota | None:
    """Set the limits that are given, if the quota is still at this revision (0: there is none); None if it is not."""
    values = given(change) | {"revision": change.revision + 1}
    if change.revision == 0:
        fresh = tx.insert(t).values(project_id=change.project_id, **values).on_conflict_do_nothing()
        row = await tx.find(fresh.returning(*COLUMNS))
    else:
        held = (t.c.project_id == change.project_id, t.c.revision == change.revision)
        row = await tx.find(t.update().where(*held).values(values).returning(*COLUMNS))
    return as_quota(row) if row else None
