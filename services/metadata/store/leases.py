"""Leases in SQL: columns of the batch that its holder and those who wait for it agree by."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa

from services.kit.transactions import Tx
from services.metadata.domain import Batch, Work
from services.metadata.states import LIVE, BatchState
from services.metadata.store.batches import WORK_COLUMNS, as_batch, as_work
from services.metadata.store.tables import batches as t

LEASABLE = (BatchState.IN_PROGRESS, BatchState.FINALIZING, BatchState.CANCELLING)
SOON = timedelta(hours=1)


def unheld(now: datetime) -> sa.ColumnElement[bool]:
    return sa.or_(t.c.lease_owner.is_(None), t.c.lease_expire_time <= now)


def free(now: datetime) -> sa.ColumnElement[bool]:
    """Nobody holds it, and nobody asked to let it rest."""
    return sa.and_(unheld(now), sa.or_(t.c.not_before_time.is_(None), t.c.not_before_time <= now))


def has_compute(now: datetime) -> sa.ColumnElement[bool]:
    """Its compute is there, as far as we know, or it needs none any more."""
    return sa.or_(t.c.compute_lost.is_(None), closing(now))


def closing(now: datetime) -> sa.ColumnElement[bool]:
    return sa.or_(t.c.state == BatchState.CANCELLING, t.c.expire_time <= now)


def candidates(now: datetime, targets: Sequence[str], batch_id: str) -> sa.Select[Any]:
    """Batches that a runner may lease, best first: to be closed, priority, near the deadline, fair, deadline.

    With `batch_id` this one only, also while it rests: it may rest so that this very runner gets it. Any runner closes or finalizes a batch for which nothing is launched: that takes no runtime.
    """
    ending = sa.or_(closing(now), t.c.state == BatchState.FINALIZING)
    runnable = sa.or_(t.c.target.in_(targets), sa.and_(ending, t.c.runtime_json.is_(None)))
    held = t.alias("held")
    running = (
        sa.select(sa.func.count())
        .select_from(held)
        .where(held.c.project_id == t.c.project_id, held.c.lease_expire_time > now)
        .scalar_subquery()
    )
    found = sa.select(t.c.id).where(t.c.state.in_(LEASABLE), t.c.index_key.is_not(None), has_compute(now), runnable)
    found = found.where(t.c.id == batch_id, unheld(now)) if batch_id else found.where(free(now))
    return found.order_by(
        sa.case((closing(now), 0), else_=1),
        t.c.priority.desc(),
        sa.case((t.c.expire_time <= now + SOON, 0), else_=1),
        running,
        t.c.expire_time,
        t.c.id,
    ).limit(1)


async def is_waiting(tx: Tx, targets: Sequence[str], batch_id: str) -> bool:
    """Whether there is a batch to lease: a look that takes no lock."""
    return await tx.scalar(candidates(tx.now, targets, batch_id)) is not None


async def pick(tx: Tx, targets: Sequence[str], batch_id: str) -> str | None:
    """Lock the best batch to lease; rivals pass over it."""
    best = candidates(tx.now, targets, batch_id).with_for_update(skip_locked=True, of=t)
    id: str | None = await tx.scalar(best)
    return id


async def has_unvalidated(tx: Tx) -> bool:
    """Whether a batch waits for its validation: a look that takes no lock."""
    waiting = sa.select(t.c.id).where(t.c.state == BatchState.VALIDATING, free(tx.now))
    return await tx.scalar(waiting.limit(1)) is not None


async def pick_unvalidated(tx: Tx) -> str | None:
    """Lock the batch that waits longest for its validation; rivals pass over it."""
    waiting = sa.select(t.c.id).where(t.c.state == BatchState.VALIDATING, free(tx.now))
    id: str | None = await tx.scalar(waiting.order_by(t.c.create_time).limit(1).with_for_update(skip_locked=True))
    return id


async def take(tx: Tx, id: str, owner: str, ttl: timedelta, *, attempts: int) -> Work:
    """Give a locked batch to `owner` under the next token."""
    values = {
        "lease_token": t.c.lease_token + 1,
        "lease_owner": owner,
        "lease_expire_time": tx.now + ttl,
        "not_before_time": None,
        "attempt": t.c.attempt + attempts,
        "phase": "",
        "in_flight": 0,
    }
    row = await tx.find(t.update().where(t.c.id == id).values(values).returning(*WORK_COLUMNS))
    assert row is not None
    return as_work(row)


async def find(tx: Tx, id: str) -> Work | None:
    """A batch with its lease."""
    row = await tx.find(sa.select(*WORK_COLUMNS).where(t.c.id == id))
    return as_work(row) if row else None


async def lock(tx: Tx, id: str) -> Work | None:
    """A batch with its lease; nobody changes it until this transaction ends."""
    row = await tx.find(sa.select(*WORK_COLUMNS).where(t.c.id == id).with_for_update())
    return as_work(row) if row else None


async def set_held(tx: Tx, id: str, token: int, **values: Any) -> Batch | None:
    """Write columns of a batch for its current holder; None if the token is not current."""
    held = (t.c.id == id, t.c.lease_token == token, t.c.lease_owner.is_not(None), t.c.state.in_(LIVE))
    row = await tx.find(t.update().where(*held).values(values).returning(*WORK_COLUMNS))
    return as_batch(row) if row else None


async def renew(tx: Tx, id: str, token: int, ttl: timedelta, **values: Any) -> Batch | None:
    """Extend a lease for its current holder; None if the token is not current."""
    return await set_held(tx, id, token, lease_expire_time=tx.now + ttl, **values)


async def release(tx: Tx, id: str, token: int, rest: timedelta, *, handed_over: bool = False) -> Batch | None:
    """End a lease, and let the batch rest; None if the token is not current."""
    free_at = tx.now + rest if rest else None
    said: dict[str, Any] = {"phase": "", "in_flight": 0}
    if handed_over:
        said["attempt"] = 0
    return await set_held(tx, id, token, lease_owner=None, lease_expire_time=None, not_before_time=free_at, **said)


async def lose_compute(tx: Tx, id: str, token: int, why: str) -> Batch | None:
    """End a lease, and let the batch rest until it has other compute; None if the token is not current.

    With every line committed it needs none: who comes next only puts the results together.
    """
    is_left = t.c.completed_count + t.c.failed_count < t.c.total_count
    forget = {"lease_owner": None, "lease_expire_time": None, "not_before_time": None, "runtime_json": None}
    lost = sa.case((is_left, why), else_=sa.null())
    return await set_held(tx, id, token, compute_lost=lost, phase="", in_flight=0, **forget)


async def count_waiting(tx: Tx) -> int:
    """How many batches a runner could work on that none has leased."""
    there = (t.c.state.in_(LEASABLE), free(tx.now), has_compute(tx.now))
    waiting = sa.select(sa.func.count()).select_from(t).where(*there)
    return int(await tx.scalar(waiting))


async def count_held(tx: Tx) -> int:
    """How many leases are held now."""
    held = sa.select(sa.func.count()).select_from(t).where(t.c.state.in_(LIVE), t.c.lease_expire_time > tx.now)
    return int(await tx.scalar(held))


async def ended(tx: Tx, ids: Sequence[str]) -> list[str]:
    """Those of these batches that have ended."""
    found = sa.select(t.c.id).where(t.c.id.in_(ids), t.c.state.not_in(LIVE))
    return [row.id for row in await tx.rows(found)]
