"""Alembic's entry: runs migrations on the connection that services/metadata/migrate.py has opened a transaction on."""

from __future__ import annotations

from alembic import context

from services.metadata.store.tables import schema

context.configure(connection=context.config.attributes["connection"], target_metadata=schema, transactional_ddl=True)
context.run_migrations()
