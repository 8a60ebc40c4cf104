from __future__ import annotations

import asyncio
import subprocess
import sys
from contextlib import AsyncExitStack

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from services.kit.sql import Database, create_engine
from services.metadata.migrate import migrate
from services.metadata.store.tables import schema
from tests.metadata.conftest import Clock, serving_metadata


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
            lambda plain: compare_metadata(MigrationContext.configure(plain, opts={"compare_type": True}), schema)
        )

    assert await database.read(work) == []


async def test_a_migration_is_done_whole_or_not_at_all(database):
    async def half(connection):
        await connection.execute(sa.text("CREATE TABLE half (id INTEGER)"))
        raise LookupError

    with pytest.raises(LookupError):
        await database.write(half)

    async def tables(connection):
        return await connection.run_sync(lambda plain: sa.inspect(plain).get_table_names())

    assert await database.read(tables) == []


async def test_many_starts_at_once(make_settings, database_url):
    settings = make_settings(metadata={"database_url": database_url})
    async with AsyncExitStack() as stack:
        starts = (stack.enter_async_context(serving_metadata(settings, Clock())) for _ in range(4))
        served = await asyncio.gather(*starts)
        for metadata in served:
            await metadata.file(b"x")


START = """
import asyncio, sys
from services.kit.sql import Database, create_engine
from services.metadata.migrate import migrate
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
    async with serving_metadata(settings) as metadata:
        await metadata.file(b"x")
    assert (folder / "metadata.db").exists()
