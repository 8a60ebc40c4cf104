"""What lists have in common: newest first, and a place in them that holds whatever happens to the thing it named."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from services.kit.transactions import Row


def behind(statement: sa.Select[Any], table: sa.Table, mark: Row | None) -> sa.Select[Any]:
    """In order of (create_time, id), newest first, behind the row whose `create_time` and `id` are `mark`."""
    place = (table.c.create_time, table.c.id)
    if mark is not None:
        there = sa.tuple_(sa.literal(mark["create_time"], table.c.create_time.type), sa.literal(mark["id"]))
        statement = statement.where(sa.tuple_(*place) < there)
    return statement.order_by(*(column.desc() for column in place))
