"""What every role's migrations must do, on both databases; each role's tests name the role and add what only it has."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from services.kit.settings import Settings
from services.kit.sql import Database, create_engine

START = """
import asyncio, sys
from services.kit.sql import Database, create_engine
from services.{name}.migrate import migrate
async def main():
    engine = create_engine(sys.argv[1])
    await migrate(Database(engine))
    await engine.dispose()
asyncio.run(main())
"""


@dataclass(frozen=True)
class Role:
    name: str
    migrate: Callable[[Database], Awaitable[None]]
    schema: sa.MetaData
    serving: Callable[[Settings], AbstractAsyncContextManager[Any]]
    write: Callable[[Any], Awaitable[Any]]
    """Something that a running role keeps."""
    options: dict[str, Any]
    """Where alembic finds which migrations there were."""


class Migrations:
    """Tests of the role that a subclass has in `role`."""

    role: Role

    @pytest.fixture
    async def database(self, database_url: str) -> AsyncIterator[Database]:
        engine = create_engine(database_url)
        yield Database(engine)
        await engine.dispose()

    async def test_the_migrated_schema_is_that_of_the_tables(self, database: Database) -> None:
        await self.role.migrate(database)
        await self.role.migrate(database)
        options = {"compare_type": True} | self.role.options

        async def work(connection: Any) -> Any:
            return await connection.run_sync(
                lambda plain: compare_metadata(MigrationContext.configure(plain, opts=options), self.role.schema)
            )

        assert await database.read(work) == []

    async def test_many_starts_at_once(self, make_settings: Callable[..., Settings], database_url: str) -> None:
        settings = make_settings(**{self.role.name: {"database_url": database_url}})
        async with AsyncExitStack() as stack:
            starts = (stack.enter_async_context(self.role.serving(settings)) for _ in range(4))
            for served in await asyncio.gather(*starts):
                await self.role.write(served)

    def test_processes_that_start_at_once(self, database_url: str) -> None:
        command = [sys.executable, "-W", "error", "-c", START.format(name=self.role.name), database_url]
        started = [subprocess.Popen(command, stderr=subprocess.PIPE) for _ in range(3)]
        for process in started:
            _, errors = process.communicate(timeout=60)
            assert process.returncode == 0, errors.decode()

    async def test_a_path_with_odd_characters(self, make_settings: Callable[..., Settings], tmp_path: Any) -> None:
        folder = tmp_path / "100% #odd"
        async with self.role.serving(make_settings().model_copy(update={"data_dir": folder})) as served:
            await self.role.write(served)
        assert (folder / f"{self.role.name}.db").exists()
