"""Deployment templates in SQL."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from services.console.domain import DeploymentTemplate, Template
from services.console.store.pages import behind
from services.console.store.tables import deployment_templates as t
from services.console.store.tables import template_lists
from services.kit.ids import new_id
from services.kit.transactions import Row, Tx

FIELDS = list(DeploymentTemplate.__dataclass_fields__)
COLUMNS = [t.c[name] for name in FIELDS]
LIVE = t.c.delete_time.is_(None)
THE_LIST = 1


def as_template(row: Row) -> DeploymentTemplate:
    return DeploymentTemplate(**row)


def _of(project_id: str, model_id: str) -> tuple[sa.ColumnElement[bool], ...]:
    return (t.c.project_id == project_id, t.c.model_id == model_id, LIVE)


async def insert_new(tx: Tx, project_id: str, template: DeploymentTemplate) -> bool:
    """Record a template unless its model has one of this name and version; whether it was."""
    values = {name: getattr(template, name) for name in FIELDS} | {"project_id": project_id}
    return await tx.run(tx.insert(t).values(values).on_conflict_do_nothing()) == 1


async def find(tx: Tx, project_id: str, model_id: str, id: str) -> DeploymentTemplate | None:
    """The template of this model."""
    row = await tx.find(sa.select(*COLUMNS).where(t.c.id == id, *_of(project_id, model_id)))
    return as_template(row) if row else None


async def list_versions(tx: Tx, project_id: str, model_id: str, name: str) -> Sequence[Row]:
    """Id, version and status of every version of a name."""
    mine = sa.select(t.c.id, t.c.version, t.c.status).where(*_of(project_id, model_id), t.c.name == name)
    return await tx.rows(mine)


async def list_model_ids(tx: Tx, project_id: str, name: str, limit: int) -> Sequence[str]:
    """Models that have a template of this name."""
    mine = sa.select(t.c.model_id).where(t.c.project_id == project_id, t.c.name == name, LIVE)
    return [row["model_id"] for row in await tx.rows(mine.distinct().order_by(t.c.model_id).limit(limit))]


async def has_any(tx: Tx, project_id: str, model_id: str) -> bool:
    """Whether a model has templates."""
    return await tx.scalar(sa.select(t.c.id).where(*_of(project_id, model_id)).limit(1)) is not None


def page(
    project_id: str, model_id: str, mark: Row | None, limit: int, *, status: str | None = None, name: str | None = None
) -> sa.Select[Any]:
    """Templates of a model, newest first, behind the place that `mark` is."""
    statement = sa.select(*COLUMNS).where(*_of(project_id, model_id))
    if status:
        statement = statement.where(t.c.status == status)
    if name:
        statement = statement.where(t.c.name == name)
    return behind(statement, t, mark).limit(limit)


async def list_page(
    tx: Tx, project_id: str, model_id: str, mark: Row | None, limit: int, status: str | None, name: str | None
) -> Sequence[DeploymentTemplate]:
    """What `page` selects."""
    rows = await tx.rows(page(project_id, model_id, mark, limit, status=status, name=name))
    return [as_template(row) for row in rows]


async def find_mark(tx: Tx, project_id: str, model_id: str, id: str) -> Row | None:
    """The place of a template in lists, also of one that was deleted since."""
    mine = (t.c.id == id, t.c.project_id == project_id, t.c.model_id == model_id)
    return await tx.find(sa.select(t.c.create_time, t.c.id).where(*mine))


async def update(tx: Tx, id: str, revision: int, **values: Any) -> DeploymentTemplate | None:
    """Change a template that is still at this revision; None if it is not."""
    values |= {"revision": revision + 1, "update_time": tx.now}
    held = (t.c.id == id, t.c.revision == revision, LIVE)
    row = await tx.find(t.update().where(*held).values(values).returning(*COLUMNS))
    return as_template(row) if row else None


async def announce(tx: Tx, id: str, deletion_id: str) -> None:
    """Say that this deletion is about to happen; one that was announced before does not happen any more."""
    await tx.run(t.update().where(t.c.id == id, LIVE).values(deletion_id=deletion_id))


async def call_off(tx: Tx, id: str, deletion_id: str) -> bool:
    """This deletion does not happen; False if it has, or was called off before."""
    mine = (t.c.id == id, t.c.deletion_id == deletion_id, LIVE)
    return await tx.run(t.update().where(*mine).values(deletion_id=None)) == 1


async def bury(tx: Tx, id: str, deletion_id: str) -> bool:
    """Delete a template, unless the deletion was called off; its row stays as a place for cursors, without the spec."""
    mine = (t.c.id == id, t.c.deletion_id == deletion_id, LIVE)
    return await tx.run(t.update().where(*mine).values(delete_time=tx.now, spec_json="")) == 1


def fate(id: str) -> sa.Select[Any]:
    """Whether a template is still there (`is_there`), and which deletion of it is announced (`deletion_id`)."""
    return sa.select(LIVE.label("is_there"), t.c.deletion_id).where(t.c.id == id)


def page_of_all(after: tuple[str, str] | None, limit: int) -> sa.Select[Any]:
    """Templates of all projects in order of name and version, the oldest of those that share both first."""
    statement = sa.select(t.c.name, t.c.version, t.c.status, t.c.spec_json).where(LIVE)
    if after is not None:
        there = sa.tuple_(*(sa.literal(part) for part in after))
        statement = statement.where(sa.tuple_(t.c.name, t.c.version) > there)
    return statement.order_by(t.c.name, t.c.version, t.c.create_time, t.c.id).limit(limit)


async def list_all(tx: Tx, after: tuple[str, str] | None, limit: int) -> Sequence[Template]:
    """What `page_of_all` selects."""
    return [Template(**row) for row in await tx.rows(page_of_all(after, limit))]


async def find_etag(tx: Tx) -> str | None:
    """What changes whenever a template does; None before the first."""
    etag: str | None = await tx.scalar(sa.select(template_lists.c.etag).where(template_lists.c.id == THE_LIST))
    return etag


async def set_changed(tx: Tx) -> None:
    """Give the list of all templates another etag: a random one, so that a new database never repeats that of an old."""
    etag = new_id("")
    new = tx.insert(template_lists).values(id=THE_LIST, etag=etag)
    await tx.run(new.on_conflict_do_update(index_elements=["id"], set_={"etag": etag}))
