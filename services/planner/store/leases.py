"""Who acts on a job: columns of its row, taken by `SKIP LOCKED`, fenced by a token that grows with every holder."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta

import sqlalchemy as sa

from services.kit.transactions import Tx
from services.planner.states import LIVE, TERMINAL, JobState, ProvisionState
from services.planner.store.jobs import UPDATE_HELD, Held, as_held
from services.planner.store.tables import jobs as t
from services.planner.store.tables import provisions

# A provision in one of these will not become what a job waits for.
DECIDED = (ProvisionState.RUNNING, ProvisionState.FAILED, ProvisionState.RELEASING, ProvisionState.RELEASED)


def due(now: datetime) -> tuple[sa.ColumnElement[bool], ...]:
    """Somebody should act, and nobody does. Ended jobs whose compute is gone are never due, so they cost nothing."""
    free = sa.or_(t.c.lease_owner.is_(None), t.c.lease_expire_time <= now)
    return (t.c.status.in_(list(JobState)), t.c.due_time <= now, free)


def look_for_work(now: datetime) -> sa.Select[bool, bool]:
    """Whether a job is due, and whether one waits for the policy."""
    waits = sa.exists().where(t.c.status == JobState.QUEUED, t.c.validated, t.c.due_time > now)
    return sa.select(sa.exists().where(*due(now)).label("due"), waits.label("waiting"))


async def look(tx: Tx) -> tuple[bool, bool]:
    """As `look_for_work`; it takes no lock."""
    row = await tx.find(look_for_work(tx.now))
    assert row is not None
    return bool(row["due"]), bool(row["waiting"])


async def take(tx: Tx, owner: str, ttl: timedelta, most: int) -> Sequence[Held]:
    """Give the jobs that are due longest to `owner`, each under its next token; rivals pass over them."""
    longest = sa.select(t.c.id).where(*due(tx.now)).order_by(t.c.due_time).limit(most)
    ids = [row["id"] for row in await tx.rows(longest.with_for_update(skip_locked=True))]
    if not ids:
        return []
    values = {"lease_token": t.c.lease_token + 1, "lease_owner": owner, "lease_expire_time": tx.now + ttl}
    taken = UPDATE_HELD.where(t.c.id.in_(ids)).values(values)
    return [as_held(row, tx.now) for row in await tx.rows(taken)]


async def renew(tx: Tx, owner: str, ids: Iterable[str], ttl: timedelta) -> int:
    """Extend the leases of those jobs that `owner` still holds; how many."""
    mine = (t.c.id.in_(list(ids)), t.c.lease_owner == owner)
    return await tx.run(t.update().where(*mine).values(lease_expire_time=tx.now + ttl))


async def let_go(tx: Tx, held: Held) -> None:
    """End a lease, and leave everything else to whoever comes next."""
    token = (t.c.id == held.job.id, t.c.lease_token == held.lease_token)
    await tx.run(t.update().where(*token).values(lease_owner=None, lease_expire_time=None))


async def wake_waiting(tx: Tx) -> int:
    """Make those due that wait for compute which is ready now, or will never be, or whose release is confirmed; how many."""
    changed = 0
    for states, reached in (((JobState.RESOURCE_PREPARING,), DECIDED), (tuple(TERMINAL), (ProvisionState.RELEASED,))):
        # Correlated: SQLite would list all provisions that ever were for an IN.
        there = sa.exists().where(provisions.c.id == t.c.provision_id, provisions.c.status.in_(reached))
        waiting = sa.select(t.c.id).where(
            t.c.status.in_(states), t.c.due_time > tx.now, there, t.c.lease_owner.is_(None)
        )
        changed += await _wake(tx, waiting)
    return changed


async def wake_resting(tx: Tx) -> int:
    """Show those to the policy again that found no compute, if some was given back since they looked; how many."""
    given_back = sa.select(provisions.c.released_time).where(
        provisions.c.status == ProvisionState.RELEASED, provisions.c.error_code.is_(None)
    )
    latest = given_back.order_by(provisions.c.released_time.desc()).limit(1).scalar_subquery()
    rests = (t.c.status == JobState.QUEUED, t.c.rest_until_time.is_not(None), t.c.planned_time < latest)
    resting = sa.select(t.c.id).where(*rests).order_by(t.c.id).with_for_update(skip_locked=True)
    ids = [row["id"] for row in await tx.rows(resting)]
    if not ids:
        return 0
    # One with a batch is looked at now and then all the same.
    due_time = sa.case((t.c.batch_id.is_(None), t.c.expires_time), else_=t.c.due_time)
    return await tx.run(t.update().where(t.c.id.in_(ids)).values(rest_until_time=None, due_time=due_time))


async def let_go_all(tx: Tx, owner: str, ids: Iterable[str]) -> int:
    """End the leases of those jobs that `owner` still holds; how many."""
    mine = (t.c.id.in_(list(ids)), t.c.lease_owner == owner)
    return await tx.run(t.update().where(*mine).values(lease_owner=None, lease_expire_time=None))


async def wake_sharing(tx: Tx, provision_id: str) -> int:
    """Make the live jobs on a provision due: the one before them has ended."""
    return await _wake(
        tx, sa.select(t.c.id).where(t.c.provision_id == provision_id, t.c.status.in_(LIVE), t.c.due_time > tx.now)
    )


async def _wake(tx: Tx, which: sa.Select[str]) -> int:
    """Those that somebody writes just now are passed over: they say themselves when they are due."""
    ids = [row["id"] for row in await tx.rows(which.order_by(t.c.id).with_for_update(skip_locked=True))]
    return await tx.run(t.update().where(t.c.id.in_(ids)).values(due_time=tx.now)) if ids else 0
