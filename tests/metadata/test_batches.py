from __future__ import annotations

import asyncio
import json

import asyncpg
import pytest
import structlog

from brix.metadata.v1 import batches_pb2, runners_pb2
from brix.type.v1 import batch_pb2
from services.kit.errors import AlreadyExists, IllegalTransition, InvalidArgument, NotFound
from tests.metadata.conftest import State, serving_metadata, some_lines

MIB = 1024 * 1024


def listed(metadata, **fields):
    return metadata.batches.ListBatches(batches_pb2.ListBatchesRequest(project_id="default", **fields))


def report(metadata, id="runner", leaving=False, **fields):
    info = runners_pb2.RunnerInfo(id=id, version="1", **fields)
    return metadata.runners.ReportRunner(runners_pb2.ReportRunnerRequest(runner=info, leaving=leaving))


async def test_what_goes_in_comes_out(metadata):
    block = '{"client": {"max_concurrency": 22},\n "job_id": "j"}'
    asked = {
        "input_file_id": "file-x",
        "completion_window": "1d12h",
        "metadata_json": '{"team": "search", "x": ""}',
        "aibrix_json": block,
        "output_expires_after_s": 3600,
    }
    batch = await metadata.batch(**asked)
    assert batch.state == State.VALIDATING
    assert {name: getattr(batch, name) for name in asked} == asked
    assert (batch.expire_time.ToDatetime() - batch.create_time.ToDatetime()).total_seconds() == 36 * 3600
    assert batch.usage == batch_pb2.Usage()
    assert (await metadata.get(batch.id)).aibrix_json == block


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"endpoint": "/v1/invalid/endpoint"}, "endpoint", "invalid_value"),
        ({"endpoint": ""}, "endpoint", "missing_required_parameter"),
        ({"input_file_id": ""}, "input_file_id", "missing_required_parameter"),
        ({"input_file_id": "a\0"}, "input_file_id", "invalid_value"),
        ({"completion_window": ""}, "completion_window", "invalid_value"),
        ({"completion_window": "0h"}, "completion_window", "invalid_value"),
        ({"metadata_json": "[]"}, "metadata", "invalid_type"),
        ({"metadata_json": '{"tags": []}'}, "metadata.tags", "invalid_type"),
        ({"metadata_json": '{"tags": true}'}, "metadata.tags", "invalid_type"),
        (
            {"metadata_json": json.dumps({str(n): "" for n in range(17)})},
            "metadata",
            "object_above_max_properties",
        ),
        ({"metadata_json": json.dumps({"k" * 65: ""})}, "metadata", "string_above_max_length"),
        ({"metadata_json": json.dumps({"k": "v" * 513})}, "metadata.k", "string_above_max_length"),
        ({"output_expires_after_s": 3599}, "output_expires_after.seconds", "integer_below_min_value"),
        ({"output_expires_after_s": 2_592_001}, "output_expires_after.seconds", "integer_above_max_value"),
        ({"aibrix_json": "[]"}, "aibrix", "invalid_type"),
        ({"aibrix_json": "{"}, "aibrix", "invalid_type"),
        ({"aibrix_json": "[" * 100_000}, "aibrix", "invalid_type"),
        ({"aibrix_json": '{"clientt": {}}'}, "aibrix.clientt", "unknown_parameter"),
        (
            {"aibrix_json": '{"client": {"max_concurrency": 257}}'},
            "aibrix.client.max_concurrency",
            "invalid_value",
        ),
        ({"aibrix_json": '{"runtime": {"target": "Nope"}}'}, "aibrix.runtime.target", "invalid_value"),
        (
            {"aibrix_json": '{"runtime": {"target": "External", "options": {"bas_url": "x"}}}'},
            "aibrix.runtime.options.bas_url",
            "unknown_parameter",
        ),
        ({"aibrix_json": '{"job_id": "' + "x" * MIB + '"}'}, "aibrix", "invalid_value"),
        ({"idempotency_key": "k"}, "request_hash", "missing_required_parameter"),
    ],
)
async def test_wrong_values(metadata, fields, param, code):
    with pytest.raises(InvalidArgument) as raised:
        await metadata.batch(**{"input_file_id": "file-x"} | fields)
    assert (raised.value.context["param"], raised.value.context.get("code")) == (param, code)


async def test_messages_are_those_of_openai(metadata):
    with pytest.raises(InvalidArgument) as raised:
        await metadata.batch(input_file_id="f", endpoint="/v1/nope")
    assert raised.value.message.startswith("Invalid value: '/v1/nope'. Supported values are: '/v1/chat/completions', ")
    assert raised.value.message.endswith(", and '/v1/rerank'.")
    with pytest.raises(InvalidArgument) as raised:
        await metadata.batch(input_file_id="f", metadata_json='{"tags": ["a"]}')
    assert raised.value.message == "Invalid type for 'metadata.tags': expected a string, but got an array instead."


async def test_idempotency(metadata):
    asked = {"input_file_id": "file-x", "idempotency_key": "key", "request_hash": "a" * 64}
    made = await asyncio.gather(*(metadata.batch(**asked) for _ in range(5)))
    assert len({batch.id for batch in made}) == 1
    with pytest.raises(AlreadyExists):
        await metadata.batch(**asked | {"request_hash": "b" * 64})


async def test_a_target_is_built_in_or_reported(metadata):
    block = '{"runtime": {"target": "Mine"}}'
    with pytest.raises(InvalidArgument) as raised:
        await metadata.batch(input_file_id="f", aibrix_json=block)
    assert "'Mine'. Known targets are: 'External', 'Kubernetes', " in raised.value.message
    await report(metadata, targets=["Mine"])
    await metadata.batch(input_file_id="f", aibrix_json=block)
    await report(metadata, targets=["Mine"], leaving=True)
    await metadata.batch(input_file_id="f", aibrix_json=block)
    assert not (await metadata.runners.ListRunners(runners_pb2.ListRunnersRequest())).runners
    metadata.clock.advance(61)
    with pytest.raises(InvalidArgument):
        await metadata.batch(input_file_id="f", aibrix_json=block)
    waiting = await metadata.running(1, aibrix_json='{"runtime": {"target": "RunPod"}}')
    assert await metadata.acquire() is None
    lease = await metadata.acquire(targets=["RunPod"])
    assert lease is not None
    assert lease.batch.id == waiting.id


async def test_no_endpoint_at_all(make_settings, sqlite_url):
    async with serving_metadata(make_settings(metadata={"database_url": sqlite_url})) as metadata:
        for block in (None, "{}", '{"runtime": {"target": "External", "options": {}}}'):
            with pytest.raises(InvalidArgument) as raised:
                await metadata.batch(input_file_id="f", aibrix_json=block)
            assert raised.value.context["param"] == "aibrix.runtime.options.base_url"
            assert "AIBRIX_DEFAULT_ENDPOINT" in raised.value.message
        options = '{"runtime": {"target": "External", "options": {"http_base_url": "http://engine.example:8000/v1"}}}'
        await metadata.batch(input_file_id="f", aibrix_json=options)
        await metadata.batch(input_file_id="f", aibrix_json='{"runtime": {"target": "RunPod"}}')


@pytest.mark.parametrize("wanted", [True, False])
async def test_the_payload_is_logged_as_received_only_if_asked_for(make_settings, sqlite_url, wanted):
    block = '{"job_id":  "secret-job", "clientt": 1.0}'
    settings = make_settings(metadata={"database_url": sqlite_url}, mds_http_body_log=wanted)
    async with serving_metadata(settings) as metadata:
        with structlog.testing.capture_logs() as logs, pytest.raises(InvalidArgument):
            await metadata.batch(input_file_id="f", aibrix_json=block)
    assert any(entry.get("aibrix") == block for entry in logs) is wanted
    assert ("secret-job" in str(logs)) is wanted


async def test_pages(metadata):
    made = []
    for _ in range(5):
        made.append((await metadata.batch(input_file_id="f")).id)
        metadata.clock.advance(1)
    first = await listed(metadata, page_size=2)
    await metadata.batch(input_file_id="f")
    second = await listed(metadata, page_size=2, after=first.batches[-1].id)
    third = await listed(metadata, page_size=2, after=second.batches[-1].id)
    assert [batch.id for page in (first, second, third) for batch in page.batches] == made[::-1]
    assert (first.has_more, second.has_more, third.has_more) == (True, True, False)
    assert not (await listed(metadata, after="batch_nope")).batches
    with pytest.raises(InvalidArgument):
        await listed(metadata, page_size=101)
    with pytest.raises(NotFound):
        await metadata.batches.GetBatch(batches_pb2.GetBatchRequest(project_id="other", id=made[0]))


async def test_a_page_of_large_blocks_fits_into_a_message(metadata):
    block = json.dumps({"resource_allocation": {"note": "x" * (MIB - 100)}})
    for _ in range(18):
        await metadata.batch(input_file_id="f", aibrix_json=block)
    seen, after = 0, None
    while True:
        page = await listed(metadata, page_size=100, after=after)
        seen += len(page.batches)
        if not page.has_more:
            break
        after = page.batches[-1].id
    assert seen == 18


async def test_cancel_before_validation_needs_no_runner(metadata):
    batch = await metadata.batch(input_file_id="file-nope")
    try:
        cancelled = await metadata.cancel(batch.id)
        assert cancelled.state in (State.CANCELLING, State.CANCELLED)
    except IllegalTransition:
        assert (await metadata.get(batch.id)).state == State.FAILED
        return
    ended = await metadata.reaches(batch.id, State.CANCELLED)
    assert ended.HasField("cancelling_time")
    assert ended.HasField("cancelled_time")
    assert (ended.total_count, ended.output_file_id) == (0, "")
    assert (await metadata.cancel(batch.id)).state == State.CANCELLED


async def test_cancel_of_what_has_ended(metadata):
    ended = await metadata.completed(1)
    with pytest.raises(IllegalTransition) as raised:
        await metadata.cancel(ended.id)
    assert raised.value.message == "Cannot cancel a batch with status 'completed'."
    assert await metadata.get(ended.id) == ended
    with pytest.raises(NotFound) as missing:
        await metadata.cancel("batch_nope")
    assert missing.value.message == "No batch found with id 'batch_nope'."


async def test_of_many_cancels_all_are_told_the_same(metadata):
    batch = await metadata.running()
    answers = await asyncio.gather(*(metadata.cancel(batch.id) for _ in range(5)))
    assert {answer.state for answer in answers} == {State.CANCELLING}
    assert len({answer.cancelling_time.ToMicroseconds() for answer in answers}) == 1


async def test_models_are_those_of_live_runners(metadata):
    await report(metadata, "a", models=["m1", "m2"], targets=["External"])
    metadata.clock.advance(30)
    await report(metadata, "b", models=["m2", "m3"])
    found = (await metadata.runners.ListModels(runners_pb2.ListModelsRequest())).models
    assert [model.id for model in found] == ["m1", "m2", "m3"]
    assert found[1].create_time.ToMicroseconds() < found[2].create_time.ToMicroseconds()
    metadata.clock.advance(31)
    found = (await metadata.runners.ListModels(runners_pb2.ListModelsRequest())).models
    assert [model.id for model in found] == ["m2", "m3"]
    answer = await report(metadata, "b")
    assert list(answer.default_endpoints) == ["http://127.0.0.1:9"]


async def test_a_batch_survives_the_death_of_its_server(make_settings, database_url):
    settings = make_settings(metadata={"database_url": database_url}, default_endpoint="http://127.0.0.1:9")
    async with serving_metadata(settings) as metadata:
        file = await metadata.file(some_lines(2))
        batch = await metadata.batch(input_file_id=file.id)
    async with serving_metadata(settings) as metadata:
        metadata.clock.advance(60)
        ended = await metadata.reaches(batch.id, State.IN_PROGRESS)
        assert ended.total_count == 2


async def test_a_database_that_drops_every_connection_is_an_interruption(make_settings, postgres_url):
    settings = make_settings(metadata={"database_url": postgres_url}, default_endpoint="http://127.0.0.1:9")
    admin = await asyncpg.connect(postgres_url.replace("+asyncpg", ""))
    try:
        async with serving_metadata(settings) as metadata:
            file = await metadata.file(some_lines(3))
            for _ in range(5):
                made = asyncio.gather(*(metadata.batch(input_file_id=file.id) for _ in range(4)))
                await admin.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                    "WHERE datname = current_database() AND pid <> pg_backend_pid()"
                )
                for batch in await made:
                    # A validator that lost its transaction lets the batch rest for a while.
                    metadata.clock.advance(60)
                    await metadata.reaches(batch.id, State.IN_PROGRESS)
    finally:
        await admin.close()


async def test_creates_that_come_together(metadata):
    """One transaction for all of them: each is answered for itself, and one key makes one batch."""

    def asked(number):
        key = {"idempotency_key": f"key-{number % 5}", "request_hash": f"hash-{number % 5}"} if number % 2 else {}
        return {"input_file_id": f"file-{number}", **key}

    wrong = {"input_file_id": "f", "idempotency_key": "key-1", "request_hash": "another"}
    strange = {"input_file_id": "f", "aibrix_json": '{"runtime": {"target": "Nowhere"}}'}
    made = await asyncio.gather(*(metadata.batch(**asked(number)) for number in range(40)))
    other, unknown, again = await asyncio.gather(
        metadata.batch(**wrong), metadata.batch(**strange), metadata.batch(**asked(1)), return_exceptions=True
    )
    assert isinstance(other, AlreadyExists)
    assert again.id == made[1].id
    assert isinstance(unknown, InvalidArgument)
    with_key = {number % 5: set() for number in range(40)}
    for number, batch in enumerate(made):
        if number % 2:
            with_key[number % 5].add(batch.id)
    assert [len(ids) for ids in with_key.values()] == [1] * 5
    listed = (await listed_all(metadata)).batches
    assert len({batch.id for batch in listed}) == len(listed) == 20 + 5


async def listed_all(metadata):
    return await listed(metadata, page_size=100)
