"""A transaction with the database's time in it, and the way to run one."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from services.kit.sql import EPOCH, MICROSECOND, Database, db_now

T = TypeVar("T")
Row = sa.RowMapping
# Makes the SQL expression that asks for the time; tests put a clock of their own here.
Now = Callable[[], sa.ColumnElement[int]]


@dataclass(frozen=True)
class Tx:
    connection: AsyncConnection
    now: datetime
    """The database's clock when the transaction began: never later than the time of a statement in it, so a lease that
    is measured from here ends early rather than late."""

    async def find(self, statement: Any) -> Row | None:
        """The only row, or None."""
        return (await self.connection.execute(statement)).mappings().one_or_none()

    async def rows(self, statement: Any) -> Sequence[Row]:
        return (await self.connection.execute(statement)).mappings().all()

    async def scalar(self, statement: Any) -> Any:
        return await self.connection.scalar(statement)

    async def run(self, statement: Any, values: Mapping[str, Any] | None = None) -> int:
        """How many rows it changed. `values`: of its parameters, such as the columns of an INSERT."""
        return int((await self.connection.execute(statement, values)).rowcount)

    def insert(self, table: sa.Table) -> Any:
        """An INSERT that knows ON CONFLICT, which both databases spell alike."""
        dialect = sqlite if self.connection.dialect.name == "sqlite" else postgresql
        return dialect.insert(table)


class Transactions:
    def __init__(self, database: Database, now: Now = db_now) -> None:
        self._database = database
        self._now = now

    async def look(self, statement: Any) -> Row | None:
        """The row of one SELECT that needs neither the time nor another statement."""
        return await self._database.look(statement)

    async def read(self, work: Callable[[Tx], Awaitable[T]]) -> T:
        async def timed(connection: AsyncConnection) -> T:
            return await work(await self._begin(connection))

        return await self._database.read(timed)

    async def write(self, work: Callable[[Tx], Awaitable[T]]) -> T:
        """`work` may run more than once: it must have no other effect than its statements."""

        async def timed(connection: AsyncConnection) -> T:
            return await work(await self._begin(connection))

        return await self._database.write(timed)

    async def _begin(self, connection: AsyncConnection) -> Tx:
        if self._now is db_now and connection.dialect.name == "sqlite":
            # SQLite runs in this process: its clock is ours, and asking for it would be one more trip to its thread.
            return Tx(connection, datetime.now(UTC))
        micros = (await connection.execute(sa.select(self._now()))).scalar_one()
        return Tx(connection, EPOCH + micros * MICROSECOND)
