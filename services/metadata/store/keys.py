"""Idempotency keys in SQL."""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa

from services.kit.transactions import Tx
from services.metadata.domain import KEY_LIFE
from services.metadata.store.tables import idempotency_keys as t


@dataclass(frozen=True)
class Claim:
    resource_id: str
    request_hash: str


async def claim(tx: Tx, project_id: str, kind: str, key: str, request_hash: str, resource_id: str) -> Claim:
    """Bind a key to what this call makes, unless an earlier call did; whose it is now."""
    mine = (t.c.project_id == project_id, t.c.key == key, t.c.kind == kind)
    await tx.run(t.delete().where(*mine, t.c.create_time <= tx.now - KEY_LIFE))
    values = {
        "project_id": project_id,
        "key": key,
        "kind": kind,
        "request_hash": request_hash,
        "resource_id": resource_id,
        "create_time": tx.now,
    }
    if await tx.run(tx.insert(t).values(values).on_conflict_do_nothing()):
        return Claim(resource_id, request_hash)
    row = await tx.find(sa.select(t.c.resource_id, t.c.request_hash).where(*mine))
    assert row is not None
    return Claim(row["resource_id"], row["request_hash"])


async def find(tx: Tx, project_id: str, kind: str, key: str) -> str | None:
    """What a key is bound to."""
    mine = (t.c.project_id == project_id, t.c.key == key, t.c.kind == kind)
    id: str | None = await tx.scalar(sa.select(t.c.resource_id).where(*mine, t.c.create_time > tx.now - KEY_LIFE))
    return id


async def forget_old(tx: Tx) -> int:
    """Forget keys whose time is over."""
    return await tx.run(t.delete().where(t.c.create_time <= tx.now - KEY_LIFE))
