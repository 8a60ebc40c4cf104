"""Batches in SQL, as their users see them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import sqlalchemy as sa

from services.kit.transactions import Row, Tx
from services.metadata.domain import Batch, BatchError, Usage, Work
from services.metadata.states import LIFECYCLE, LIVE, BatchEvent, BatchState
from services.metadata.store.tables import USAGE
from services.metadata.store.tables import batches as t

PLAIN = [name for name in Batch.__dataclass_fields__ if name not in ("errors", "usage")]
COLUMNS = [*(t.c[name] for name in (*PLAIN, *USAGE)), t.c.errors]
WORK = [name for name in Work.__dataclass_fields__ if name != "batch"]
WORK_COLUMNS = [*COLUMNS, *(t.c[name] for name in WORK)]


def as_batch(row: Row) -> Batch:
    return Batch(
        **{name: row[name] for name in PLAIN},
        errors=[BatchError(**error) for error in row["errors"] or ()],
        usage=Usage(**{name: row[name] for name in USAGE}),
    )


def as_work(row: Row) -> Work:
    return Work(batch=as_batch(row), **{name: row[name] for name in WORK})


def row_of(batch: Batch, *, target: str, priority: int, resolved_json: str | None) -> dict[str, Any]:
    """What `insert_all` writes of a new batch."""
    plain = {name: getattr(batch, name) for name in PLAIN}
    return plain | {"target": target, "priority": priority, "resolved_json": resolved_json}


async def insert_all(tx: Tx, rows: Sequence[dict[str, Any]]) -> None:
    """Record batches."""
    if rows:
        await tx.connection.execute(t.insert(), rows)


def one(project_id: str, id: str) -> sa.Select[Any]:
    """The batch of this project."""
    return sa.select(*COLUMNS).where(t.c.id == id, t.c.project_id == project_id)


async def find(tx: Tx, project_id: str, id: str) -> Batch | None:
    """As `one`, in a transaction."""
    row = await tx.find(one(project_id, id))
    return as_batch(row) if row else None


async def find_locked(tx: Tx, project_id: str, id: str) -> Batch | None:
    """As `find`; nobody changes it until this transaction ends."""
    row = await tx.find(one(project_id, id).with_for_update())
    return as_batch(row) if row else None


async def page(tx: Tx, project_id: str, after: str | None, limit: int) -> Sequence[Batch]:
    """Batches, newest first, behind the one that `after` names; nothing if that one is unknown."""
    statement = sa.select(*COLUMNS).where(t.c.project_id == project_id)
    if after is not None:
        cursor = await tx.find(sa.select(t.c.create_time).where(t.c.id == after, t.c.project_id == project_id))
        if cursor is None:
            return []
        mark = sa.tuple_(sa.literal(cursor["create_time"], t.c.create_time.type), sa.literal(after))
        statement = statement.where(sa.tuple_(t.c.create_time, t.c.id) < mark)
    ordered = statement.order_by(t.c.create_time.desc(), t.c.id.desc()).limit(limit)
    return [as_batch(row) for row in await tx.rows(ordered)]


async def move(tx: Tx, event: BatchEvent, *which: sa.ColumnElement[bool], **values: Any) -> list[Batch]:
    """Move batches that are in a state which `event` leaves: the one statement that writes their state.

    The time of entry goes with it; the end of a batch ends its lease.
    """
    change = LIFECYCLE.moves[event]
    values["state"] = change.target
    values[f"{change.target.lower()}_time"] = tx.now
    if change.target not in LIVE:
        values = {"cleanup_pending": True} | values | {"lease_owner": None, "lease_expire_time": None, "phase": ""}
    statement = t.update().where(t.c.state.in_(change.sources), *which).values(values)
    return [as_batch(row) for row in await tx.rows(statement.returning(*COLUMNS))]


async def cancel(tx: Tx, project_id: str, id: str) -> Batch | None:
    """Start to cancel a batch, and let it be leased at once; None if its state does not allow it."""
    moved = await move(tx, BatchEvent.CANCEL, t.c.id == id, t.c.project_id == project_id, not_before_time=None)
    return moved[0] if moved else None


async def replace_compute(tx: Tx, id: str, values: Mapping[str, Any]) -> Batch | None:
    """Write where a batch runs from now on, and shut out whoever runs it elsewhere; None if its state does not allow it."""
    runs = t.c.state == BatchState.IN_PROGRESS
    forget = {
        "compute_lost": None,
        "runtime_json": None,
        "not_before_time": None,
        # Who only validates it reads no block.
        "lease_token": t.c.lease_token + sa.case((runs, 1), else_=0),
        "lease_owner": sa.case((runs, sa.null()), else_=t.c.lease_owner),
        "lease_expire_time": sa.case((runs, sa.null()), else_=t.c.lease_expire_time),
    }
    live = t.c.state.in_([BatchState.VALIDATING, BatchState.IN_PROGRESS])
    row = await tx.find(t.update().where(t.c.id == id, live).values({**values, **forget}).returning(*COLUMNS))
    return as_batch(row) if row else None


async def confirm_unvalidated_cancels(tx: Tx) -> list[Batch]:
    """End cancelled batches that were never validated: they have no lines to write."""
    return await move(tx, BatchEvent.CONFIRM_CANCEL, t.c.index_key.is_(None))


async def expire_unvalidated(tx: Tx) -> list[Batch]:
    """Expire batches that were not validated by their deadline."""
    return await move(tx, BatchEvent.EXPIRE, t.c.state == BatchState.VALIDATING, t.c.expire_time <= tx.now)


async def has_unclosed(tx: Tx) -> bool:
    """Whether `confirm_unvalidated_cancels` or `expire_unvalidated` has something to do."""
    cancelled = sa.and_(t.c.state == BatchState.CANCELLING, t.c.index_key.is_(None))
    late = sa.and_(t.c.state == BatchState.VALIDATING, t.c.expire_time <= tx.now)
    return await tx.scalar(sa.select(t.c.id).where(sa.or_(cancelled, late)).limit(1)) is not None


async def start(tx: Tx, id: str, token: int, **found: Any) -> Batch | None:
    """End the validation of a batch well, if its validator still holds it."""
    held = sa.and_(t.c.id == id, t.c.lease_token == token)
    moved = await move(tx, BatchEvent.START, held, lease_owner=None, lease_expire_time=None, **found)
    return moved[0] if moved else None


async def fail_validation(
    tx: Tx, id: str, token: int, errors: Sequence[BatchError], *, has_objects: bool
) -> Batch | None:
    """End the validation of a batch badly, if its validator still holds it. `has_objects`: there is something to clean up."""
    held = sa.and_(t.c.id == id, t.c.lease_token == token, t.c.state == BatchState.VALIDATING)
    said = [asdict(error) for error in errors]
    moved = await move(tx, BatchEvent.FAIL, held, errors=said, cleanup_pending=has_objects)
    return moved[0] if moved else None


async def count_live(tx: Tx) -> dict[BatchState, int]:
    """How many batches there are in each live state."""
    counted = sa.select(t.c.state, sa.func.count().label("n")).where(t.c.state.in_(LIVE)).group_by(t.c.state)
    found = {row["state"]: row["n"] for row in await tx.rows(counted)}
    return {state: found.get(state, 0) for state in LIVE}


async def list_uncleaned(tx: Tx, limit: int) -> Sequence[str]:
    """Ids of ended batches whose work objects may still be there."""
    return [row["id"] for row in await tx.rows(sa.select(t.c.id).where(t.c.cleanup_pending).limit(limit))]


async def set_cleaned(tx: Tx, id: str) -> None:
    """Remember that the work objects of an ended batch are gone."""
    await tx.run(t.update().where(t.c.id == id).values(cleanup_pending=False, index_key=None))


async def list_live_ids(tx: Tx, ids: Sequence[str]) -> set[str]:
    """Which of these batches are not at their end."""
    return {row["id"] for row in await tx.rows(sa.select(t.c.id).where(t.c.id.in_(ids), t.c.state.in_(LIVE)))}
