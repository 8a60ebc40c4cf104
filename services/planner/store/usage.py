"""What a project uses, in SQL: it is asked before every job that has a quota, so it costs what lives and not what has ended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa

from services.kit.sql import MICROSECOND
from services.kit.transactions import Tx
from services.planner.states import LIVE
from services.planner.store import provisions
from services.planner.store.tables import jobs as t
from services.planner.store.tables import provisions as p

HOUR_MICROSECONDS = provisions.HOUR // MICROSECOND


@dataclass(frozen=True)
class Waiting:
    """Some jobs that have no compute yet, and ask for the same."""

    count: int
    model_template_spec_json: str | None
    resource_request_json: str | None


def live(project_id: str) -> tuple[sa.ColumnElement[bool], ...]:
    return (t.c.project_id == project_id, t.c.status.in_(LIVE))


async def count_live(tx: Tx, project_id: str) -> int:
    """Jobs that have not ended."""
    return int(await tx.scalar(sa.select(sa.func.count()).select_from(t).where(*live(project_id))))


async def count_gpus(tx: Tx, project_id: str) -> int:
    """GPUs of the compute that live jobs have; those of compute that several share count once."""
    used = sa.select(t.c.provision_id).where(*live(project_id), t.c.provision_id.is_not(None)).distinct().subquery()
    # One by one: joined, PostgreSQL would as soon read all provisions there ever were.
    gpus = sa.select(p.c.gpus_per_replica * p.c.replicas).where(p.c.id == used.c.provision_id).scalar_subquery()
    return int(await tx.scalar(sa.select(sa.func.sum(gpus)).select_from(used)) or 0)


async def list_waiting(tx: Tx, project_id: str) -> Sequence[Waiting]:
    """Live jobs that have no compute yet, grouped by what they ask for."""
    asked = (t.c.model_template_spec_json, t.c.resource_request_json)
    # Behind a function: SQLite would as soon walk the index of jobs without a provision, most of which may be another's.
    without = sa.func.coalesce(t.c.provision_id, "") == ""
    counted = sa.select(sa.func.count().label("count"), *asked).where(*live(project_id), without).group_by(*asked)
    return [Waiting(**row) for row in await tx.rows(counted)]


async def sum_cost(tx: Tx, project_id: str, since: datetime) -> float:
    """US dollars, until now, of the compute that the project asked for since then. Jobs that share compute are one project's."""
    billed = sa.cast(sa.literal(tx.now, p.c.create_time.type), sa.BigInteger) - sa.cast(
        p.c.billed_from_time, sa.BigInteger
    )
    hours = sa.case((billed > 0, sa.cast(billed, sa.Double) / HOUR_MICROSECONDS), else_=0.0)
    cost = sa.func.sum(p.c.past_cost_usd + p.c.hourly_price_usd * p.c.replicas * hours)
    return float(await tx.scalar(sa.select(cost).where(p.c.project_id == project_id, p.c.create_time >= since)) or 0.0)
