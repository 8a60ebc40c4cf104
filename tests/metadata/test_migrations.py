from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa

from services.kit.sql import Database
from services.metadata.migrate import migrate
from services.metadata.store.tables import schema
from tests.metadata.conftest import Metadata, serving_metadata
from tests.migrations import Migrations, Role


async def write(metadata: Metadata) -> Any:
    return await metadata.file(b"x")


class TestMigrations(Migrations):
    role = Role("metadata", migrate, schema, serving_metadata, write, {})

    async def test_a_migration_is_done_whole_or_not_at_all(self, database: Database) -> None:
        async def half(connection: Any) -> None:
            await connection.execute(sa.text("CREATE TABLE half (id INTEGER)"))
            raise LookupError

        with pytest.raises(LookupError):
            await database.write(half)

        async def tables(connection: Any) -> Any:
            return await connection.run_sync(lambda plain: sa.inspect(plain).get_table_names())

        assert await database.read(tables) == []
