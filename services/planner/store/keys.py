"""Idempotency keys in SQL."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

import sqlalchemy as sa

from services.kit.transactions import Tx
from services.planner.store.tables import job_keys as t

# How long a key is remembered.
KEY_LIFE = timedelta(days=1)


@dataclass(frozen=True)
class Claim:
    job_id: str
    request_hash: str


async def claim(tx: Tx, project_id: str, key: str, request_hash: str, job_id: str) -> Claim:
    """Bind a key to the job that this call makes, unless an earlier call did; whose it is now."""
    mine = (t.c.project_id == project_id, t.c.key == key)
    await tx.run(t.delete().where(*mine, t.c.create_time <= tx.now - KEY_LIFE))
    values = {
        "project_id": project_id,
        "key": key,
        "request_hash": request_hash,
        "job_id": job_id,
        "create_time": tx.now,
    }
    if await tx.run(tx.insert(t).values(values).on_conflict_do_nothing()):
        return Claim(job_id, request_hash)
    row = await tx.find(sa.select(t.c.job_id, t.c.request_hash).where(*mine))
    assert row is not None
    return Claim(row["job_id"], row["request_hash"])


async def forget_old(tx: Tx) -> int:
    """Forget keys whose time is over."""
    return await tx.run(t.delete().where(t.c.create_time <= tx.now - KEY_LIFE))
