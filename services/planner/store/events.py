"""The timelines of jobs in SQL."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from services.kit.transactions import Tx
from services.planner.domain import Job, TimelineEntry
from services.planner.store.tables import job_events as t

LONGEST_LABEL = 128
LONGEST_MESSAGE = 2000


@dataclass(frozen=True)
class Line:
    """What a timeline is to say. `source`: console, planner, resource_manager or metadata."""

    label: str
    message: str = ""
    source: str = "planner"


def _insert() -> Any:
    """The next number of the job is found by the statement itself; the job's row is locked, so nobody else takes it."""
    next_id = sa.select(sa.func.coalesce(sa.func.max(t.c.id), 0) + 1).where(t.c.job_id == sa.bindparam("of_job"))
    return t.insert().inline().values(id=next_id.scalar_subquery())


INSERT = _insert()


class Timelines:
    """Lines of a transaction: they are written together, at its end."""

    def __init__(self, now: datetime) -> None:
        self.now = now
        self.rows: list[dict[str, Any]] = []

    def add(self, job: Job, line: Line) -> None:
        """Add a line to a job whose row this transaction has changed."""
        self.rows.append(
            {
                "job_id": job.id,
                "of_job": job.id,
                "label": line.label[:LONGEST_LABEL],
                "status": job.status.lower(),
                "source": line.source,
                "time": self.now,
                "message": line.message[:LONGEST_MESSAGE],
            }
        )


@asynccontextmanager
async def telling(tx: Tx) -> AsyncIterator[Timelines]:
    """For the changes of a transaction; what the block added is written when it has ended well."""
    timelines = Timelines(tx.now)
    yield timelines
    if timelines.rows:
        await tx.connection.execute(INSERT, timelines.rows)


async def list_all(tx: Tx, job_id: str) -> list[TimelineEntry]:
    """What happened to a job, oldest first."""
    wanted = [t.c[name] for name in TimelineEntry.__dataclass_fields__]
    found = await tx.rows(sa.select(*wanted).where(t.c.job_id == job_id).order_by(t.c.id))
    return [TimelineEntry(**row) for row in found]


async def list_messages(tx: Tx, job_id: str, label: str) -> list[str]:
    """What the lines with this label say, oldest first."""
    wanted = sa.select(t.c.message).where(t.c.job_id == job_id, t.c.label == label)
    return [row["message"] for row in await tx.rows(wanted.order_by(t.c.id))]


async def last(tx: Tx, job_id: str) -> Line | None:
    """The newest line of a job."""
    wanted = sa.select(t.c.label, t.c.message, t.c.source).where(t.c.job_id == job_id)
    row = await tx.find(wanted.order_by(t.c.id.desc()).limit(1))
    return Line(**row) if row else None
