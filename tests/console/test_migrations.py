from __future__ import annotations

import itertools
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import command
from alembic.config import Config

from brix.console.v1 import access_pb2
from services.console.migrate import SCRIPTS, migrate
from services.console.store.tables import schema
from services.kit.settings import Settings
from services.kit.sql import Database, create_engine
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


async def test_keys_from_before_there_were_roles_are_members(
    make_settings: Callable[..., Settings], database_url: str
) -> None:
    engine = create_engine(database_url)
    key, old = "ab_" + "0" * 32, {"id": "key_1", "project_id": "p", "name": "n", "prefix": "ab_", "create_time": 1}

    def first_version(plain: sa.Connection) -> None:
        config = Config()
        config.set_main_option("script_location", str(SCRIPTS).replace("%", "%%"))
        config.attributes |= {"connection": plain, "version_table": "alembic_version_console"}
        command.upgrade(config, "0001")
        plain.execute(
            sa.table("api_keys", *(sa.column(name) for name in (*old, "key_hash"))).insert(),
            old | {"key_hash": sha256(key.encode()).hexdigest()},
        )

    async with engine.begin() as connection:
        await connection.run_sync(first_version)
    await engine.dispose()
    async with serving_console(make_settings(console={"database_url": database_url})) as console:
        asked = access_pb2.AuthenticateRequest(key_hash=sha256(key.encode()).hexdigest())
        assert (await console.access.Authenticate(asked)).role == "member"


async def test_the_database_may_be_named_by_its_old_variable(
    make_settings: Callable[..., Settings], tmp_path: Path
) -> None:
    url = f"sqlite+aiosqlite:///{tmp_path / 'given' / 'store.db'}"
    async with serving_console(make_settings().model_copy(update={"store_uri": url})) as console:
        await write(console)
    assert (tmp_path / "given" / "store.db").exists()
