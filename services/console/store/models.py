"""Models in SQL."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from services.console.domain import Model
from services.console.store.pages import behind
from services.console.store.tables import models as t
from services.kit.ids import new_id
from services.kit.transactions import Row, Tx

FIELDS = list(Model.__dataclass_fields__)
COLUMNS = [t.c[name] for name in FIELDS]
LIVE = t.c.delete_time.is_(None)


def as_model(row: Row) -> Model:
    return Model(**row)


def search_name(name: str) -> str:
    """How a name, or a part of one, is written where it is searched."""
    return name.casefold()


async def insert_new(tx: Tx, model: Model) -> bool:
    """Record a model unless its id or its name is taken in the project; whether it was."""
    values = {name: getattr(model, name) for name in FIELDS}
    values |= {"row_id": new_id(""), "search_name": search_name(model.name)}
    return await tx.run(tx.insert(t).values(values).on_conflict_do_nothing()) == 1


async def find(tx: Tx, project_id: str, id: str) -> Model | None:
    """The model of this project."""
    row = await tx.find(sa.select(*COLUMNS).where(t.c.project_id == project_id, t.c.id == id, LIVE))
    return as_model(row) if row else None


async def find_by_name(tx: Tx, project_id: str, name: str) -> Model | None:
    """The model of this name."""
    row = await tx.find(sa.select(*COLUMNS).where(t.c.project_id == project_id, t.c.name == name, LIVE))
    return as_model(row) if row else None


async def lock(tx: Tx, project_id: str, id: str, *, alone: bool) -> bool:
    """Whether the model is there. It is not deleted until this transaction ends; `alone`: nothing else locks it either."""
    mine = sa.select(t.c.id).where(t.c.project_id == project_id, t.c.id == id, LIVE)
    return await tx.find(mine.with_for_update(read=not alone)) is not None


def page(
    project_id: str, mark: Row | None, limit: int, *, search: str | None = None, category: str | None = None
) -> sa.Select[Any]:
    """Models, newest first, behind the place that `mark` is."""
    statement = sa.select(*COLUMNS).where(t.c.project_id == project_id, LIVE)
    if search:
        statement = statement.where(t.c.search_name.contains(search_name(search), autoescape=True))
    if category:
        statement = statement.where(t.c.category == category)
    return behind(statement, t, mark).limit(limit)


async def list_page(
    tx: Tx, project_id: str, mark: Row | None, limit: int, search: str | None, category: str | None
) -> Sequence[Model]:
    """What `page` selects."""
    rows = await tx.rows(page(project_id, mark, limit, search=search, category=category))
    return [as_model(row) for row in rows]


async def find_mark(tx: Tx, project_id: str, id: str) -> Row | None:
    """The place of a model in lists, also of one that was deleted since."""
    mine = sa.select(t.c.create_time, t.c.id).where(t.c.project_id == project_id, t.c.id == id)
    rows = await tx.rows(mine.order_by(LIVE.desc(), t.c.create_time.desc()).limit(1))
    return rows[0] if rows else None


async def update(tx: Tx, project_id: str, id: str, revision: int, **values: Any) -> Model | None:
    """Change a model that is still at this revision; None if it is not."""
    held = (t.c.project_id == project_id, t.c.id == id, t.c.revision == revision, LIVE)
    values |= {"revision": revision + 1, "update_time": tx.now}
    row = await tx.find(t.update().where(*held).values(values).returning(*COLUMNS))
    return as_model(row) if row else None


async def bury(tx: Tx, project_id: str, id: str) -> None:
    """Delete a model; its row stays as a place for cursors."""
    await tx.run(t.update().where(t.c.project_id == project_id, t.c.id == id, LIVE).values(delete_time=tx.now))
