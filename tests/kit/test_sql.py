"""One way to run a transaction: retried where that helps, whole or not at all, also when its caller is cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from services.kit.clock import now
from services.kit.sql import EPOCH, MICROSECOND, Database, create_engine, db_now

numbers = sa.Table("numbers", sa.MetaData(), sa.Column("n", sa.Integer, primary_key=True))


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    engine = create_engine(database_url)
    async with engine.begin() as connection:
        await connection.run_sync(numbers.metadata.create_all)
    yield Database(engine)
    await engine.dispose()


async def count(database: Database) -> int:
    row = await database.look(sa.select(sa.func.count().label("n")).select_from(numbers))
    assert row is not None
    return int(row["n"])


async def test_the_clock_is_the_databases_and_near_ours(database: Database) -> None:
    row = await database.look(sa.select(db_now().label("now")))
    assert row is not None
    assert abs((EPOCH + row["now"] * MICROSECOND - now()).total_seconds()) < 5


async def test_a_transaction_that_fails_leaves_nothing(database: Database) -> None:
    async def work(tx: AsyncConnection) -> None:
        await tx.execute(numbers.insert().values(n=1))
        raise KeyError

    with pytest.raises(KeyError):
        await database.write(work)
    assert await count(database) == 0


async def test_a_broken_rule_is_not_tried_again(database: Database) -> None:
    tries = 0

    async def work(tx: AsyncConnection) -> None:
        nonlocal tries
        tries += 1
        await tx.execute(numbers.insert().values(n=1))

    await database.write(work)
    with pytest.raises(sa.exc.IntegrityError):
        await database.write(work)
    assert tries == 2


async def test_an_outage_is_tried_again(database: Database) -> None:
    tries = 0

    async def work(tx: AsyncConnection) -> int:
        nonlocal tries
        tries += 1
        await tx.execute(numbers.insert().values(n=tries))
        if tries < 3:
            raise ConnectionResetError
        return tries

    assert await database.write(work) == 3
    assert await count(database) == 1


async def test_many_writers_lose_nothing(database: Database) -> None:
    async def add(n: int) -> None:
        async def work(tx: AsyncConnection) -> None:
            await tx.scalar(sa.select(sa.func.count()).select_from(numbers))
            await tx.execute(numbers.insert().values(n=n))

        await database.write(work)

    await asyncio.gather(*(add(n) for n in range(40)))
    assert await count(database) == 40


async def test_a_cancel_waits_for_the_transaction(database: Database) -> None:
    begun = asyncio.Event()

    async def work(tx: AsyncConnection) -> None:
        begun.set()
        await tx.execute(numbers.insert().values(n=1))

    async with asyncio.TaskGroup() as group:
        task = group.create_task(database.write(work))
        await begun.wait()
        task.cancel()
    assert task.cancelled()
    assert await count(database) == 1


async def test_writers_of_one_process_do_not_fight_over_the_file(database: Database) -> None:
    """On SQLite they would: each would look again every few milliseconds, and in the end be told that it is locked."""
    inside = largest = 0

    async def work(tx: AsyncConnection) -> None:
        nonlocal inside, largest
        inside += 1
        largest = max(largest, inside)
        await tx.execute(numbers.insert().values())
        inside -= 1

    calls: list[str] = []
    once = database._once

    async def counted(*args: object, **kwargs: object) -> object:
        calls.append("began")
        assert database.engine.dialect.name != "sqlite" or calls.count("began") == calls.count("ended") + 1
        try:
            return await once(*args, **kwargs)  # type: ignore[arg-type]
        finally:
            calls.append("ended")

    database._once = counted  # type: ignore[method-assign,assignment]
    await asyncio.gather(*(database.write(work) for _ in range(20)))
    assert await count(database) == 20
    assert calls.count("began") >= 20
