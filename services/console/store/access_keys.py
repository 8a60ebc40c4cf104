"""API keys in SQL; of a key itself only its hash."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import sqlalchemy as sa

from services.console.access import ApiKey
from services.console.store.pages import behind
from services.console.store.tables_access import api_keys as t
from services.kit.transactions import Row, Tx

FIELDS = [name for name in ApiKey.__dataclass_fields__ if name != "key"]
COLUMNS = [t.c[name] for name in FIELDS]
LIVE = t.c.delete_time.is_(None)


def as_key(row: Row) -> ApiKey:
    return ApiKey(**row)


async def insert(tx: Tx, key: ApiKey, key_hash: str) -> None:
    """Record a key."""
    await tx.run(t.insert().values({name: getattr(key, name) for name in FIELDS} | {"key_hash": key_hash}))


async def find_by_hash(tx: Tx, key_hash: str) -> ApiKey | None:
    """The key that may be used now."""
    current = sa.or_(t.c.expires_time.is_(None), t.c.expires_time > tx.now)
    row = await tx.find(sa.select(*COLUMNS).where(t.c.key_hash == key_hash, LIVE, current))
    return as_key(row) if row else None


async def set_used(tx: Tx, id: str, at_most_every: timedelta) -> None:
    """Remember that the key was used, unless that was remembered a moment ago."""
    stale = sa.or_(t.c.last_used_time.is_(None), t.c.last_used_time <= tx.now - at_most_every)
    await tx.run(t.update().where(t.c.id == id, stale).values(last_used_time=tx.now))


def page(project_id: str, mark: Row | None, limit: int) -> sa.Select[Any]:
    return behind(sa.select(*COLUMNS).where(t.c.project_id == project_id, LIVE), t, mark).limit(limit)


async def list_page(tx: Tx, project_id: str, mark: Row | None, limit: int) -> Sequence[ApiKey]:
    """Newest first, behind the place that `mark` is."""
    return [as_key(row) for row in await tx.rows(page(project_id, mark, limit))]


async def find_mark(tx: Tx, project_id: str, id: str) -> Row | None:
    """The place of a key in lists, also of one that was revoked since."""
    return await tx.find(sa.select(t.c.create_time, t.c.id).where(t.c.id == id, t.c.project_id == project_id))


async def revoke(tx: Tx, project_id: str, id: str) -> bool:
    """From now on nobody comes in with it; its row stays as a place for cursors. Whether it was there."""
    return (
        await tx.run(t.update().where(t.c.id == id, t.c.project_id == project_id, LIVE).values(delete_time=tx.now)) == 1
    )
