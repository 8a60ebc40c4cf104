"""What there is to run, counted in SQL: one look at the live batches, by the index of states."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import sqlalchemy as sa

from services.kit.sql import MICROSECOND
from services.kit.transactions import Tx
from services.metadata.scaling import OWN_RUNNER, Backlog, Wishes
from services.metadata.store.leases import LEASABLE, closing, free, has_compute
from services.metadata.store.tables import batches as t

# A batch whose time left is less than so many times what it needs can wait no longer.
LEAST_MARGIN = 2.0


def held(now: datetime) -> sa.ColumnElement[bool]:
    """A runner has it that is not its own."""
    return sa.and_(t.c.lease_expire_time > now, t.c.target.not_in(OWN_RUNNER))


def mine(now: datetime, wishes: Wishes) -> list[sa.ColumnElement[bool]]:
    """Batches of these targets that a runner could lease, if nobody had them and they did not rest."""
    which = [t.c.state.in_(LEASABLE), t.c.index_key.is_not(None), has_compute(now)]
    return [*which, t.c.target.in_(wishes.targets)] if wishes.targets else which


def seconds(since: Any, until: Any) -> sa.ColumnElement[float]:
    """Between two times, of which one may be a column."""
    start, end = (sa.type_coerce(sa.type_coerce(time, t.c.expire_time.type), sa.BigInteger) for time in (since, until))
    return sa.cast(end - start, sa.Double) * MICROSECOND.total_seconds()


def needed(now: datetime, wishes: Wishes) -> sa.ColumnElement[float]:
    """Seconds that a batch needs: to be started, and for its lines at the rate that it had since it may run, or should have.

    While it waited it had none: that makes it more urgent, not less.
    """
    done = sa.cast(t.c.completed_count + t.c.failed_count, sa.Double)
    left = t.c.total_count - t.c.completed_count - t.c.failed_count
    seconds_per_line = sa.case(
        (done > 0, seconds(t.c.in_progress_time, now) / done), else_=sa.literal(1 / wishes.lines_per_second, sa.Double)
    )
    return sa.literal(wishes.startup_seconds, sa.Double) + left * seconds_per_line


async def measure(tx: Tx, wishes: Wishes) -> Backlog:
    """What there is now for runners of these wishes. Batches that rest do not count, nor those that wait for compute."""
    now = tx.now
    runs, need, left = held(now), needed(now, wishes), seconds(now, t.c.expire_time)
    urgent = sa.or_(closing(now), need * LEAST_MARGIN >= left)
    weight = sa.literal(wishes.relaxed_weight, sa.Double)
    # Whoever divides by the time left has some.
    share = sa.case((need >= left, 1.0), (need <= left * weight, weight), else_=need / left)
    counted = sa.select(
        sa.func.coalesce(sa.func.sum(sa.case((runs, 1), else_=0)), 0).label("held_count"),
        sa.func.coalesce(sa.func.sum(sa.case((runs, 0), (urgent, 1), else_=0)), 0).label("urgent_count"),
        sa.func.coalesce(sa.func.sum(sa.case((sa.or_(runs, sa.not_(urgent)), share), else_=0.0)), 0.0).label("share"),
    )
    row = await tx.find(counted.where(*mine(now, wishes), sa.or_(runs, free(now))))
    assert row is not None
    return Backlog(held_count=int(row["held_count"]), urgent_count=int(row["urgent_count"]), share=float(row["share"]))


async def is_any(tx: Tx, wishes: Wishes) -> bool:
    """Whether there is anything for runners of these wishes, now or after a rest: a look that stops at the first."""
    theirs = sa.and_(t.c.lease_expire_time > tx.now, t.c.target.in_(OWN_RUNNER))
    any_of = sa.select(t.c.id).where(*mine(tx.now, wishes), sa.not_(sa.func.coalesce(theirs, sa.false())))
    return await tx.scalar(any_of.limit(1)) is not None
