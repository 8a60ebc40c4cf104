"""What nobody expects: the input vanishes, headers are no text, an execution cannot work. The batch ends all the same."""

from __future__ import annotations

from datetime import UTC, datetime

import orjson
import pytest
import sqlalchemy as sa

from brix.metadata.v1 import leases_pb2 as pb
from services.kit.lines import ENTRY
from services.kit.objects import open_store
from services.kit.sql import create_engine
from services.runner.allocation import headline
from services.runner.engines.mock import MockEngine, mock_engine
from services.runner.engines.options import MockOptions
from services.runner.execution import MOST_ATTEMPTS
from services.runner.inference.outcome import Kind, Outcome
from services.runner.inference.retry import parse_retry_after
from services.runner.records import output_line
from tests.runner.platform import Platform, State, some_lines


async def lose_input(p: Platform) -> None:
    store = open_store(p.settings)
    await store.delete([found.key async for found in store.list("files/")])


@pytest.mark.parametrize("is_cancelled", [False, True], ids=["run", "cancelled"])
async def test_a_batch_whose_input_is_lost_ends(p: Platform, engine: MockEngine, is_cancelled: bool) -> None:
    id = await p.external(some_lines(20), engine.url)
    lease = await p.lease(id)
    await p.leases.ReleaseLease(pb.ReleaseLeaseRequest(batch_id=id, token=lease.token))
    await lose_input(p)
    if is_cancelled:
        await p.cancel(id)
    async with p.runner():
        batch = await p.ended(id)
    assert batch.state == State.FAILED
    assert [error.code for error in batch.errors] == ["input_unavailable"]
    assert engine.requests.count == 0


async def test_what_was_committed_before_the_input_was_lost_is_kept(p: Platform) -> None:
    async with mock_engine(MockOptions(latency_ms=100)) as engine, p.runner(segment_seconds=0.1):
        id = await p.external(some_lines(400), engine.url, max_concurrency=4, adaptive_concurrency=False)
        await p.committed(id, 4)
        await lose_input(p)
        await p.cancel(id)
        batch = await p.ended(id)
    assert batch.state == State.FAILED
    assert len((await p.results(batch)).output) == batch.completed_count >= 4


async def test_a_batch_with_which_no_runner_has_any_luck_ends(p: Platform, engine: MockEngine) -> None:
    id = await p.external(some_lines(20), engine.url)
    for _ in range(MOST_ATTEMPTS):
        lease = await p.lease(id)
        await p.leases.ReleaseLease(pb.ReleaseLeaseRequest(batch_id=id, token=lease.token))
    store = open_store(p.settings)
    (index,) = [found async for found in store.list("indexes/")]
    await store.put(index.key, ENTRY.pack(3, 5) * 20)
    async with p.runner():
        batch = await p.ended(id)
    assert batch.state == State.FAILED
    assert [error.code for error in batch.errors] == ["internal_error"]


def test_a_request_id_that_is_no_text_is_no_reason_to_stop() -> None:
    answer = Outcome(Kind.OK, status=200, body=b'{"a":1}', answer={"a": 1}, request_id="r\udcff1")
    line = orjson.loads(output_line(b'"a"', answer))
    assert line["response"]["request_id"] == "r?1"


@pytest.mark.parametrize(
    "value", ["Mon, 01 Jan 2024 00:00:00 +99999999999999", "1 Jan 2024 99999999999999999999:00:00 GMT", "", "\udcff"]
)
def test_no_retry_after_is_too_strange(value: str) -> None:
    assert parse_retry_after(value, datetime(2026, 1, 1, tzinfo=UTC)) is None


def test_the_log_gets_the_reason_and_the_owner_the_engines_words() -> None:
    assert headline("the engine ended: exited with code 1; its last output:\na prompt\n") == (
        "the engine ended: exited with code 1; its last output:"
    )


async def test_errors_of_the_database_do_not_show_values(sqlite_url: str) -> None:
    engine = create_engine(sqlite_url)
    async with engine.connect() as connection:
        with pytest.raises(sa.exc.DBAPIError) as raised:
            await connection.execute(sa.text("SELECT :secret FROM nowhere"), {"secret": "canary"})
    await engine.dispose()
    assert "canary" not in str(raised.value)
