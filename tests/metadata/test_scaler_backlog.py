"""The count in SQL against the same rule in plain words, and the way that the databases take to it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st

from services.kit.sql import EPOCH, MICROSECOND, open_database
from services.kit.transactions import Transactions, Tx
from services.metadata.migrate import migrate
from services.metadata.scaling import Backlog, Wishes
from services.metadata.states import LIVE, TERMINAL, BatchState
from services.metadata.store import backlog
from services.metadata.store.tables import batches

NOW = datetime(2026, 1, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)
TARGETS = ("External", "Kubernetes", "KubernetesJob")


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[Transactions]:
    """A database at NOW."""
    async with open_database(url, migrate) as database:
        yield Transactions(database, lambda: sa.literal((NOW - EPOCH) // MICROSECOND, sa.BigInteger))


def a_row(number: int, **values: Any) -> dict[str, Any]:
    plain = {
        "id": f"batch_{number}",
        "project_id": "p",
        "state": BatchState.IN_PROGRESS,
        "endpoint": "/v1/chat/completions",
        "input_file_id": "f",
        "completion_window": "24h",
        "create_time": NOW - HOUR,
        "in_progress_time": NOW - HOUR,
        "expire_time": NOW + HOUR,
        "total_count": 10,
        "completed_count": 0,
        "failed_count": 0,
        "target": "External",
        "lease_owner": None,
        "lease_expire_time": None,
        "not_before_time": None,
        "index_key": "i",
        "compute_lost": None,
    }
    return plain | values


async def put(transactions: Transactions, rows: Sequence[dict[str, Any]]) -> None:
    async def work(tx: Tx) -> None:
        await tx.run(batches.delete())
        for start in range(0, len(rows), 500):
            await tx.connection.execute(batches.insert(), rows[start : start + 500])

    await transactions.write(work)


async def measured(transactions: Transactions, wishes: Wishes) -> tuple[Backlog, bool]:
    async def look(tx: Tx) -> tuple[Backlog, bool]:
        return await backlog.measure(tx, wishes), await backlog.is_any(tx, wishes)

    return await transactions.read(look)


def in_words(rows: Sequence[dict[str, Any]], wishes: Wishes) -> tuple[Backlog, bool]:
    """What `docs/decisions` says, a batch at a time."""
    held = urgent = 0
    share, is_any = 0.0, False
    for row in rows:
        closes = row["state"] == BatchState.CANCELLING or row["expire_time"] <= NOW
        is_leased = row["lease_expire_time"] is not None and row["lease_expire_time"] > NOW
        if wishes.targets and row["target"] not in wishes.targets:
            continue
        if row["state"] not in LIVE - {BatchState.VALIDATING} or row["index_key"] is None:
            continue
        if row["compute_lost"] is not None and not closes:
            continue
        if is_leased and row["target"] == "KubernetesJob":
            continue
        is_any = True
        if not is_leased and row["not_before_time"] is not None and row["not_before_time"] > NOW:
            continue
        done = row["completed_count"] + row["failed_count"]
        rate = done / (NOW - row["in_progress_time"]).total_seconds() if done else wishes.lines_per_second
        need = wishes.startup_seconds + (row["total_count"] - done) / rate
        left = (row["expire_time"] - NOW).total_seconds()
        if not is_leased and (closes or 2 * need >= left):
            urgent += 1
            continue
        held += is_leased
        share += 1.0 if need >= left else max(wishes.relaxed_weight, need / left)
    return Backlog(held_count=held, urgent_count=urgent, share=pytest.approx(share)), is_any


times = st.sampled_from([timedelta(seconds=n) for n in (-7200, -60, 0, 60, 700, 7200, 86_400)]).map(NOW.__add__)


@st.composite
def rows_of(draw: st.DrawFn) -> list[dict[str, Any]]:
    rows = []
    for number in range(draw(st.integers(0, 6))):
        total = draw(st.integers(0, 100))
        completed = draw(st.integers(0, total))
        lease = draw(st.none() | times)
        rows.append(
            a_row(
                number,
                state=draw(st.sampled_from(BatchState)),
                target=draw(st.sampled_from(TARGETS)),
                total_count=total,
                completed_count=completed,
                failed_count=draw(st.integers(0, total - completed)),
                in_progress_time=NOW - timedelta(seconds=draw(st.integers(1, 7200))),
                expire_time=draw(times),
                lease_owner="runner" if lease else None,
                lease_expire_time=lease,
                not_before_time=draw(st.none() | times),
                index_key=draw(st.sampled_from(["i", "i", "i", None])),
                compute_lost=draw(st.sampled_from([None, None, "gone"])),
            )
        )
    return rows


wishes_of = st.builds(
    lambda targets, weight, rate, startup: Wishes(
        targets=",".join(targets), relaxedWeight=weight, linesPerSecond=rate, startupSeconds=startup
    ),
    st.lists(st.sampled_from(TARGETS), max_size=2),
    st.sampled_from([0.0, 0.1, 0.25, 1.0]),
    st.sampled_from([0.01, 1.0, 50.0]),
    st.sampled_from([0.0, 300.0]),
)


def test_the_count_is_that_of_the_rule(database_url: str) -> None:
    with asyncio.Runner() as runner:
        database = opened(database_url)
        transactions = runner.run(database.__aenter__())

        @settings(max_examples=150)
        @given(rows_of(), wishes_of)
        def check(rows: list[dict[str, Any]], wishes: Wishes) -> None:
            runner.run(put(transactions, rows))
            assert runner.run(measured(transactions, wishes)) == in_words(rows, wishes)

        check()
        runner.run(database.__aexit__(None, None, None))


@given(st.integers(0, 50), st.integers(0, 50), st.floats(0, 100))
def test_slots_are_never_less_than_what_runs_nor_than_what_is_needed(held: int, urgent: int, share: float) -> None:
    slots = Backlog(held_count=held, urgent_count=urgent, share=share).slots()
    assert slots >= held + urgent
    assert slots >= urgent + share - 0.001
    assert slots <= held + urgent + share + 0.001
    assert (slots == 0) is (held == urgent == 0 and round(share, 3) == 0)


ENDED, LIVE_COUNT = 4000, 40


async def test_a_look_reads_live_batches_only(database_url: str) -> None:
    """By the index of states, however many have ended; measured with 100,000: docs/decisions/0016."""
    ended = sorted(TERMINAL)
    rows = [a_row(n, state=ended[n % len(ended)]) for n in range(ENDED)]
    rows += [a_row(ENDED + n, lease_expire_time=NOW + HOUR if n % 2 else None) for n in range(LIVE_COUNT)]
    async with opened(database_url) as transactions:
        await put(transactions, rows)
        seen: list[tuple[str, Any]] = []

        async def look(tx: Tx) -> list[str]:
            await tx.connection.execute(sa.text("ANALYZE batches"))
            engine = tx.connection.sync_connection
            assert engine is not None
            sa.event.listen(engine, "before_cursor_execute", lambda *said: seen.append((said[2], said[3])))
            await backlog.measure(tx, Wishes(targets="External"))
            await backlog.is_any(tx, Wishes())
            explain = "EXPLAIN QUERY PLAN " if tx.connection.dialect.name == "sqlite" else "EXPLAIN "
            plans = [await tx.connection.exec_driver_sql(explain + text, values) for text, values in list(seen)]
            return ["\n".join(str(tuple(row)) for row in plan) for plan in plans]

        plans = await transactions.write(look)
    assert len(plans) == 2
    for plan in plans:
        assert "ix_batches_state" in plan
        assert "Seq Scan" not in plan
        assert "SCAN" not in plan
