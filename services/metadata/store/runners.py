"""Runners in SQL."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

import sqlalchemy as sa

from services.kit.transactions import Tx
from services.metadata.domain import RunnerInfo
from services.metadata.store.tables import runners as t

COLUMNS = [t.c[name] for name in RunnerInfo.__dataclass_fields__]


async def report(tx: Tx, runner: RunnerInfo, *, leaving: bool) -> None:
    """Remember what a runner says of itself, now."""
    said = {name: getattr(runner, name) for name in RunnerInfo.__dataclass_fields__ if name != "id"}
    said |= {"seen_time": tx.now, "leaving": leaving}
    statement = tx.insert(t).values(id=runner.id, create_time=tx.now, **said)
    await tx.run(statement.on_conflict_do_update(index_elements=["id"], set_=said))


async def list_live(tx: Tx, memory: timedelta) -> Sequence[RunnerInfo]:
    """Runners that reported lately and did not leave."""
    live = sa.select(*COLUMNS).where(t.c.seen_time > tx.now - memory, t.c.leaving.is_(False))
    return [RunnerInfo(**row) for row in await tx.rows(live.order_by(t.c.id))]


async def list_models(tx: Tx, memory: timedelta) -> dict[str, datetime]:
    """Models of the runners that reported lately, with the time that the first of these runners came."""
    live = sa.select(t.c.models, t.c.create_time).where(t.c.seen_time > tx.now - memory, t.c.leaving.is_(False))
    found: dict[str, datetime] = {}
    for row in await tx.rows(live.order_by(t.c.create_time)):
        for model in row["models"]:
            found.setdefault(model, row["create_time"])
    return found


async def list_targets(tx: Tx, memory: timedelta) -> set[str]:
    """Targets of the runners that reported lately, also of those that left."""
    rows = await tx.rows(sa.select(t.c.targets).where(t.c.seen_time > tx.now - memory))
    return {target for row in rows for target in row["targets"]}


async def others_targets(tx: Tx, id: str, memory: timedelta) -> set[str]:
    """Targets of all other runners that reported lately and did not leave."""
    others = sa.select(t.c.targets).where(t.c.id != id, t.c.seen_time > tx.now - memory, t.c.leaving.is_(False))
    return {target for row in await tx.rows(others) for target in row["targets"]}


async def forget_silent(tx: Tx, memory: timedelta) -> int:
    """Forget runners that have not reported for long."""
    return await tx.run(t.delete().where(t.c.seen_time <= tx.now - memory))
