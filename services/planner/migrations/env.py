"""Alembic's entry: runs migrations on the connection that services/kit/migrate.py has opened a transaction on."""

from __future__ import annotations

from alembic import context

from services.planner.store.tables import schema

given = context.config.attributes
context.configure(
    connection=given["connection"],
    target_metadata=schema,
    version_table=given["version_table"],
    transactional_ddl=True,
)
context.run_migrations()
