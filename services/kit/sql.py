"""What both databases need to look the same: one time type, one clock, one way to run a transaction.

Times are whole microseconds since 1970 in a BIGINT, and "now" is always the database's clock (`db_now`): processes
may disagree about the time by minutes, and leases must not care.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar, cast

import sqlalchemy as sa
import structlog
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

from services.kit.errors import ResourceExhausted, Unavailable
from services.kit.lifecycle import uninterrupted

T = TypeVar("T")
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)

log = structlog.get_logger(__name__)


class UtcTime(sa.TypeDecorator[datetime]):
    """A datetime in UTC, stored as microseconds since 1970: sorts and compares alike on both databases."""

    impl = sa.BigInteger
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Any) -> int | None:
        return None if value is None else (value - EPOCH) // MICROSECOND

    def process_result_value(self, value: int | None, dialect: Any) -> datetime | None:
        return None if value is None else EPOCH + value * MICROSECOND


class db_now(FunctionElement[int]):  # noqa: N801 - reads as an SQL function
    """The database's clock in microseconds since 1970; on PostgreSQL the time of the statement, not of the transaction."""

    type = sa.BigInteger()
    inherit_cache = True


@compiles(db_now)
def _now_elsewhere(element: Any, compiler: Any, **kw: Any) -> str:
    return "CAST(extract(epoch FROM clock_timestamp()) * 1000000 AS BIGINT)"


@compiles(db_now, "sqlite")
def _now_sqlite(element: Any, compiler: Any, **kw: Any) -> str:
    return "CAST(round((julianday('now') - 2440587.5) * 86400000.0) * 1000 AS INTEGER)"


def create_engine(url: str) -> AsyncEngine:
    """An engine for `sqlite+aiosqlite:///file` (WAL, every commit synced) or `postgresql+asyncpg://...`.

    Errors never show the values of a statement: they may be a user's credentials, and errors are logged.
    """
    if not url.startswith("sqlite"):
        return create_async_engine(url, hide_parameters=True, pool_size=10, max_overflow=10, pool_pre_ping=True)
    # Every connection comes back committed or rolled back; to roll back once more would be one more trip to its thread.
    engine = create_async_engine(url, hide_parameters=True, connect_args={"timeout": 30}, pool_reset_on_return=None)
    sa.event.listen(engine.sync_engine, "connect", _prepare_sqlite)
    sa.event.listen(engine.sync_engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite(connection: Any, record: Any) -> None:
    connection.isolation_level = None  # we say BEGIN ourselves, below
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "busy_timeout=30000"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_sqlite(connection: sa.Connection) -> None:
    # A writer takes the lock at once: upgrading a read lock later would fail at the first rival, without waiting.
    mode = connection.get_execution_options().get("begin", "DEFERRED")
    if mode is not None:
        connection.exec_driver_sql(f"BEGIN {mode}")


# SQLSTATEs after which the same transaction may be run again: serialization failure, deadlock, shutdown, no connection.
RETRYABLE_STATES = frozenset({"40001", "40P01", "57P01", "57P02", "57P03", "08000", "08003", "08006", "53300"})


class Database:
    """Runs transactions, and again when the database says that doing so will help. The only place that retries SQL."""

    def __init__(self, engine: AsyncEngine, *, attempts: int = 6) -> None:
        self.engine = engine
        self.attempts = attempts
        # SQLite has one writer. Rivals of this process wait for it here: SQLite itself would have them look every few ms.
        self._writer: AbstractAsyncContextManager[None] = (
            asyncio.Lock() if engine.dialect.name == "sqlite" else nullcontext()
        )
        self._running = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._closed = False

    async def close(self) -> None:
        """Let what runs end, and close the connections: one that is in use then would never be closed. Nothing begins any more."""
        self._closed = True
        await self._idle.wait()
        await self.engine.dispose()

    async def look(self, statement: sa.Select[Any]) -> sa.RowMapping | None:
        """The row of one SELECT that stands for itself. On SQLite each statement is some trips to a thread, so a read
        that is polled does without BEGIN and without asking for the time."""

        async def work(tx: AsyncConnection) -> sa.RowMapping | None:
            found: sa.RowMapping | None = (await tx.execute(statement)).mappings().one_or_none()
            return found

        return await self._run(work, begin=None)

    async def read(self, work: Callable[[AsyncConnection], Awaitable[T]]) -> T:
        return await self._run(work, begin="DEFERRED")

    async def write(self, work: Callable[[AsyncConnection], Awaitable[T]]) -> T:
        """`work` may run more than once, each time in a fresh transaction: it must have no other effect."""
        async with self._writer:
            return await self._run(work, begin="IMMEDIATE")

    async def _run(self, work: Callable[[AsyncConnection], Awaitable[T]], *, begin: str | None) -> T:
        for attempt in range(1, self.attempts + 1):
            try:
                return await uninterrupted(self._once(work, begin=begin))
            except (sa.exc.DBAPIError, OSError) as error:
                await self._after(error, attempt)
        raise Unavailable("the database is unavailable, retry later")

    async def _once(self, work: Callable[[AsyncConnection], Awaitable[T]], *, begin: str | None) -> T:
        # Never cancelled half-way: SQLite would keep the lock until somebody collects the cursor that was left open.
        if self._closed:
            raise Unavailable("the server is stopping, retry later")
        self._running += 1
        self._idle.clear()
        try:
            async with self.engine.connect() as plain:
                tx = await plain.execution_options(begin=begin)
                async with tx.begin():
                    return await work(tx)
        finally:
            self._running -= 1
            if not self._running:
                self._idle.set()

    async def _after(self, error: sa.exc.DBAPIError | OSError, attempt: int) -> None:
        if is_full(error):
            raise ResourceExhausted("the database has no space left") from error
        if not may_retry(error):
            raise error
        if attempt == self.attempts:
            raise Unavailable("the database is unavailable, retry later") from error
        log.warning("transaction failed, trying again", attempt=attempt, error=type(error).__name__)
        await asyncio.sleep(random.uniform(0, min(2.0, 0.02 * 3**attempt)))


@asynccontextmanager
async def open_database(url: str, migrate: Callable[[Database], Awaitable[None]]) -> AsyncIterator[Database]:
    """The database behind `url`, made if it is a file that is not there, at the schema that `migrate` brings it to."""
    engine = create_engine(url)
    if engine.dialect.name == "sqlite" and engine.url.database:
        Path(engine.url.database).parent.mkdir(parents=True, exist_ok=True)
    database = Database(engine)
    try:
        await migrate(database)
        yield database
    finally:
        await database.close()


def may_retry(error: sa.exc.DBAPIError | OSError) -> bool:
    if isinstance(error, OSError):
        return True
    original = cast(Any, error.orig)
    state = getattr(original, "sqlstate", None)
    text = str(original)
    return bool(error.connection_invalidated) or state in RETRYABLE_STATES or "database is locked" in text


def is_full(error: BaseException) -> bool:
    text = str(error)
    return "database or disk is full" in text or "disk I/O error" in text or getattr(error, "errno", None) == 28
