from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from services.console.migrate import migrate
from services.console.store.tables import schema
from services.kit.settings import Settings
from services.kit.sql import Database
from services.metadata.migrate import migrate as migrate_metadata
from services.planner.migrate import migrate as migrate_planner
from tests.console.conftest import Console, serving_console
from tests.migrations import Migrations, Role

NUMBERS = itertools.count()


async def write(console: Console) -> Any:
    """Names are unique."""
    return await console.model(f"m{next(NUMBERS)}")


class TestMigrations(Migrations):
    role = Role("console", migrate, schema, serving_console, write, {"version_table": "alembic_version_console"})

    async def test_all_roles_share_a_database(
        self, database: Database, make_settings: Callable[..., Settings], database_url: str
    ) -> None:
        for bring_up in (migrate_metadata, migrate, migrate_planner, migrate):
            await bring_up(database)
        async with serving_console(make_settings(console={"database_url": database_url})) as console:
            await write(console)


async def test_the_database_may_be_named_by_its_old_variable(
    make_settings: Callable[..., Settings], tmp_path: Path
) -> None:
    url = f"sqlite+aiosqlite:///{tmp_path / 'given' / 'store.db'}"
    async with serving_console(make_settings().model_copy(update={"store_uri": url})) as console:
        await write(console)
    assert (tmp_path / "given" / "store.db").exists()
