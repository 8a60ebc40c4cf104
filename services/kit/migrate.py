"""Brings a role's tables to the schema of this version, under a lock: of several processes that start, one does it."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from sqlalchemy.ext.asyncio import AsyncConnection

from services.kit.sql import Database


async def migrate(database: Database, scripts: Path, *, lock: int, version_table: str = "alembic_version") -> None:
    """In one transaction: it is done whole or not at all. SQLite needs no lock, since a writer keeps others out.

    `scripts` holds env.py and versions/. `lock` is the key of PostgreSQL's advisory lock. Roles that share a database have
    a `version_table` each.
    """

    async def work(connection: AsyncConnection) -> None:
        if connection.dialect.name == "postgresql":
            await connection.execute(sa.select(sa.func.pg_advisory_xact_lock(lock)))
        await connection.run_sync(lambda plain: upgrade(plain, scripts, version_table))

    await database.write(work)


def upgrade(connection: sa.Connection, scripts: Path, version_table: str) -> None:
    config = Config()
    # Alembic reads `%` as the start of a name.
    config.set_main_option("script_location", str(scripts).replace("%", "%%"))
    config.attributes["connection"] = connection
    config.attributes["version_table"] = version_table
    command.upgrade(config, "head")
