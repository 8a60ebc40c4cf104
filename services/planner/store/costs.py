"""Which compute a job has used, and who else did, in SQL."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa

from services.kit.transactions import Tx
from services.planner.domain import Provision
from services.planner.states import TERMINAL
from services.planner.store import provisions
from services.planner.store.jobs import Held
from services.planner.store.tables import jobs as t
from services.planner.store.tables import provisions as p


@dataclass(frozen=True, kw_only=True)
class Guest:
    """A job on compute that another one asked for."""

    job_id: str
    provision_id: str
    since: datetime
    until: datetime | None
    """None: still."""


async def list_compute(tx: Tx, jobs: Sequence[Held]) -> list[Provision]:
    """All provisions that were made for these jobs, and those that they use."""
    keys = [key for held in jobs for key in held.all_keys()]
    used = [held.job.provision_id for held in jobs if held.job.provision_id is not None]
    if not keys:
        return []
    mine = sa.or_(p.c.idempotency_key.in_(keys), p.c.id.in_(used))
    return [provisions.as_provision(row, tx.now) for row in await tx.rows(sa.select(*provisions.COLUMNS).where(mine))]


async def list_guests(tx: Tx, provision_ids: Collection[str]) -> list[Guest]:
    """Jobs whose turn has come on one of these provisions, and for which another job asked."""
    if not provision_ids:
        return []
    ends = [t.c[f"{state.lower()}_time"] for state in sorted(TERMINAL)]
    wanted = sa.select(
        t.c.id.label("job_id"),
        t.c.provision_id,
        t.c.submitting_time.label("since"),
        sa.func.coalesce(*ends, type_=t.c.create_time.type).label("until"),
    ).join(p, p.c.id == t.c.provision_id)
    asked_by_another = p.c.idempotency_key.not_like(t.c.id.concat("/%"))
    mine = (t.c.provision_id.in_(provision_ids), t.c.submitting_time.is_not(None), asked_by_another)
    return [Guest(**row) for row in await tx.rows(wanted.where(*mine))]
