"""Brings a role's tables to the schema of this version, under a lock: of several processes that start, one does it."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa
import structlog
from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy.ext.asyncio import AsyncConnection

from services.kit.sql import Database

log = structlog.get_logger(__name__)


class NewerSchema(Exception):
    """The tables are those of a later version, which this one cannot know."""


async def migrate(database: Database, scripts: Path, *, lock: int, version_table: str = "alembic_version") -> None:
    """In one transaction: it is done whole or not at all. SQLite needs no lock, since a writer keeps others out.

    `scripts` holds env.py and versions/. `lock` is the key of PostgreSQL's advisory lock. Roles that share a database have
    a `version_table` each. Error: NewerSchema.
    """

    async def work(connection: AsyncConnection) -> tuple[str | None, str | None]:
        if connection.dialect.name == "postgresql":
            await connection.execute(sa.select(sa.func.pg_advisory_xact_lock(lock)))
        return await connection.run_sync(lambda plain: upgrade(plain, scripts, version_table))

    before, after = await database.write(work)
    if before != after:
        log.info("schema brought up", tables=version_table, before=before, after=after)


def upgrade(connection: sa.Connection, scripts: Path, version_table: str) -> tuple[str | None, str | None]:
    """The revisions before and after. Error: NewerSchema."""
    config = Config()
    # Alembic reads `%` as the start of a name.
    config.set_main_option("script_location", str(scripts).replace("%", "%%"))
    config.attributes["connection"] = connection
    config.attributes["version_table"] = version_table
    before = MigrationContext.configure(connection, opts={"version_table": version_table}).get_current_revision()
    known = ScriptDirectory.from_config(config)
    if before is not None and before not in {script.revision for script in known.walk_revisions()}:
        raise NewerSchema(
            f"the database has the schema {before} of a later version; this one knows none past {known.get_current_head()}"
        )
    command.upgrade(config, "head")
    return before, known.get_current_head()
