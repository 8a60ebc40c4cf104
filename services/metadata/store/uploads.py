"""Uploads and their parts in SQL."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from services.kit.transactions import Row, Tx
from services.metadata.domain import Upload, UploadPart
from services.metadata.states import UPLOAD_LIFECYCLE, UploadEvent, UploadState
from services.metadata.store.tables import upload_parts as p
from services.metadata.store.tables import uploads as t

COLUMNS = [t.c[name] for name in Upload.__dataclass_fields__]
PART_COLUMNS = [p.c[name] for name in UploadPart.__dataclass_fields__]


def as_upload(row: Row) -> Upload:
    return Upload(**row)


def as_part(row: Row) -> UploadPart:
    return UploadPart(**row)


async def insert(tx: Tx, upload: Upload) -> None:
    """Record an upload."""
    await tx.run(t.insert().values({name: getattr(upload, name) for name in Upload.__dataclass_fields__}))


async def find(tx: Tx, project_id: str, id: str) -> Upload | None:
    """The upload of this project."""
    row = await tx.find(sa.select(*COLUMNS).where(t.c.id == id, t.c.project_id == project_id))
    return as_upload(row) if row else None


async def lock(tx: Tx, project_id: str, id: str) -> Upload | None:
    """The upload of this project; nobody changes it until this transaction ends."""
    mine = sa.select(*COLUMNS).where(t.c.id == id, t.c.project_id == project_id)
    row = await tx.find(mine.with_for_update())
    return as_upload(row) if row else None


async def move(tx: Tx, event: UploadEvent, *which: sa.ColumnElement[bool], **values: Any) -> list[Upload]:
    """Move uploads that are in a state which `event` leaves: the one statement that writes their state."""
    change = UPLOAD_LIFECYCLE.moves[event]
    statement = t.update().where(t.c.state.in_(change.sources), *which).values(state=change.target, **values)
    return [as_upload(row) for row in await tx.rows(statement.returning(*COLUMNS))]


async def expire_due(tx: Tx) -> list[Upload]:
    """Expire the uploads past their time."""
    return await move(tx, UploadEvent.EXPIRE, t.c.expire_time <= tx.now)


async def insert_part(tx: Tx, part: UploadPart) -> None:
    """Record a part."""
    await tx.run(p.insert().values({name: getattr(part, name) for name in UploadPart.__dataclass_fields__}))


async def find_part(tx: Tx, upload_id: str, object_key: str) -> UploadPart | None:
    """The part that an object was recorded as."""
    row = await tx.find(sa.select(*PART_COLUMNS).where(p.c.object_key == object_key, p.c.upload_id == upload_id))
    return as_part(row) if row else None


async def list_parts(tx: Tx, upload_id: str) -> list[UploadPart]:
    """All parts of an upload."""
    return [as_part(row) for row in await tx.rows(sa.select(*PART_COLUMNS).where(p.c.upload_id == upload_id))]


async def count_parts(tx: Tx, upload_id: str) -> int:
    """How many parts an upload has."""
    return int(await tx.scalar(sa.select(sa.func.count()).select_from(p).where(p.c.upload_id == upload_id)))


async def list_useless_parts(tx: Tx, limit: int) -> list[UploadPart]:
    """Parts of uploads that take no more part in anything."""
    ended = sa.select(*PART_COLUMNS).join(t, t.c.id == p.c.upload_id).where(t.c.state != UploadState.PENDING)
    return [as_part(row) for row in await tx.rows(ended.limit(limit))]


async def delete_parts(tx: Tx, ids: Sequence[str]) -> None:
    """Forget parts whose objects are gone."""
    await tx.run(p.delete().where(p.c.id.in_(ids)))
