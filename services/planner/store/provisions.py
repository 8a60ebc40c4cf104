"""Provisions in SQL: as their users see them, and as columns that their holder and those who wait agree by."""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from pydantic import TypeAdapter

from services.kit.transactions import Row, Tx
from services.planner.domain import Machine, Offer, Provision, ProvisionSpec
from services.planner.resource_manager.choice import Search, Work
from services.planner.states import LIVE_PROVISIONS, PROVISION_LIFECYCLE, ProvisionEvent, ProvisionState
from services.planner.store.tables import installation
from services.planner.store.tables import provisions as t

PLAIN = [name for name in Provision.__dataclass_fields__ if name not in ("machines", "cost_usd")]
COLUMNS = [*(t.c[name] for name in PLAIN), t.c.machines, t.c.past_cost_usd, t.c.billed_from_time]
WORK_COLUMNS = [*COLUMNS, t.c.spec_json, t.c.tried, t.c.lease_token, t.c.provisioning_time]
# Built once: to name that many columns anew takes longer than all else about a statement.
SELECT = sa.select(*COLUMNS)
UPDATE = t.update().returning(*WORK_COLUMNS)
HOUR = timedelta(hours=1)
# First half of PostgreSQL's advisory locks that guard a capacity; the second says which.
CAPACITY_LOCK = 0x6272_7870

_specs = TypeAdapter(ProvisionSpec)
_searches = TypeAdapter(Search)


def spec_json(spec: ProvisionSpec) -> str:
    """The same text for the same spec."""
    return json.dumps(asdict(spec), sort_keys=True, separators=(",", ":"))


def search_json(search: Search) -> Any:
    return _searches.dump_python(search, mode="json")


def as_provision(row: Row, now: datetime) -> Provision:
    """`now`: until when it has cost, if it still costs."""
    since = row["billed_from_time"]
    running = row["hourly_price_usd"] * row["replicas"] * ((now - since) / HOUR) if since is not None else 0.0
    return Provision(
        **{name: row[name] for name in PLAIN},
        cost_usd=row["past_cost_usd"] + max(0.0, running),
        machines=[Machine(**machine) for machine in row["machines"]],
    )


def as_work(row: Row, now: datetime) -> Work:
    return Work(
        provision=as_provision(row, now),
        spec=_specs.validate_json(row["spec_json"]),
        search=_searches.validate_python(row["tried"]),
        token=row["lease_token"],
        provisioning_time=row["provisioning_time"],
        now=now,
    )


async def insert(tx: Tx, provision: Provision, spec: ProvisionSpec) -> bool:
    """Record the intent; False if its key is used already."""
    values = {name: getattr(provision, name) for name in PLAIN} | {
        "machines": [],
        "spec_json": spec_json(spec),
        "tried": search_json(Search()),
        "pending_time": tx.now,
        "due_time": tx.now,
    }
    new = tx.insert(t).on_conflict_do_nothing(index_elements=[t.c.idempotency_key])
    return await tx.run(new, values) == 1


async def find(tx: Tx, id: str) -> Provision | None:
    row = await tx.find(SELECT.where(t.c.id == id))
    return as_provision(row, tx.now) if row else None


async def find_by_key(tx: Tx, key: str) -> tuple[Provision, str] | None:
    """The provision of this key, and the spec that it was asked for with."""
    row = await tx.find(SELECT.add_columns(t.c.spec_json).where(t.c.idempotency_key == key))
    return (as_provision(row, tx.now), row["spec_json"]) if row else None


async def find_all(tx: Tx, ids: Sequence[str]) -> dict[str, Provision]:
    rows = await tx.rows(SELECT.where(t.c.id.in_(ids)))
    return {row["id"]: as_provision(row, tx.now) for row in rows}


async def page(tx: Tx, after: str | None, limit: int, *, live: bool) -> list[Provision]:
    """Provisions, newest first, behind the one that `after` names; nothing if that one is unknown."""
    statement = SELECT
    if live:
        statement = statement.where(t.c.status.in_(LIVE_PROVISIONS))
    if after is not None:
        cursor = await tx.find(sa.select(t.c.create_time).where(t.c.id == after))
        if cursor is None:
            return []
        mark = sa.tuple_(sa.literal(cursor["create_time"], t.c.create_time.type), sa.literal(after))
        statement = statement.where(sa.tuple_(t.c.create_time, t.c.id) < mark)
    ordered = statement.order_by(t.c.create_time.desc(), t.c.id.desc()).limit(limit)
    return [as_provision(row, tx.now) for row in await tx.rows(ordered)]


async def list_unreleased(tx: Tx) -> list[str]:
    """Ids of provisions that nobody has begun to give back."""
    states = (ProvisionState.PENDING, ProvisionState.PROVISIONING, ProvisionState.RUNNING)
    return [row["id"] for row in await tx.rows(sa.select(t.c.id).where(t.c.status.in_(states)))]


async def move(tx: Tx, event: ProvisionEvent, *which: sa.ColumnElement[bool], **values: Any) -> Row | None:
    """Move the one provision that is in a state which `event` leaves: the one statement that writes its state."""
    change = PROVISION_LIFECYCLE.moves[event]
    written = values | {
        "status": change.target,
        f"{change.target.lower()}_time": tx.now,
        "revision": t.c.revision + 1,
    }
    return await tx.find(UPDATE.where(t.c.status.in_(change.sources), *which).values(written))


def due(now: datetime) -> sa.ColumnElement[bool]:
    """Somebody should act on it, and nobody does."""
    free = sa.or_(t.c.lease_owner.is_(None), t.c.lease_expire_time <= now)
    return sa.and_(t.c.status.in_(LIVE_PROVISIONS), t.c.due_time <= now, free)


def due_in(tx: Tx, seconds: float, expected: ProvisionState) -> sa.ColumnElement[datetime]:
    """In so many seconds, if the provision has the expected status by then; else at once."""
    later, now = (sa.literal(time, t.c.due_time.type) for time in (tx.now + timedelta(seconds=seconds), tx.now))
    return sa.case((t.c.status == expected, later), else_=now)


async def is_due(tx: Tx) -> bool:
    """Whether there is something to lease: a look that takes no lock."""
    return await tx.scalar(sa.select(t.c.id).where(due(tx.now)).limit(1)) is not None


async def lease_due(tx: Tx, owner: str, ttl: timedelta, limit: int) -> list[Work]:
    """Give what is due to `owner`, each under its next token; rivals pass over it."""
    waiting = sa.select(t.c.id).where(due(tx.now)).order_by(t.c.due_time).limit(limit)
    ids = [row["id"] for row in await tx.rows(waiting.with_for_update(skip_locked=True))]
    if not ids:
        return []
    lease = {"lease_token": t.c.lease_token + 1, "lease_owner": owner, "lease_expire_time": tx.now + ttl}
    rows = await tx.rows(UPDATE.where(t.c.id.in_(ids)).values(lease))
    return [as_work(row, tx.now) for row in rows]


def held(id: str, token: int) -> sa.ColumnElement[bool]:
    return sa.and_(t.c.id == id, t.c.lease_token == token, t.c.lease_owner.is_not(None))


async def set_held(tx: Tx, id: str, token: int, *which: sa.ColumnElement[bool], **values: Any) -> Row | None:
    """Write columns of a provision for its current holder; None if the token is not current."""
    return await tx.find(UPDATE.where(held(id, token), *which).values(values))


async def lock_capacity(tx: Tx, offer: Offer) -> None:
    """Nobody else takes of this offer until this transaction ends. SQLite has one writer anyway."""
    if tx.connection.dialect.name == "postgresql":
        which = zlib.crc32(f"{offer.provider}\0{offer.region}\0{offer.instance_type}".encode()) - 2**31
        await tx.scalar(sa.select(sa.func.pg_advisory_xact_lock(CAPACITY_LOCK, which)))


async def taken(tx: Tx, offer: Offer, *, besides: str = "") -> int:
    """How many units of an offer the provisions that are not RELEASED take, `besides` one of them."""
    units = sa.case((t.c.gpus_per_replica > 0, t.c.gpus_per_replica), else_=1) * t.c.replicas
    same = (t.c.provider == offer.provider, t.c.region == offer.region, t.c.instance_type == offer.instance_type)
    statement = sa.select(sa.func.sum(units)).where(t.c.status.in_(LIVE_PROVISIONS), *same, t.c.id != besides)
    return int(await tx.scalar(statement) or 0)


async def installation_id(tx: Tx, new: str) -> str:
    """What the ids of this installation's provisions begin with; `new` if it has nothing yet."""
    await tx.run(tx.insert(installation).values(number=1, id=new).on_conflict_do_nothing())
    return str(await tx.scalar(sa.select(installation.c.id)))
