"""Segments and committed lines in SQL."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import sqlalchemy as sa

from services.kit.lines import LineSet
from services.kit.transactions import Tx
from services.metadata.domain import Segment, Usage
from services.metadata.store.tables import USAGE, batch_lines
from services.metadata.store.tables import segments as t

COLUMNS = [t.c[name] for name in Segment.__dataclass_fields__]
SUMMED = ("completed_count", "failed_count", *USAGE)


async def find_digest(tx: Tx, batch_id: str, token: int, sequence: int) -> str | None:
    """What was committed under this token and sequence number."""
    mine = sa.select(t.c.digest).where(t.c.batch_id == batch_id, t.c.token == token, t.c.sequence == sequence)
    digest: str | None = await tx.scalar(mine)
    return digest


async def insert(tx: Tx, batch_id: str, segment: Segment, usage: Usage, digest: str) -> None:
    """Record a segment."""
    await tx.run(t.insert().values(batch_id=batch_id, digest=digest, **asdict(segment), **asdict(usage)))


async def sums(tx: Tx, batch_id: str) -> dict[str, Any]:
    """The counters of a batch, added up from its segments."""
    total = [sa.cast(sa.func.coalesce(sa.func.sum(t.c[name]), 0), sa.BigInteger).label(name) for name in SUMMED]
    row = await tx.find(sa.select(*total).where(t.c.batch_id == batch_id))
    assert row is not None
    return dict(row)


async def committed_bytes(tx: Tx, batch_id: str) -> int:
    """How many bytes of output and error lines are committed."""
    size = sa.func.coalesce(sa.func.sum(t.c.output_bytes + t.c.error_bytes), 0)
    return int(await tx.scalar(sa.select(sa.cast(size, sa.BigInteger)).where(t.c.batch_id == batch_id)))


async def committed(tx: Tx, batch_id: str) -> LineSet:
    """All lines of a batch that are committed."""
    bits = await tx.scalar(sa.select(batch_lines.c.committed).where(batch_lines.c.batch_id == batch_id))
    return LineSet.from_bytes(bits or b"")


async def set_committed(tx: Tx, batch_id: str, lines: LineSet) -> None:
    """Write the committed lines of a batch whose row this transaction holds."""
    statement = tx.insert(batch_lines).values(batch_id=batch_id, committed=lines.to_bytes())
    changed = {"committed": statement.excluded.committed}
    await tx.run(statement.on_conflict_do_update(index_elements=["batch_id"], set_=changed))


async def page(tx: Tx, batch_id: str, after: tuple[int, int], limit: int) -> list[Segment]:
    """Segments of a batch in order of (token, sequence), behind `after`."""
    behind = sa.tuple_(t.c.token, t.c.sequence) > sa.tuple_(*(sa.literal(n, sa.BigInteger) for n in after))
    mine = sa.select(*COLUMNS).where(t.c.batch_id == batch_id, behind)
    rows = await tx.rows(mine.order_by(t.c.token, t.c.sequence).limit(limit))
    return [Segment(**row) for row in rows]


async def delete(tx: Tx, batch_id: str) -> None:
    """Forget the segments and the committed lines of an ended batch."""
    await tx.run(t.delete().where(t.c.batch_id == batch_id))
    await tx.run(batch_lines.delete().where(batch_lines.c.batch_id == batch_id))
