"""Files in SQL."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import sqlalchemy as sa

from services.kit.transactions import Row, Tx
from services.metadata.domain import File
from services.metadata.states import LIVE
from services.metadata.store.tables import batches
from services.metadata.store.tables import files as t

COLUMNS = [t.c[name] for name in File.__dataclass_fields__]
# A live batch reads the file.
IN_USE = sa.exists().where(batches.c.input_file_id == t.c.id, batches.c.state.in_(LIVE))


def as_file(row: Row) -> File:
    return File(**row)


def there(now: datetime) -> sa.ColumnElement[bool]:
    return sa.and_(t.c.delete_time.is_(None), sa.or_(t.c.expire_time.is_(None), t.c.expire_time > now))


async def insert(tx: Tx, file: File) -> None:
    """Record a file."""
    await tx.run(t.insert().values({name: getattr(file, name) for name in File.__dataclass_fields__}))


async def insert_new(tx: Tx, file: File) -> bool:
    """Record a file unless its object is recorded already; whether it was."""
    values = {name: getattr(file, name) for name in File.__dataclass_fields__}
    return await tx.run(tx.insert(t).values(values).on_conflict_do_nothing(index_elements=["object_key"])) == 1


async def find(tx: Tx, project_id: str, id: str) -> File | None:
    """The file, if it is there for this project."""
    row = await tx.find(sa.select(*COLUMNS).where(t.c.id == id, t.c.project_id == project_id, there(tx.now)))
    return as_file(row) if row else None


async def find_any(tx: Tx, id: str) -> File | None:
    """The file, even if it was deleted since."""
    row = await tx.find(sa.select(*COLUMNS).where(t.c.id == id))
    return as_file(row) if row else None


async def find_by_object_key(tx: Tx, project_id: str, object_key: str) -> File | None:
    """The file that an object was recorded as."""
    row = await tx.find(sa.select(*COLUMNS).where(t.c.object_key == object_key, t.c.project_id == project_id))
    return as_file(row) if row else None


async def page(
    tx: Tx, project_id: str, purpose: str | None, after: str | None, ascending: bool, limit: int
) -> Sequence[File]:
    """Files in order of (create_time, id), behind the one that `after` names; nothing if that one is unknown."""
    statement = sa.select(*COLUMNS).where(t.c.project_id == project_id, there(tx.now))
    if purpose is not None:
        statement = statement.where(t.c.purpose == purpose)
    place = sa.tuple_(t.c.create_time, t.c.id)
    if after is not None:
        cursor = await tx.find(sa.select(t.c.create_time).where(t.c.id == after, t.c.project_id == project_id))
        if cursor is None:
            return []
        mark = sa.tuple_(sa.literal(cursor["create_time"], t.c.create_time.type), sa.literal(after))
        statement = statement.where(place > mark if ascending else place < mark)
    columns = (t.c.create_time, t.c.id)
    order = columns if ascending else [column.desc() for column in columns]
    return [as_file(row) for row in await tx.rows(statement.order_by(*order).limit(limit))]


async def lock(tx: Tx, project_id: str, id: str) -> File | None:
    """The file if it is there; nobody deletes it until this transaction ends."""
    mine = sa.select(*COLUMNS).where(t.c.id == id, t.c.project_id == project_id, t.c.delete_time.is_(None))
    row = await tx.find(mine.with_for_update())
    return as_file(row) if row else None


async def is_in_use(tx: Tx, id: str) -> bool:
    """Whether a live batch reads the file."""
    mine = sa.select(batches.c.id).where(batches.c.input_file_id == id, batches.c.state.in_(LIVE))
    return await tx.scalar(mine.limit(1)) is not None


async def bury(tx: Tx, id: str) -> None:
    """Mark the file as deleted; its row stays as a place for cursors."""
    await tx.run(t.update().where(t.c.id == id, t.c.delete_time.is_(None)).values(delete_time=tx.now))


async def set_object_deleted(tx: Tx, ids: Sequence[str]) -> None:
    """Remember that the objects of these deleted files are gone."""
    await tx.run(t.update().where(t.c.id.in_(ids), t.c.delete_time.is_not(None)).values(object_deleted=True))


async def list_expired(tx: Tx, limit: int) -> Sequence[File]:
    """Files past their time that no live batch reads."""
    mine = sa.select(*COLUMNS).where(t.c.expire_time <= tx.now, t.c.delete_time.is_(None), ~IN_USE)
    return [as_file(row) for row in await tx.rows(mine.order_by(t.c.expire_time).limit(limit))]


async def list_undeleted_objects(tx: Tx, limit: int) -> Sequence[File]:
    """Deleted files whose object may still be there."""
    mine = sa.select(*COLUMNS).where(t.c.object_deleted.is_(False), t.c.delete_time.is_not(None))
    return [as_file(row) for row in await tx.rows(mine.order_by(t.c.delete_time).limit(limit))]
