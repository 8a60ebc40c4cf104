"""Which objects some row names: what the search for orphans must leave alone."""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa

from services.kit.transactions import Tx
from services.metadata.store.tables import files, upload_parts


async def list_named(tx: Tx, keys: Sequence[str]) -> set[str]:
    """Which of these keys a file that was not deleted, or a part of an upload, has."""
    of_files = sa.select(files.c.object_key).where(files.c.object_key.in_(keys), files.c.delete_time.is_(None))
    of_parts = sa.select(upload_parts.c.object_key).where(upload_parts.c.object_key.in_(keys))
    rows = await tx.rows(of_files.union_all(of_parts))
    return {row["object_key"] for row in rows}
