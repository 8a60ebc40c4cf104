"""Every way to write a block wrongly, through the front: a 400 with the field's path, and nothing stored."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.contracts.blocks import ABSENT, OPTIONAL, RIGHT, TYPE, UNKNOWN, VALUE, WRONG, Wrong, changed
from tests.gateway.front import Front

pytestmark = pytest.mark.asyncio(loop_scope="module")
CODES = {ABSENT, TYPE, UNKNOWN, VALUE}


def order(block: Any) -> dict[str, Any]:
    return {
        "input_file_id": "file-none",
        "endpoint": "/v1/chat/completions",
        "completion_window": "24h",
        "aibrix": block,
    }


async def count(front: Front) -> int:
    answer = await front.call("GET", "/v1/batches?limit=100")
    return len(answer.json["data"])


async def test_the_table_is_long_and_without_repetition() -> None:
    assert len(WRONG) >= 120
    assert len({json.dumps(row.block(), sort_keys=True) for row in WRONG}) == len(WRONG)


@pytest.mark.parametrize("row", WRONG, ids=[row.id for row in WRONG])
async def test_a_wrong_block_is_refused_by_name(front: Front, row: Wrong) -> None:
    before = await count(front)
    answer = await front.post_json("/v1/batches", order(row.block()))
    assert answer.status == 400, answer.body
    error = answer.error
    assert (error["param"], error["code"], error["type"]) == (row.named(), row.code, "invalid_request_error")
    assert len(error["message"]) < 2000
    assert await count(front) == before


async def test_the_right_one_passes_and_comes_back_as_it_was(front: Front) -> None:
    text = json.dumps(order(RIGHT), indent=1).replace('"adaptive_max_factor": 16', '"adaptive_max_factor": 16.0')
    answer = await front.post_json("/v1/batches", text.encode())
    assert answer.status == 200, answer.body
    assert b'"adaptive_max_factor":16.0' in answer.body.replace(b" ", b"")
    assert answer.json["aibrix"] == RIGHT
    again = await front.call("GET", f"/v1/batches/{answer.json['id']}")
    assert again.json["aibrix"] == RIGHT


@pytest.mark.parametrize("number", ["1e999", "-1e999", "[1e999]", '{"x": [1e999]}', "NaN", "1" * 6000])
async def test_a_number_that_is_none_is_refused(front: Front, number: str) -> None:
    text = json.dumps(order(RIGHT)).replace('"seed": 7', f'"seed": {number}')
    answer = await front.post_json("/v1/batches", text.encode())
    assert answer.status == 400, answer.body
    assert answer.error["param"] in (None, "aibrix", "aibrix.model_template.spec.engine_args.seed")
    assert len(answer.error["message"]) < 500


async def test_an_operators_command_needs_no_template_and_null_is_none(front: Front) -> None:
    block = changed(RIGHT, ["runtime", "options"], {"command": None})
    block["model_template"]["spec"]["engine"] = {"type": "trtllm"}
    block["model_template"]["spec"]["engine_args"] = {}
    block["model_template"].pop("overrides")
    answer = await front.post_json("/v1/batches", order(block))
    assert (answer.status, answer.error["param"]) == (400, "aibrix.model_template.spec.engine.type")


@pytest.mark.parametrize("path", OPTIONAL)
async def test_null_is_as_if_it_was_not_there(front: Front, path: str) -> None:
    block = changed(RIGHT, path.split("."), None)
    answer = await front.post_json("/v1/batches", order(block))
    assert answer.status == 200, answer.body
    assert answer.json["aibrix"] == block


@pytest.mark.parametrize("field", ["job_id", "model", "runtime", "resource_allocation", "profile", "client"])
async def test_null_and_absence_are_the_same_and_both_come_back(front: Front, field: str) -> None:
    base = {"model": "m", "runtime": {"target": "External"}} if field != "runtime" else {"model": "m"}
    given = base | {field: None}
    if field == "runtime":
        given["client"] = {"max_concurrency": None}
    answer = await front.post_json("/v1/batches", order(given))
    assert answer.status == 200, answer.body
    assert answer.json["aibrix"] == given


async def test_a_block_of_more_than_a_mebibyte_is_refused(front: Front) -> None:
    block = changed(RIGHT, ["resource_allocation", "notes"], "x" * (1024 * 1024))
    answer = await front.post_json("/v1/batches", order(block))
    assert (answer.status, answer.error["param"]) == (400, "aibrix")


PATHS = sorted({row.at for row in WRONG if row.at and len(row.at) < 100})
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(path=st.sampled_from(PATHS), value=json_values)
async def test_any_value_anywhere_is_taken_or_refused_by_name(front: Front, path: str, value: Any) -> None:
    answer = await front.post_json("/v1/batches", order(changed(RIGHT, path.split("."), value)))
    if answer.status == 200:
        return
    assert answer.status == 400, answer.body
    assert answer.error["code"] in CODES | {"integer_above_max_value", "integer_below_min_value"}
    # The field, what is in it, or what it stands in: never another part of the block.
    assert answer.error["param"].split(".")[:2] == ["aibrix", path.split(".", maxsplit=1)[0]]
