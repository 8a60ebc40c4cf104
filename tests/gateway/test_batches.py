"""Batches and models: the calls of the SDK, and every error that a create can have at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import openai
import pytest
from grpc import aio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from brix.metadata.v1.runners_pb2 import ReportRunnerRequest, RunnerInfo
from brix.metadata.v1.runners_pb2_grpc import RunnerRegistryServiceStub
from tests.gateway.front import Front, eventually, fronting, settings_for

pytestmark = pytest.mark.asyncio(loop_scope="module")
GOOD: dict[str, Any] = {
    "input_file_id": "file-none",
    "endpoint": "/v1/chat/completions",
    "completion_window": "24h",
}
KEYS = {
    "id", "object", "endpoint", "model", "errors", "input_file_id", "completion_window", "status", "output_file_id",
    "error_file_id", "created_at", "in_progress_at", "expires_at", "finalizing_at", "completed_at", "failed_at",
    "expired_at", "cancelling_at", "cancelled_at", "request_counts", "usage", "metadata", "aibrix",
}  # fmt: skip
USAGE = {
    "input_tokens": 0,
    "input_tokens_details": {"cached_tokens": 0},
    "output_tokens": 0,
    "output_tokens_details": {"reasoning_tokens": 0},
    "total_tokens": 0,
}


async def test_create_retrieve_and_cancel_with_the_sdk(front: Front) -> None:
    file_id = await front.upload()
    async with front.sdk() as client:
        batch = await client.batches.create(
            input_file_id=file_id,
            endpoint="/v1/chat/completions",
            completion_window="24h",
            metadata={"team": "search", "\u00fc": ""},
            output_expires_after={"anchor": "created_at", "seconds": 3600},
        )
        assert (batch.object, batch.status, batch.input_file_id) == ("batch", "validating", file_id)
        assert batch.metadata == {"team": "search", "\u00fc": ""}
        assert batch.expires_at == batch.created_at + 86_400
        assert batch._request_id
        same = await client.batches.retrieve(batch.id)
        assert same.id == batch.id
        cancelled = await client.batches.cancel(batch.id)
        assert cancelled.status in {"cancelling", "cancelled"}
        assert cancelled.cancelling_at
        assert (await client.batches.cancel(batch.id, extra_body={"why": "twice"})).cancelling_at


async def test_every_key_is_there(front: Front) -> None:
    answer = await front.post_json("/v1/batches", GOOD)
    assert set(answer.json) == KEYS
    assert answer.json["request_counts"] == {"total": 0, "completed": 0, "failed": 0}
    assert answer.json["usage"] == USAGE
    times = [value for name, value in answer.json.items() if name.endswith("_at")]
    assert all(isinstance(value, int) or value is None for value in times)


async def test_an_unknown_file_ends_the_batch(front: Front) -> None:
    async with front.sdk() as client:
        batch = await client.batches.create(**GOOD)

        async def failed() -> bool:
            return (await client.batches.retrieve(batch.id)).status == "failed"

        await eventually(failed)
        batch = await client.batches.retrieve(batch.id)
        assert batch.errors is not None
        assert batch.errors.data is not None
        (error,) = batch.errors.data
        assert (error.code, error.param, error.line) == ("invalid_request", "file_id", None)
        with pytest.raises(openai.ConflictError) as caught:
            await client.batches.cancel(batch.id)
        assert caught.value.response.headers["x-should-retry"] == "false"
        assert "Cannot cancel a batch with status 'failed'." in caught.value.message
        assert (caught.value.code, caught.value.param) == (None, None)


async def test_the_block_comes_back_byte_for_byte(front: Front) -> None:
    block = (
        '{"client" :\t{"max_concurrency":22}, "job_id":"\\u00fc\u00fc","resource_allocation":{"n":1.0,"b":1e2,"a":[]}}'
    )
    data = json.dumps(GOOD)[:-1] + f',"aibrix":{block}}}'
    answer = await front.post_json("/v1/batches", data.encode())
    assert answer.status == 200, answer.body
    assert block.encode() in answer.body
    again = await front.call("GET", f"/v1/batches/{answer.json['id']}")
    assert block.encode() in again.body
    async with front.sdk() as client:
        plain = await client.batches.create(**GOOD, extra_body={"aibrix": {"client": {"max_concurrency": 22}}})
        assert plain.aibrix == {"client": {"max_concurrency": 22}}  # type: ignore[attr-defined]


async def test_nulls_and_other_windows_and_endpoints(front: Front) -> None:
    nothing = {"metadata": None, "aibrix": None, "output_expires_after": None}
    body = GOOD | nothing | {"completion_window": "1d12h", "endpoint": "/v1/rerank"}
    answer = await front.post_json("/v1/batches", body)
    assert answer.status == 200, answer.body
    assert (answer.json["completion_window"], answer.json["endpoint"]) == ("1d12h", "/v1/rerank")
    assert answer.json["expires_at"] == answer.json["created_at"] + 36 * 3600
    assert (answer.json["metadata"], answer.json["aibrix"]) == (None, None)


CASES: list[tuple[dict[str, Any], str, str, str]] = [
    (
        {"endpoint": "/v1/invalid/endpoint"},
        "invalid_value",
        "endpoint",
        "Invalid value: '/v1/invalid/endpoint'. Supported",
    ),
    ({"completion_window": ""}, "", "completion_window", "completion_window"),
    ({"completion_window": "soon"}, "invalid_value", "completion_window", "completion_window"),
    (
        {"metadata": {"tags": ["a"]}},
        "invalid_type",
        "metadata.tags",
        "Invalid type for 'metadata.tags': expected a string, but got an array instead.",
    ),
    (
        {"metadata": {f"k{n}": "v" for n in range(17)}},
        "object_above_max_properties",
        "metadata",
        "Invalid 'metadata': too many properties. Expected an object with at most 16 properties, but got an object with "
        "17 properties instead.",
    ),
    (
        {"metadata": {"k": "x" * 513}},
        "string_above_max_length",
        "metadata.k",
        "Expected a string with maximum length 512, but got a string with length 513 instead.",
    ),
    ({"metadata": {"k" * 65: "x"}}, "string_above_max_length", "", "64"),
    (
        {"output_expires_after": {"anchor": "created_at", "seconds": 3599}},
        "integer_below_min_value",
        "output_expires_after.seconds",
        "3600",
    ),
    (
        {"output_expires_after": {"anchor": "created_at", "seconds": 2_592_001}},
        "integer_above_max_value",
        "output_expires_after.seconds",
        "2592000",
    ),
    ({"aibrix": {"colour": 1}}, "unknown_parameter", "aibrix.colour", "Unknown parameter: 'aibrix.colour'."),
    ({"aibrix": {"client": {"max_concurrency": 0}}}, "invalid_value", "aibrix.client.max_concurrency", ""),
    ({"aibrix": "x"}, "invalid_type", "aibrix", "expected an object, but got a string instead."),
    ({"colour": "red"}, "unknown_parameter", "colour", "Unknown parameter: 'colour'."),
    ({"input_file_id": 5}, "invalid_type", "input_file_id", "expected a string, but got an integer instead."),
    ({"input_file_id": "a\0b"}, "invalid_value", "input_file_id", "NUL"),
]


@pytest.mark.parametrize(("change", "code", "param", "text"), CASES)
async def test_a_wrong_create(front: Front, change: dict[str, Any], code: str, param: str, text: str) -> None:
    answer = await front.post_json("/v1/batches", GOOD | change)
    assert answer.status == 400, answer.body
    assert answer.error["type"] == "invalid_request_error"
    assert text in answer.error["message"]
    assert not code or answer.error["code"] == code
    assert not param or answer.error["param"] == param


@pytest.mark.parametrize("name", list(GOOD))
async def test_a_missing_field(front: Front, name: str) -> None:
    answer = await front.post_json("/v1/batches", {key: value for key, value in GOOD.items() if key != name})
    assert answer.status == 400
    assert answer.error == {
        "message": f"Missing required parameter: '{name}'.",
        "type": "invalid_request_error",
        "param": name,
        "code": "missing_required_parameter",
    }


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", None),
        (b"{", None),
        (b"[]", "invalid_type"),
        (b'{"endpoint":"\xff"}', None),
        (b'{"endpoint":"\\ud800"}', None),
        (b'{"endpoint":"a\x00"}', None),
        (b'{"aibrix":' + b"[" * 100_000 + b"]" * 100_000 + b"}", None),
        (b'{"aibrix":' + b'{"a":' * 100_000 + b"1" + b"}" * 100_000 + b"}", None),
        (b'{"endpoint":"a","endpoint":"b"}', "duplicate_parameter"),
        (b'{"input_file_id":"f","endpoint":"/v1/embeddings","completion_window":"24h","aibrix":{"resource_allocation":{"a":'
         + b"[" * 500 + b"]" * 500 + b"}}}", "invalid_type"),
    ],
)  # fmt: skip
async def test_a_body_that_is_no_json_object(front: Front, body: bytes, code: str | None) -> None:
    answer = await front.post_json("/v1/batches", body)
    assert answer.status == 400, answer.body
    assert answer.error["code"] == code


async def test_unknown_batches(front: Front) -> None:
    for id in ("batch_none", "%00", "a%2Fb", "x" * 300):
        for method, path in (("GET", ""), ("POST", "/cancel")):
            answer = await front.call(method, f"/v1/batches/{id}{path}")
            assert answer.status == 404
            assert "No batch found with id '" in answer.error["message"]


async def test_an_idempotency_key_makes_one_batch(front: Front) -> None:
    key = {"Idempotency-Key": "b-1"}
    first, again = await front.post_json("/v1/batches", GOOD, **key), await front.post_json("/v1/batches", GOOD, **key)
    assert first.json["id"] == again.json["id"]
    other = await front.post_json("/v1/batches", GOOD | {"completion_window": "2h"}, **key)
    assert (other.status, other.headers["x-should-retry"]) == (409, "false")
    assert (await front.post_json("/v1/batches", GOOD)).json["id"] != first.json["id"]
    assert (await front.post_json("/v1/batches", GOOD, **{"Idempotency-Key": "x" * 256})).status == 400


async def test_lists(tmp_path: Path) -> None:
    async with fronting(settings_for(tmp_path)) as front, front.sdk() as client:
        empty = await client.batches.list()
        assert (empty.data, empty.has_more) == ([], False)
        ids = [(await front.post_json("/v1/batches", GOOD)).json["id"] for _ in range(7)][::-1]
        assert [batch.id async for batch in client.batches.list(limit=2)] == ids
        assert [batch.id async for batch in client.batches.list(limit=0)] == ids
        page = (await front.call("GET", f"/v1/batches?limit=3&after={ids[1]}")).json
        assert [batch["id"] for batch in page["data"]] == ids[2:5]
        assert (page["first_id"], page["last_id"], page["has_more"]) == (ids[2], ids[4], True)
        assert (await front.call("GET", "/v1/batches?after=batch_none")).json["data"] == []
        for query in ("limit=101", "limit=-1", "limit=x"):
            assert (await front.call("GET", f"/v1/batches?{query}")).status == 400


async def test_models_with_slashes(front: Front) -> None:
    async with aio.insecure_channel(front.settings.metadata_addr) as channel:
        runner = RunnerInfo(id="r", version="1", models=["org/model-name", "plain"], slot_count=1)
        await RunnerRegistryServiceStub(channel).ReportRunner(ReportRunnerRequest(runner=runner))
    async with front.sdk() as client:
        assert {model.id async for model in client.models.list()} == {"org/model-name", "plain"}
        found = await client.models.retrieve("org/model-name")
        assert (found.id, found.object) == ("org/model-name", "model")
        with pytest.raises(openai.NotFoundError) as caught:
            await client.models.retrieve("org/none")
        assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
    for path in ("org/model-name", "org%2Fmodel-name", "org/model-name/", "plain", "plain/"):
        assert (await front.call("GET", f"/v1/models/{path}")).status == 200
    assert (await front.call("GET", "/v1/models/")).json["object"] == "list"
    assert (await front.call("DELETE", "/v1/models/plain")).status == 405


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
BLOCKS = st.fixed_dictionaries(
    {},
    optional={
        "job_id": JSON,
        "model": JSON,
        "runtime": st.fixed_dictionaries(
            {"target": st.sampled_from(["External", "Local", ""]) | JSON, "options": JSON}
        ),
        "client": st.dictionaries(st.sampled_from(["max_concurrency", "adaptive_concurrency", "retry_policy"]), JSON),
        "model_template": st.fixed_dictionaries({"name": JSON}, optional={"spec": JSON}),
        "profile": JSON,
    },
)
BODIES = st.fixed_dictionaries(
    {
        "input_file_id": st.just("file-none") | JSON,
        "endpoint": st.sampled_from(["/v1/chat/completions", "/v1/embeddings"]) | JSON,
        "completion_window": st.sampled_from(["24h", "1min", "9999999d"])
        | st.from_regex(r"\d+[dh]", fullmatch=True)
        | JSON,
    },
    optional={
        "metadata": st.dictionaries(st.text(max_size=70), st.text(max_size=20), max_size=18) | JSON,
        "output_expires_after": st.fixed_dictionaries({"anchor": st.just("created_at"), "seconds": st.integers()})
        | JSON,
        "aibrix": BLOCKS | JSON,
    },
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(BODIES)
async def test_no_body_makes_the_server_fail(front: Front, body: dict[str, Any]) -> None:
    answer = await front.post_json("/v1/batches", json.dumps(body).encode("utf-8", "surrogatepass"))
    assert answer.status in {200, 400}, (answer.status, answer.body)
    if answer.status == 400:
        assert answer.error["message"]
    else:
        assert set(answer.json) == KEYS
