from __future__ import annotations

import asyncio
import subprocess
import sys
from contextlib import AsyncExitStack

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from services.console.migrate import migrate
from services.console.store.tables import schema
from services.kit.sql import Database, create_engine
from services.metadata.migrate import migrate as migrate_metadata
from services.planner.migrate import migrate as migrate_planner
from tests.console.conftest import serving_console

OPTIONS = {"compare_type": True, "version_table": "alembic_version_console"}


@pytest.fixture
async def database(database_url):
    engine = create_engine(database_url)
    yield Database(engine)
    await engine.dispose()


async def test_the_migrated_schema_is_that_of_the_tables(database):
    await migrate(database)
    await migrate(database)

    async def work(connection):
        return await connection.run_sync(
            lambda plain: compare_metadata(MigrationContext.configure(plain, opts=OPTIONS), schema)
        )

    assert await database.read(work) == []


async def test_all_roles_share_a_database(database, make_settings, database_url):
    for bring_up in (migrate_metadata, migrate, migrate_planner, migrate):
        await bring_up(database)
    async with serving_console(make_settings(console={"database_url": database_url})) as console:
        await console.model()


async def test_many_starts_at_once(make_settings, database_url):
    settings = make_settings(console={"database_url": database_url})
    async with AsyncExitStack() as stack:
        starts = (stack.enter_async_context(serving_console(settings)) for _ in range(4))
        for number, console in enumerate(await asyncio.gather(*starts)):
            await console.model(f"m{number}")


START = """
import asyncio, sys
from services.kit.sql import Database, create_engine
from services.console.migrate import migrate
async def main():
    engine = create_engine(sys.argv[1])
    await migrate(Database(engine))
    await engine.dispose()
asyncio.run(main())
"""


def test_processes_that_start_at_once(database_url):
    started = [
        subprocess.Popen([sys.executable, "-W", "error", "-c", START, database_url], stderr=subprocess.PIPE)
        for _ in range(3)
    ]
    for process in started:
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors.decode()


async def test_a_path_with_odd_characters(make_settings, tmp_path):
    folder = tmp_path / "100% #odd"
    settings = make_settings().model_copy(update={"data_dir": folder})
    async with serving_console(settings) as console:
        await console.model()
    assert (folder / "console.db").exists()


async def test_the_database_may_be_named_by_its_old_variable(make_settings, tmp_path):
    url = f"sqlite+aiosqlite:///{tmp_path / 'given' / 'store.db'}"
    async with serving_console(make_settings().model_copy(update={"store_uri": url})) as console:
        await console.model()
    assert (tmp_path / "given" / "store.db").exists()
