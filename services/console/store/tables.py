"""The tables. Migrations in ../migrations make them; a test compares the two."""

from __future__ import annotations

import sqlalchemy as sa

from services.console.store import tables_access as tables_access
from services.console.store.schema import schema as schema
from services.kit.sql import UtcTime


def _id(name: str, *, primary_key: bool = False) -> sa.Column[str]:
    return sa.Column(name, sa.String(255), primary_key=primary_key, nullable=False)


def _text(name: str) -> sa.Column[str]:
    return sa.Column(name, sa.Text, nullable=False, server_default="")


def _life() -> list[sa.Column[object]]:
    """A deleted thing stays as a row, so that a cursor that names it keeps its place."""
    return [
        sa.Column("create_time", UtcTime, nullable=False),
        sa.Column("update_time", UtcTime, nullable=False),
        sa.Column("delete_time", UtcTime),
        sa.Column("revision", sa.BigInteger, nullable=False, server_default="1"),
    ]


def _of_live(name: str, *columns: str, unique: bool = False) -> sa.Index:
    """An index of what is not deleted: deleted rows cost nothing, and hold no name."""
    live = sa.text("delete_time IS NULL")
    return sa.Index(name, *columns, unique=unique, sqlite_where=live, postgresql_where=live)


models = sa.Table(
    "models",
    schema,
    # An id may be given again after its model was deleted.
    _id("row_id", primary_key=True),
    _id("project_id"),
    _id("id"),
    _id("name"),
    # The name as it is searched: case-folded, since databases do not agree about letters outside of ASCII.
    sa.Column("search_name", sa.Text, nullable=False),
    sa.Column("serving_name", sa.Text),
    _text("description"),
    sa.Column("category", sa.String(128), nullable=False, server_default=""),
    *_life(),
    _of_live("ix_models_id", "project_id", "id", unique=True),
    _of_live("ix_models_name", "project_id", "name", unique=True),
    _of_live("ix_models_list", "project_id", "create_time", "id"),
    _of_live("ix_models_category", "project_id", "category", "create_time", "id"),
    sa.Index("ix_models_cursor", "project_id", "id"),
)

deployment_templates = sa.Table(
    "deployment_templates",
    schema,
    _id("id", primary_key=True),
    _id("project_id"),
    _id("model_id"),
    sa.Column("name", sa.String(128), nullable=False),
    sa.Column("version", sa.String(128), nullable=False),
    sa.Column("status", sa.String(16), nullable=False),
    sa.Column("spec_json", sa.Text, nullable=False),
    # Who asks just now whether it may be deleted.
    sa.Column("deletion_id", sa.String(64)),
    *_life(),
    _of_live("ix_deployment_templates_version", "project_id", "model_id", "name", "version", unique=True),
    _of_live("ix_deployment_templates_list", "project_id", "model_id", "create_time", "id"),
    _of_live("ix_deployment_templates_name", "project_id", "name", "model_id"),
    _of_live("ix_deployment_templates_all", "name", "version", "create_time", "id"),
)

# One row that changes with every template, so that metadata may ask often whether anything did.
template_lists = sa.Table(
    "template_lists",
    schema,
    sa.Column("id", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("etag", sa.String(64), nullable=False),
)

# What an idempotency key stands for, from before the planner is asked: the same key again asks the planner for the same.
job_requests = sa.Table(
    "job_requests",
    schema,
    _id("project_id", primary_key=True),
    _id("key", primary_key=True),
    sa.Column("request_hash", sa.String(64), nullable=False),
    # brix.planner.v1.EnqueueJobRequest
    sa.Column("request", sa.LargeBinary, nullable=False),
    sa.Column("create_time", UtcTime, nullable=False),
    sa.Index("ix_job_requests_create", "create_time"),
)
