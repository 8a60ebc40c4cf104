"""`aibrix-batch migrate`: brings the databases to the schema of this version, before the roles do it as they start."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Sequence

from sqlalchemy.exc import SQLAlchemyError

from cli import exits
from services.kit import log as logs
from services.kit.errors import ServiceError
from services.kit.migrate import NewerSchema
from services.kit.settings import Settings
from services.kit.sql import open_database

# The roles that have tables, and which setting says where.
URLS = {
    "metadata": Settings.database_url,
    "planner": Settings.planner_database_url,
    "console": Settings.console_database_url,
}


def migrate(settings: Settings, roles: Sequence[str]) -> int:
    """Each of `roles` in turn. Those that are done stay done if a later one fails. Error: exits.Failed."""
    logs.configure(settings.log)
    asyncio.run(_migrate(settings, roles))
    return exits.OK


async def _migrate(settings: Settings, roles: Sequence[str]) -> None:
    for role in roles:
        bring_up = importlib.import_module(f"services.{role}.migrate").migrate
        try:
            async with open_database(URLS[role](settings), bring_up):
                print(f"{role}: the schema is that of this version", flush=True)
        except (NewerSchema, ServiceError, SQLAlchemyError, OSError) as error:
            raise exits.Failed(f"{role}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """What the database said, without the statement."""
    return str(getattr(error, "orig", None) or error) or type(error).__name__
