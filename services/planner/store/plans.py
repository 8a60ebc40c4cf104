"""What a planning policy looks at, in SQL, and what follows from it: which jobs start, and which compute nobody needs."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from typing import Any

import sqlalchemy as sa

from services.kit.transactions import Row, Tx
from services.planner.states import LIVE, LIVE_PROVISIONS, JobEvent, JobState, ProvisionState
from services.planner.store import events, moves
from services.planner.store.events import Line
from services.planner.store.jobs import JOB_PREFIX, Held
from services.planner.store.tables import jobs as t
from services.planner.store.tables import provisions

# PostgreSQL's advisory lock under which it is decided who uses which compute. Any number that nothing else uses.
LOCK = 0x6272_6978_706D
# Jobs that a policy is shown, by each of two orders.
WINDOW = 250
# Earlier jobs of a template from which the time of a request is reckoned.
HISTORY = 20

NUMBERS = ("id", "project_id", "priority", "create_time", "expires_time", "total_count", "model_template_name")
# What must be the same for two jobs to use the same compute, one after the other.
KIN = ("project_id", "model", "model_template_spec_json", "resource_request_json")


@dataclass(frozen=True, kw_only=True)
class Waiting:
    id: str
    project_id: str
    priority: int
    create_time: datetime
    expires_time: datetime
    total_count: int
    model_template_name: str
    kin: str = ""


@dataclass(frozen=True, kw_only=True)
class Running:
    """A live job that has, or waits for, compute."""

    waiting: Waiting
    provision_id: str | None
    is_sought: bool
    """Its compute is asked for, and nobody knows yet where it will be."""
    can_share: bool
    """Its compute is there, or in the making, and of a kind that jobs may use one after another."""
    done_count: int


async def lock(tx: Tx) -> None:
    """Nobody else decides who uses which compute until this transaction ends. SQLite has one writer anyway."""
    if tx.connection.dialect.name == "postgresql":
        await tx.scalar(sa.select(sa.func.pg_advisory_xact_lock(LOCK)))


# Whether the policy has something to decide: a look that takes no lock.
WAITING = (t.c.status == JobState.QUEUED, t.c.validated, t.c.rest_until_time.is_(None))
HAS_WAITING = sa.select(t.c.id).where(*WAITING).limit(1)


async def list_waiting(tx: Tx, *, with_kin: bool) -> list[Waiting]:
    """Jobs that the policy may start: those of highest priority, and those with the nearest deadlines."""
    ready = sa.select(t.c.id).where(*WAITING, t.c.expires_time > tx.now)
    first = ready.order_by(t.c.priority.desc(), t.c.expires_time, t.c.id).limit(WINDOW)
    near = ready.order_by(t.c.expires_time, t.c.id).limit(WINDOW)
    ids = {row["id"] for row in [*await tx.rows(first), *await tx.rows(near)]}
    return [_waiting(row, with_kin) for row in await tx.rows(_columns(with_kin).where(t.c.id.in_(ids)))]


def _columns(with_kin: bool, *more: sa.ColumnElement[Any]) -> sa.Select[Any]:
    names = dict.fromkeys((*NUMBERS, *KIN)) if with_kin else NUMBERS
    return sa.select(*(t.c[name] for name in names), *more)


def _waiting(row: Row, with_kin: bool) -> Waiting:
    kin = ""
    if with_kin:
        kin = sha256("\0".join(row[name] or "" for name in KIN).encode()).hexdigest()
    return Waiting(**{name: row[name] for name in NUMBERS}, kin=kin)


async def list_running(tx: Tx, sharable: Collection[str]) -> list[Running]:
    """Live jobs behind the queue, with what shows when they end. `sharable`: providers."""
    sought = provisions.c.status == ProvisionState.PENDING
    there = provisions.c.status.in_([ProvisionState.PROVISIONING, ProvisionState.RUNNING])
    can_share = sa.and_(there, provisions.c.provider.in_(sharable))
    counts = (t.c.completed_count, t.c.failed_count)
    more = (t.c.provision_id, *counts, sought.label("sought"), can_share.label("can_share"))
    joined = t.outerjoin(provisions, t.c.provision_id == provisions.c.id)
    behind = LIVE - {JobState.QUEUED, JobState.CANCELLING}
    return [
        Running(
            waiting=_waiting(row, True),
            provision_id=row["provision_id"],
            is_sought=bool(row["sought"]),
            can_share=bool(row["can_share"]),
            done_count=row["completed_count"] + row["failed_count"],
        )
        for row in await tx.rows(_columns(True, *more).select_from(joined).where(t.c.status.in_(behind)))
    ]


async def count_provisions(tx: Tx) -> int:
    """Provisions that exist, and those that planned jobs will ask for."""
    exist = sa.select(sa.func.count()).select_from(provisions).where(provisions.c.status.in_(LIVE_PROVISIONS))
    to_ask = sa.select(sa.func.count()).select_from(t)
    planned = to_ask.where(t.c.status == JobState.PLANNED, t.c.provision_id.is_(None))
    # In this order: one that is asked for in between counts twice rather than not at all.
    return int(await tx.scalar(planned)) + int(await tx.scalar(exist))


async def seconds_per_request(tx: Tx, project_id: str, template: str) -> float | None:
    """How long a request of this template took, by the latest jobs that completed; None: there are none.

    Only those count whose requests were seen to flow: before that the machine and the model came up.
    """
    latest = (
        sa.select(t.c.dispatch_time, t.c.completed_time, t.c.total_count, t.c.status)
        .where(t.c.project_id == project_id, t.c.model_template_name == template)
        .order_by(t.c.create_time.desc(), t.c.id.desc())
        .limit(HISTORY)
    )
    spent, requests = 0.0, 0
    for row in await tx.rows(latest):
        if row["status"] == JobState.COMPLETED and row["dispatch_time"] is not None and row["total_count"]:
            spent += (row["completed_time"] - row["dispatch_time"]).total_seconds()
            requests += row["total_count"]
    return max(0.0, spent) / requests if requests else None


async def start(tx: Tx, ids: Collection[str], provision_id: str | None, line: Line) -> list[Held]:
    """Let queued jobs go on, on the compute that is named, or each on its own; those that still wait."""
    queued = sa.select(t.c.id).where(t.c.id.in_(ids), *WAITING)
    # Those that somebody writes just now come next time; in one order, so that two planners do not wait for each other.
    free = [row["id"] for row in await tx.rows(queued.order_by(t.c.id).with_for_update(skip_locked=True))]
    if not free:
        return []
    values = {"provision_id": provision_id, "attempt": t.c.attempt + 1}
    async with events.telling(tx) as said:
        return await moves.move(tx, said, JobEvent.PLAN, line, t.c.id.in_(free), **values)


async def first_in_line(tx: Tx, provision_id: str) -> str | None:
    """Whose turn it is on a provision: of its live jobs the one that was planned first."""
    mine = sa.select(t.c.id).where(t.c.provision_id == provision_id, t.c.status.in_(LIVE))
    id: str | None = await tx.scalar(mine.order_by(t.c.planned_time, t.c.id).limit(1))
    return id


async def list_to_release(tx: Tx, held: Held) -> tuple[list[str], bool]:
    """Provisions of an ended job that are to be given back or are being given back, and whether another job keeps one.

    Under `lock`: a policy puts no job onto compute whose jobs have all ended.
    """
    asked = provisions.c.idempotency_key.in_(held.all_keys())
    mine = sa.or_(asked, provisions.c.id == held.job.provision_id)
    used = sa.exists().where(t.c.provision_id == provisions.c.id, t.c.status.in_(LIVE))
    found = await tx.rows(
        sa.select(provisions.c.id, used.label("used")).where(mine, provisions.c.status.in_(LIVE_PROVISIONS))
    )
    return [row["id"] for row in found if not row["used"]], any(row["used"] for row in found)


async def count_failures(tx: Tx, held: Held, free_codes: Collection[str]) -> int:
    """How many provisions of a job came to an end that was not asked for, for other reasons than these."""
    failed = (
        sa.select(sa.func.count())
        .select_from(provisions)
        .where(
            provisions.c.idempotency_key.in_(held.all_keys()),
            sa.or_(provisions.c.error_code.is_(None), provisions.c.error_code.not_in(free_codes)),
        )
    )
    return int(await tx.scalar(failed))


async def is_needed(tx: Tx, provision_id: str) -> bool:
    """Whether a live job has this provision, or is about to have it. One that was not asked for by a job is always needed."""
    key = await tx.scalar(sa.select(provisions.c.idempotency_key).where(provisions.c.id == provision_id)) or ""
    if not key.startswith(JOB_PREFIX):
        return True
    mine = sa.or_(t.c.provision_id == provision_id, t.c.id == key.rpartition("/")[0])
    return await tx.scalar(sa.select(t.c.id).where(mine, t.c.status.in_(LIVE)).limit(1)) is not None
