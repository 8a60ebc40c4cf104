"""What idempotency keys of jobs stand for, in SQL."""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa

from services.console.domain import KEY_LIFE
from services.console.store.tables import job_requests as t
from services.kit.transactions import Tx


@dataclass(frozen=True)
class Claim:
    request_hash: str
    request: bytes


async def find(tx: Tx, project_id: str, key: str) -> Claim | None:
    """What the key was used for, as long as it is remembered."""
    mine = (t.c.project_id == project_id, t.c.key == key, t.c.create_time > tx.now - KEY_LIFE)
    row = await tx.find(sa.select(t.c.request_hash, t.c.request).where(*mine))
    return Claim(**row) if row else None


async def claim(tx: Tx, project_id: str, key: str, mine: Claim) -> Claim:
    """Bind a key to a request, unless an earlier call did; what it stands for now."""
    values = {
        "project_id": project_id,
        "key": key,
        "request_hash": mine.request_hash,
        "request": mine.request,
        "create_time": tx.now,
    }
    if await tx.run(tx.insert(t).values(values).on_conflict_do_nothing()):
        return mine
    return await find(tx, project_id, key) or mine


async def forget_old(tx: Tx) -> None:
    """Forget keys whose time is over."""
    await tx.run(t.delete().where(t.c.create_time <= tx.now - KEY_LIFE))


async def forget(tx: Tx, project_id: str, key: str) -> None:
    """Forget a key whose request was refused."""
    await tx.run(t.delete().where(t.c.project_id == project_id, t.c.key == key))
