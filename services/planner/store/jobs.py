"""Jobs in SQL, as their users see them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from services.kit.transactions import Row, Tx
from services.planner.domain import Job, RequestCounts, Usage
from services.planner.states import LIVE, JobState
from services.planner.store.tables import COUNTS, USAGE
from services.planner.store.tables import jobs as t

JOB_PREFIX = "job_"
# What stands elsewhere: the provision and the events in tables of their own, the cost is worked out.
ELSEWHERE = ("provision", "events", "cost_usd", "request_counts", "usage")
PLAIN = [name for name in Job.__dataclass_fields__ if name not in ELSEWHERE]
COLUMNS = [t.c[name] for name in (*PLAIN, *COUNTS, *USAGE)]
HELD_COLUMNS = [*COLUMNS, t.c.attempt, t.c.validated, t.c.lease_token, t.c.dispatch_time, t.c.rest_until_time]
# Built once: to name that many columns anew takes longer than all else about a statement.
SELECT_HELD = sa.select(*HELD_COLUMNS)
UPDATE_HELD = t.update().returning(*HELD_COLUMNS)


@dataclass(frozen=True, kw_only=True)
class Held:
    """A job with what those who act on it share, as it was at the time `now`."""

    job: Job
    attempt: int
    """How often compute was asked for; the number in the key of the provision and of the batch."""
    validated: bool
    lease_token: int
    dispatch_time: datetime | None
    """When its requests began to flow, as far as anybody saw it."""
    rest_until_time: datetime | None
    now: datetime

    @property
    def key(self) -> str:
        """Of the job's provision and of its batch: the same key gives the same one."""
        return key_of(self.job.id, self.attempt)

    def all_keys(self) -> list[str]:
        """Of all provisions that were ever asked for."""
        return [key_of(self.job.id, number) for number in range(1, self.attempt + 1)]

    @property
    def is_late(self) -> bool:
        return self.now >= self.job.expires_time


def key_of(job_id: str, attempt: int) -> str:
    return f"{job_id}/{attempt}"


def as_job(row: Row) -> Job:
    return Job(
        **{name: row[name] for name in PLAIN},
        request_counts=RequestCounts(**{name.removesuffix("_count"): row[name] for name in COUNTS}),
        usage=Usage(**{name: row[name] for name in USAGE}),
    )


def as_held(row: Row, now: datetime) -> Held:
    return Held(
        job=as_job(row),
        attempt=row["attempt"],
        validated=row["validated"],
        lease_token=row["lease_token"],
        dispatch_time=row["dispatch_time"],
        rest_until_time=row["rest_until_time"],
        now=now,
    )


def row_of(job: Job) -> dict[str, Any]:
    """What `insert_all` writes of a new job."""
    return {name: getattr(job, name) for name in PLAIN} | {"due_time": job.create_time}


async def insert_all(tx: Tx, jobs: Sequence[Job]) -> None:
    """Record new jobs."""
    if jobs:
        await tx.connection.execute(t.insert(), [row_of(job) for job in jobs])


async def find(tx: Tx, project_id: str, id: str) -> Held | None:
    """The job of this project, whoever holds it."""
    row = await tx.find(SELECT_HELD.where(t.c.id == id, t.c.project_id == project_id))
    return as_held(row, tx.now) if row else None


async def list_revisions(tx: Tx, ids: Iterable[str]) -> Mapping[str, int]:
    """How often each of these jobs has changed."""
    found = await tx.rows(sa.select(t.c.id, t.c.revision).where(t.c.id.in_(list(ids))))
    return {row["id"]: row["revision"] for row in found}


@dataclass(frozen=True, kw_only=True)
class Filter:
    project_id: str
    statuses: frozenset[JobState] = frozenset()
    """Empty: all."""
    model_id: str | None = None
    model_template_name: str | None = None
    model_template_version: str | None = None
    live: bool = False
    """Only jobs that have not ended."""

    def each_status(self) -> Sequence[JobState | None]:
        """The statuses that are looked up, one by one. None: whatever it is."""
        if self.live:
            return sorted(self.statuses & LIVE if self.statuses else LIVE)
        if self.statuses:
            return sorted(self.statuses)
        # The indexes of model and template are in order within a status.
        return sorted(JobState) if self.model_id is not None or self.model_template_name is not None else [None]


def page_of(wanted: Filter, mark: tuple[datetime, str] | None, limit: int) -> sa.Select[Any]:
    """Jobs, newest first, behind `mark`.

    Each status is looked up by itself, so that every part comes in order from an index and ends after `limit` rows:
    the time that a page takes does not grow with the number of jobs.
    """
    statuses = wanted.each_status()
    if len(statuses) == 1:
        return _ordered(_part(wanted, statuses[0], mark), t.c, limit)
    parts = [
        sa.select(_ordered(_part(wanted, status, mark, t.c.id, t.c.create_time), t.c, limit).subquery())
        for status in statuses
    ]
    found = sa.union_all(*parts).subquery()
    newest = _ordered(sa.select(found.c.id), found.c, limit)
    return _ordered(SELECT_HELD.where(t.c.id.in_(newest)), t.c, limit)


def _part(
    wanted: Filter, status: JobState | None, mark: tuple[datetime, str] | None, *columns: sa.ColumnElement[Any]
) -> sa.Select[Any]:
    statement = (sa.select(*columns) if columns else SELECT_HELD).where(t.c.project_id == wanted.project_id)
    if status is not None:
        statement = statement.where(t.c.status == status)
    for name in ("model_id", "model_template_name", "model_template_version"):
        if (value := getattr(wanted, name)) is not None:
            # Without statistics SQLite would as soon take the model's index, and walk the history of the model. A template
            # belongs to one model, so its own is as good or better.
            is_hidden = name == "model_id" and wanted.model_template_name is not None
            statement = statement.where((t.c[name].concat("") if is_hidden else t.c[name]) == value)
    if mark is not None:
        time, id = mark
        place = sa.tuple_(sa.literal(time, t.c.create_time.type), sa.literal(id))
        statement = statement.where(sa.tuple_(t.c.create_time, t.c.id) < place)
    return statement


def _ordered(statement: sa.Select[Any], columns: Any, limit: int) -> sa.Select[Any]:
    return statement.order_by(columns.create_time.desc(), columns.id.desc()).limit(limit)


async def page(tx: Tx, wanted: Filter, after: str | None, limit: int) -> Sequence[Held]:
    """Jobs, newest first, behind the one that `after` names; nothing if that one is unknown."""
    mark = None
    if not wanted.each_status():
        return []
    if after is not None:
        known = sa.select(t.c.create_time).where(t.c.id == after, t.c.project_id == wanted.project_id)
        cursor = await tx.find(known)
        if cursor is None:
            return []
        mark = (cursor["create_time"], after)
    return [as_held(row, tx.now) for row in await tx.rows(page_of(wanted, mark, limit))]


async def count_live(tx: Tx, states: Iterable[JobState]) -> Mapping[JobState, int]:
    """How many jobs there are in each of these states."""
    counted = sa.select(t.c.status, sa.func.count().label("n")).where(t.c.status.in_(states)).group_by(t.c.status)
    return {row["status"]: row["n"] for row in await tx.rows(counted)}
