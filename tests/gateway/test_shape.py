"""JSON bodies: what is refused, in which words, and that nothing but InvalidArgument ever comes out."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.openai import COMPLETE_UPLOAD, CREATE_BATCH, parse_create_batch
from gateway.shape import UNPARSABLE, parse
from services.kit.errors import InvalidArgument

GOOD = {"input_file_id": "file-1", "endpoint": "/v1/embeddings", "completion_window": "24h"}


def body(**more: Any) -> bytes:
    return json.dumps(GOOD | more).encode()


def without(name: str) -> bytes:
    return json.dumps({key: value for key, value in GOOD.items() if key != name}).encode()


@pytest.mark.parametrize(
    ("data", "code", "param", "text"),
    [
        (b"", None, None, UNPARSABLE),
        (b"{", None, None, UNPARSABLE),
        (b'{"a":1}x', None, None, UNPARSABLE),
        (b'{"a":NaN}', None, None, UNPARSABLE),
        (b"\xff\xfe", None, None, UNPARSABLE),
        (b'{"endpoint":"\xff"}', None, None, UNPARSABLE),
        (b'{"endpoint":"a\x00b"}', None, None, UNPARSABLE),
        (b'{"\\ud800":1}', None, None, UNPARSABLE),
        (b'{"aibrix":' + b"[" * 100_000 + b"]" * 100_000 + b"}", None, None, UNPARSABLE),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, None, None, UNPARSABLE),
        (
            b"[" * 100_000,
            "invalid_type",
            None,
            "Invalid type for the body: expected an object, but got an array instead.",
        ),
        (b"[]", "invalid_type", None, "Invalid type for the body: expected an object, but got an array instead."),
        (b" 12", "invalid_type", None, "Invalid type for the body: expected an object, but got an integer instead."),
        (b"{}", "missing_required_parameter", "input_file_id", "Missing required parameter: 'input_file_id'."),
        (without("endpoint"), "missing_required_parameter", "endpoint", "Missing required parameter: 'endpoint'."),
        (
            body(completion_window=None),
            "invalid_type",
            "completion_window",
            "Invalid type for 'completion_window': expected a string, but got null instead.",
        ),
        (
            body(input_file_id=["file-1"]),
            "invalid_type",
            "input_file_id",
            "Invalid type for 'input_file_id': expected a string, but got an array instead.",
        ),
        (
            body(metadata={"tags": ["a"]}),
            "invalid_type",
            "metadata.tags",
            "Invalid type for 'metadata.tags': expected a string, but got an array instead.",
        ),
        (
            body(metadata="x"),
            "invalid_type",
            "metadata",
            "Invalid type for 'metadata': expected an object, but got a string instead.",
        ),
        (body(metadata={"a": True}), "invalid_type", "metadata.a", "got a boolean instead."),
        (body(metadata={"a": None}), "invalid_type", "metadata.a", "got null instead."),
        (body(metadata={"a": 1.5}), "invalid_type", "metadata.a", "got a decimal instead."),
        (body(aibrix=[]), "invalid_type", "aibrix", "expected an object, but got an array instead."),
        (body(colour="red"), "unknown_parameter", "colour", "Unknown parameter: 'colour'."),
        (
            body(output_expires_after={"seconds": 3600}),
            "missing_required_parameter",
            "output_expires_after.anchor",
            "Missing required parameter: 'output_expires_after.anchor'.",
        ),
        (
            body(output_expires_after={"anchor": "created_at", "seconds": 3600, "x": 1}),
            "unknown_parameter",
            "output_expires_after.x",
            "Unknown parameter: 'output_expires_after.x'.",
        ),
        (
            body(output_expires_after={"anchor": "created_at", "seconds": "3600"}),
            "invalid_type",
            "output_expires_after.seconds",
            "expected an integer, but got a string instead.",
        ),
        (
            body(output_expires_after={"anchor": "created_at", "seconds": 3600.5}),
            "invalid_type",
            "output_expires_after.seconds",
            "expected an integer, but got a decimal instead.",
        ),
        (
            body(output_expires_after={"anchor": "created_at", "seconds": 10**30}),
            "integer_above_max_value",
            "output_expires_after.seconds",
            "integer out of range",
        ),
        (
            body(output_expires_after={"anchor": "now", "seconds": 3600}),
            "invalid_value",
            "output_expires_after.anchor",
            "Invalid value: 'now'. Supported values are: 'created_at'.",
        ),
        (body().replace(b'"/v1/embeddings"', b'"\\ud800"'), None, None, UNPARSABLE),
        (body(endpoint="a\0b"), "invalid_value", "endpoint", "NUL"),
        (body(**{"a" * 500: 1}), "unknown_parameter", "a" * 100, ""),
    ],
)
def test_what_is_wrong_is_said_in_openais_words(data: bytes, code: str | None, param: str | None, text: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        parse_create_batch(data)
    assert (caught.value.context.get("code"), caught.value.context.get("param")) == (code, param)
    assert text in caught.value.message


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b'{"endpoint":"a","endpoint":"a"}', "endpoint"),
        (b'{"endpoint":"a","endpoint":"b","aibrix":{}}', "endpoint"),
        (b'{"endpoint":"a", "aibrix":{} , "endpoint" : "a" }', "endpoint"),
        (b'{"endpoint":"a","\\u0065ndpoint":"a"}', "endpoint"),
        (b'{"metadata":1,"metadata":12}', "metadata"),
        (b'{"metadata":12,"metadata":1}', "metadata"),
        (b'{"a":1,"b":2,"a":1,"b":2}', "a"),
    ],
)
def test_a_member_that_is_given_twice_is_refused(data: bytes, name: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        parse(data, CREATE_BATCH)
    assert caught.value.context == {"code": "duplicate_parameter", "param": name}


def test_the_block_and_the_metadata_keep_their_bytes() -> None:
    block = '{"job_id" :"j",  "client":{"max_concurrency":22,"x":1.0,"y":1e2,"a":"\\u00e9","a":"é"}}'
    data = body(metadata={"k": "v"})[:-1] + f',"aibrix":{block}'.encode() + b"}"
    message = parse_create_batch(data)
    assert message.aibrix_json == block
    assert json.loads(message.metadata_json) == {"k": "v"}


def test_null_is_as_good_as_absent() -> None:
    message = parse_create_batch(body(metadata=None, aibrix=None, output_expires_after=None))
    present = [message.HasField(name) for name in ("metadata_json", "aibrix_json", "output_expires_after_s")]
    assert present == [False, False, False]


def test_part_ids_are_strings() -> None:
    assert parse(b'{"part_ids":["a","b"],"md5":null}', COMPLETE_UPLOAD) == {"part_ids": ["a", "b"]}
    with pytest.raises(InvalidArgument, match=r"part_ids\[1\]"):
        parse(b'{"part_ids":["a",1]}', COMPLETE_UPLOAD)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
NAMES = st.sampled_from([*CREATE_BATCH, "x"]) | st.text()


@given(st.dictionaries(NAMES, JSON, max_size=6))
def test_every_object_is_taken_or_refused(members: dict[str, Any]) -> None:
    try:
        parse_create_batch(json.dumps(members).encode("utf-8", "surrogatepass"))
    except InvalidArgument as error:
        assert error.message  # noqa: PT017 - both ends are fine; anything else is not


@given(st.binary() | st.text().map(str.encode))
def test_every_body_is_taken_or_refused(data: bytes) -> None:
    try:
        parse(data, CREATE_BATCH)
    except InvalidArgument as error:
        assert error.message  # noqa: PT017


@given(st.lists(st.tuples(st.sampled_from("abc"), JSON), max_size=5), st.sampled_from(["", " ", "\n\t "]))
def test_duplicates_are_found_wherever_they_stand(pairs: list[tuple[str, Any]], space: str) -> None:
    text = "{" + ",".join(f"{space}{json.dumps(k)}{space}:{space}{json.dumps(v)}{space}" for k, v in pairs) + "}"
    names = [name for name, _ in pairs]
    if not names:
        assert parse(text.encode(), {}) == {}
        return
    with pytest.raises(InvalidArgument) as caught:
        parse(text.encode(), {})
    twice = len(set(names)) != len(names)
    assert caught.value.context["code"] == ("duplicate_parameter" if twice else "unknown_parameter")
