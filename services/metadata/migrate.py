"""Brings the database to the schema of this version, under a lock: of several processes that start, one does it."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from sqlalchemy.ext.asyncio import AsyncConnection

from services.kit.sql import Database

SCRIPTS = Path(__file__).parent / "migrations"
# Key of PostgreSQL's advisory lock; any number that nothing else in the database uses.
LOCK = 0x6272_6978_6D64


async def migrate(database: Database) -> None:
    """In one transaction: it is done whole or not at all. SQLite needs no lock, since a writer keeps others out."""

    async def work(connection: AsyncConnection) -> None:
        if connection.dialect.name == "postgresql":
            await connection.execute(sa.select(sa.func.pg_advisory_xact_lock(LOCK)))
        await connection.run_sync(upgrade)

    await database.write(work)


def upgrade(connection: sa.Connection) -> None:
    config = Config()
    # Alembic reads `%` as the start of a name.
    config.set_main_option("script_location", str(SCRIPTS).replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
