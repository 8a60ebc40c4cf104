"""What changes a job. Every state is written by `move`, and by nothing else."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from services.kit.sql import UtcTime
from services.kit.transactions import Tx
from services.planner.states import LIFECYCLE, LIVE, JobEvent, JobState
from services.planner.store import events
from services.planner.store.events import Line, Timelines
from services.planner.store.jobs import UPDATE_HELD, Held, as_held
from services.planner.store.tables import jobs as t


def held_by(held: Held) -> tuple[sa.ColumnElement[bool], ...]:
    """Conditions under which the job is still ours, and still in the state that we know."""
    token = (t.c.lease_token == held.lease_token, t.c.lease_owner.is_not(None))
    return (t.c.id == held.job.id, *token, t.c.status == held.job.status)


async def move(
    tx: Tx, said: Timelines, event: JobEvent, line: Line, *which: sa.ColumnElement[bool], **values: Any
) -> list[Held]:
    """Move jobs that are in a state which `event` leaves: the one statement that writes their status.

    The time of entry goes with it, and a line of the timeline. Unless `values` say otherwise, it is due at once. The end
    of a job ends its lease; it stays due as long as compute may have to be given back.
    """
    change = LIFECYCLE.moves[event]
    written: dict[str, Any] = {
        "status": change.target,
        f"{change.target.lower()}_time": tx.now,
        "revision": t.c.revision + 1,
        "due_time": tx.now,
    }
    written |= values
    if change.target not in LIVE:
        written |= {"lease_owner": None, "lease_expire_time": None}
        written["due_time"] = sa.case((t.c.attempt > 0, sa.literal(tx.now, UtcTime())), else_=sa.null())
    statement = UPDATE_HELD.where(t.c.status.in_(change.sources), *which).values(written)
    moved = [as_held(row, tx.now) for row in await tx.rows(statement)]
    for held in moved:
        said.add(held.job, line)
    return moved


async def note(tx: Tx, said: Timelines, held: Held, lines: tuple[Line, ...], **values: Any) -> Held | None:
    """Write columns of a job other than its status, and lines of its timeline; None if it is no longer ours or has moved.

    With nothing to say but when it is due again, its revision stays.
    """
    changes = bool(lines) or any(name not in ("due_time", "lease_owner", "lease_expire_time") for name in values)
    written = dict(values) | ({"revision": t.c.revision + 1} if changes else {})
    row = await tx.find(UPDATE_HELD.where(*held_by(held)).values(written))
    if row is None:
        return None
    noted = as_held(row, tx.now)
    for line in lines:
        said.add(noted.job, line)
    return noted


async def cancel(tx: Tx, project_id: str, id: str) -> Held | None:
    """Start to cancel a job; None if its state does not allow it.

    Who only reads the input of a queued job is shut out, so that nobody waits for the end of a large file. Elsewhere the
    holder soon finds out, and what it has asked for is known to the next one.
    """
    is_queued = t.c.status == JobState.QUEUED
    values = {
        "cancel_requested_time": tx.now,
        "lease_token": t.c.lease_token + sa.case((is_queued, 1), else_=0),
        "lease_owner": sa.case((is_queued, sa.null()), else_=t.c.lease_owner),
        "lease_expire_time": sa.case((is_queued, sa.null()), else_=t.c.lease_expire_time),
    }
    line = Line("Cancel requested", source="console")
    async with events.telling(tx) as said:
        moved = await move(tx, said, JobEvent.CANCEL, line, t.c.id == id, t.c.project_id == project_id, **values)
    return moved[0] if moved else None
