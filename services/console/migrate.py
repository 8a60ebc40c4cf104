"""The schema of this role."""

from __future__ import annotations

from pathlib import Path

from services.kit.migrate import migrate as bring_up
from services.kit.sql import Database

SCRIPTS = Path(__file__).parent / "migrations"
# Any number that nothing else in the database uses.
LOCK = 0x6272_6978_636E


async def migrate(database: Database) -> None:
    await bring_up(database, SCRIPTS, lock=LOCK, version_table="alembic_version_console")
