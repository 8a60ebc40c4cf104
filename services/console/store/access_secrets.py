"""Secrets in SQL; values only encrypted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from services.console.access import Secret
from services.console.store.pages import behind
from services.console.store.tables_access import secrets as t
from services.kit.transactions import Row, Tx

COLUMNS = [t.c[name] for name in Secret.__dataclass_fields__]
LIVE = t.c.delete_time.is_(None)


def as_secret(row: Row) -> Secret:
    return Secret(**row)


async def claim_name(tx: Tx, project_id: str, name: str, id: str) -> str:
    """Make room for a value under this name; the id of its row: `id`, unless there is one. The value is put there next."""
    fresh: dict[str, Any] = {"id": id, "project_id": project_id, "name": name, "key_version": ""}
    fresh |= {"create_time": tx.now, "update_time": tx.now}
    mine = sa.select(t.c.id).where(t.c.project_id == project_id, t.c.name == name, LIVE)
    while not await tx.run(tx.insert(t).values(fresh).on_conflict_do_nothing()):
        # Unless it was deleted between the two statements.
        if found := await tx.scalar(mine.with_for_update()):
            return str(found)
    return id


async def put_value(tx: Tx, id: str, ciphertext: bytes, version: str) -> Secret:
    """Replace the value of a row that is there."""
    values = {"ciphertext": ciphertext, "key_version": version, "update_time": tx.now}
    row = await tx.find(t.update().where(t.c.id == id, LIVE).values(values).returning(*COLUMNS))
    assert row is not None
    return as_secret(row)


async def find_value(tx: Tx, project_id: str, name: str) -> Row | None:
    """`id`, `ciphertext` and `key_version`."""
    columns = (t.c.id, t.c.ciphertext, t.c.key_version)
    return await tx.find(sa.select(*columns).where(t.c.project_id == project_id, t.c.name == name, LIVE))


def page(project_id: str, mark: Row | None, limit: int) -> sa.Select[Any]:
    return behind(sa.select(*COLUMNS).where(t.c.project_id == project_id, LIVE), t, mark).limit(limit)


async def list_page(tx: Tx, project_id: str, mark: Row | None, limit: int) -> Sequence[Secret]:
    """Newest first, behind the place that `mark` is."""
    return [as_secret(row) for row in await tx.rows(page(project_id, mark, limit))]


async def find_mark(tx: Tx, project_id: str, id: str) -> Row | None:
    """The place of a secret in lists, also of one that was deleted since."""
    return await tx.find(sa.select(t.c.create_time, t.c.id).where(t.c.id == id, t.c.project_id == project_id))


async def bury(tx: Tx, project_id: str, id: str) -> bool:
    """Delete a secret, its value for good; its row stays as a place for cursors. Whether it was there."""
    mine = (t.c.id == id, t.c.project_id == project_id, LIVE)
    return await tx.run(t.update().where(*mine).values(delete_time=tx.now, ciphertext=None)) == 1
