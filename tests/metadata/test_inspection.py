"""The validation of input files through the server: what ends a batch in FAILED, and what survives an outage."""

from __future__ import annotations

import asyncio
import time

import orjson
import pytest

from brix.metadata.v1 import batches_pb2, files_pb2
from services.kit.errors import IllegalTransition, InvalidArgument
from services.kit.lines import read_index
from tests.metadata.conftest import CHAT, Clock, State, a_line, eventually, serving_metadata, some_lines


async def failure(metadata, batch):
    ended = await metadata.reaches(batch.id, State.FAILED, State.IN_PROGRESS)
    assert ended.state == State.FAILED
    assert ended.HasField("failed_time")
    assert (ended.total_count, ended.completed_count, ended.failed_count) == (0, 0, 0)
    assert not ended.HasField("output_file_id")
    assert not ended.HasField("error_file_id")
    return [
        (e.code, e.param if e.HasField("param") else None, e.line if e.HasField("line") else None) for e in ended.errors
    ]


async def test_a_file_that_is_not_there(metadata):
    batch = await metadata.batch(input_file_id="file-nope")
    assert await failure(metadata, batch) == [("invalid_request", "file_id", None)]
    message = (await metadata.get(batch.id)).errors[0].message
    assert message == "Cannot find file file-nope, or organization default does not have access to it."


async def test_a_file_of_another_project_deleted_or_expired(metadata):
    theirs = await metadata.file(some_lines(1), project_id="other")
    gone = await metadata.file(some_lines(1))
    await metadata.files.DeleteFile(files_pb2.DeleteFileRequest(project_id="default", id=gone.id))
    old = await metadata.file(some_lines(1), expires_after_s=3600)
    metadata.clock.advance(3600)
    lost = await metadata.file(some_lines(1))
    await metadata.store.delete([lost.object_key])
    for file in (theirs, gone, old, lost):
        batch = await metadata.batch(input_file_id=file.id)
        assert await failure(metadata, batch) == [("invalid_request", "file_id", None)]


async def test_a_file_of_another_purpose(metadata):
    file = await metadata.file(some_lines(1), purpose="user_data")
    batch = await metadata.batch(input_file_id=file.id)
    assert await failure(metadata, batch) == [("invalid_request", "input_file_id", None)]


@pytest.mark.parametrize(
    ("data", "errors"),
    [
        (b"", [("empty_file", None, None)]),
        (b"nope\n\n[]\n", [("invalid_json_line", None, 1), ("invalid_json_line", None, 3)]),
        (orjson.dumps(a_line(1, url="/v1/embeddings")), [("invalid_url", "url", 1)]),
        (some_lines(1) + b'{"custom_id":"a\\u0000b"}\n', [("missing_required_parameter", "method", 2)]),
        (b'{"custom_id":"\\u0000"}', [("missing_required_parameter", "method", 1)]),
    ],
)
async def test_what_is_wrong_with_the_lines(metadata, data, errors):
    file = await metadata.file(data)
    batch = await metadata.batch(input_file_id=file.id)
    assert await failure(metadata, batch) == errors
    assert not await metadata.keys("indexes/")


async def test_a_nul_character_in_an_error_is_stored(metadata):
    line = orjson.dumps(a_line(1, custom_id="\0x"))
    file = await metadata.file(line + b"\n" + line)
    batch = await metadata.batch(input_file_id=file.id)
    assert await failure(metadata, batch) == [("duplicate_custom_id", "custom_id", 2)]


async def test_the_index_leads_to_the_lines(metadata):
    batch = await metadata.running(100)
    lease = await metadata.acquire()
    data = await metadata.store.get(lease.input_key)
    spans = list(read_index(await metadata.store.get(lease.index_key)))
    ids = [orjson.loads(data[span.offset : span.offset + span.length])["custom_id"] for span in spans]
    assert ids == [f"r{number}" for number in range(100)]
    assert batch.model == "m"


async def test_the_model_of_the_block_wins(metadata):
    assert (await metadata.running(1, aibrix_json='{"model": "org/served"}')).model == "org/served"


async def test_a_file_that_is_too_large(make_settings, sqlite_url):
    settings = make_settings(
        metadata={"database_url": sqlite_url},
        gateway={"max_batch_file_bytes": 100},
        default_endpoint="http://127.0.0.1:9",
    )
    async with serving_metadata(settings) as metadata:
        file = await metadata.file(some_lines(2))
        batch = await metadata.batch(input_file_id=file.id)
        assert await failure(metadata, batch) == [("file_too_large", "input_file_id", None)]


async def test_a_batch_that_nobody_validated_in_time_expires(make_settings, database_url):
    settings = make_settings(
        metadata={"database_url": database_url, "validator_count": 0}, default_endpoint="http://127.0.0.1:9"
    )
    async with serving_metadata(settings) as metadata:
        late = await metadata.batch(input_file_id="f", completion_window="1h")
        unwanted = await metadata.batch(input_file_id="f", completion_window="2h")
        metadata.clock.advance(3600)
        ended = await metadata.reaches(late.id, State.EXPIRED)
        assert ended.HasField("expired_time")
        assert (await metadata.cancel(unwanted.id)).state == State.CANCELLING
        await metadata.reaches(unwanted.id, State.CANCELLED)
        with pytest.raises(IllegalTransition):
            await metadata.cancel(late.id)


async def test_an_outage_of_the_store_puts_validation_off(make_settings, sqlite_url, tmp_path):
    settings = make_settings(metadata={"database_url": sqlite_url}, default_endpoint="http://127.0.0.1:9")
    async with serving_metadata(settings) as metadata:
        file = await metadata.file(some_lines(2))
        # A folder that cannot be made: the index cannot be written.
        blocker = tmp_path / "data" / "objects" / "indexes"
        blocker.write_text("in the way")
        batch = await metadata.batch(input_file_id=file.id)
        await asyncio.sleep(0.3)
        assert (await metadata.get(batch.id)).state == State.VALIDATING
        blocker.unlink()
        metadata.clock.advance(60)
        await metadata.reaches(batch.id, State.IN_PROGRESS)


async def test_several_servers_validate_each_batch_once(make_settings, postgres_url):
    settings = make_settings(metadata={"database_url": postgres_url}, default_endpoint="http://127.0.0.1:9")
    clock = Clock()
    async with serving_metadata(settings, clock) as one, serving_metadata(settings, clock) as other:
        file = await one.file(some_lines(20))
        made = await asyncio.gather(*((one, other)[n % 2].batch(input_file_id=file.id) for n in range(10)))
        for batch in made:
            assert (await other.reaches(batch.id, State.IN_PROGRESS)).total_count == 20
        assert len(await one.keys("indexes/")) == 10
        lease = await other.acquire(wait_ms=0)
        assert lease.token == 2


async def test_a_large_file_does_not_stop_the_loop(make_settings, sqlite_url):
    """A coarse bound for a busy machine; `make bench` measures it."""
    settings = make_settings(metadata={"database_url": sqlite_url}, default_endpoint="http://127.0.0.1:9")
    async with serving_metadata(settings) as metadata:
        body = {"model": "m", "messages": [{"role": "user", "content": "hello world, " * 280}]}
        lines = (orjson.dumps(a_line(n, body=body)) + b"\n" for n in range(10_000))
        file = await metadata.file(b"".join(lines))
        batch = await metadata.batch(input_file_id=file.id, endpoint=CHAT)
        longest, last = 0.0, time.monotonic()

        async def there():
            nonlocal longest, last
            now = time.monotonic()
            longest, last = max(longest, now - last - 0.01), now
            return (await metadata.get(batch.id)).state == State.IN_PROGRESS

        await eventually(there)
        assert longest < 0.5


async def validated(metadata, data=None, **fields):
    asked = {"project_id": "default", "endpoint": CHAT, "completion_window": "24h"} | fields
    if data is not None:
        asked["input_file_id"] = (await metadata.file(data)).id
    return await metadata.batches.ValidateBatch(batches_pb2.CreateBatchRequest(**asked))


async def test_a_dry_run_finds_what_a_batch_would_and_makes_nothing(metadata):
    good = await validated(metadata, some_lines(3))
    assert (list(good.errors), good.total_count, good.model) == ([], 3, "m")
    named = await validated(metadata, some_lines(3), aibrix_json='{"model": "mine"}')
    assert named.model == "mine"
    bad = await validated(metadata, some_lines(2) + b"{no json\n")
    assert [(error.code, error.line) for error in bad.errors] == [("invalid_json_line", 3)]
    missing = await validated(metadata, input_file_id="file-none")
    assert [error.param for error in missing.errors] == ["file_id"]
    small = '{"profile": {"name": "p", "spec": {"quota": {"max_requests_per_batch": 1}}}}'
    assert [error.code for error in (await validated(metadata, some_lines(2), aibrix_json=small)).errors] == [
        "too_many_tasks"
    ]
    for wrong in ({"endpoint": "/v1/x"}, {"aibrix_json": '{"runtime": {"target": "Nowhere"}}'}, {"input_file_id": ""}):
        with pytest.raises(InvalidArgument):
            await validated(metadata, **({"input_file_id": "f"} | wrong))
    listed = await metadata.batches.ListBatches(batches_pb2.ListBatchesRequest(project_id="default"))
    assert not listed.batches
