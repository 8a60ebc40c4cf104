"""Lines of the result files."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from services.runner.domain import Usage
from services.runner.inference.outcome import Kind, Outcome
from services.runner.records import UsageSum, error_line, failure_line, output_line


def ok(body: bytes, request_id: str | None = None) -> Outcome:
    return Outcome(Kind.OK, status=200, body=body, answer=orjson.loads(body), request_id=request_id)


def test_an_answer_stands_in_its_line_byte_for_byte() -> None:
    body = '{"id":"chatcmpl-1", "n":1.50, "text":"ä\\n"}'.encode()
    line = output_line(b'"caf\\u00e9"', ok(body))
    assert line.count(b"\n") == 1
    assert body in line
    parsed = orjson.loads(line)
    assert list(parsed) == ["id", "custom_id", "response", "error"]
    assert parsed["id"].startswith("batch_req_")
    assert parsed["custom_id"] == "café"
    assert parsed["response"] == {"status_code": 200, "request_id": "chatcmpl-1", "body": orjson.loads(body)}
    assert parsed["error"] is None


@pytest.mark.parametrize("space", [b"\n", b"\r\n", b"\r"])
def test_an_answer_with_line_breaks_becomes_one_line(space: bytes) -> None:
    line = output_line(b'"a"', ok(b'{"id":' + space + b'"x"}' + space))
    assert len(line.splitlines()) == 1
    assert orjson.loads(line)["response"]["body"] == {"id": "x"}


def test_the_header_names_the_request_even_if_it_is_odd() -> None:
    parsed = orjson.loads(output_line(b'"a"', ok(b'{"id":7}', request_id='"\\x')))
    assert parsed["response"]["request_id"] == '"\\x'
    assert orjson.loads(output_line(b'"a"', ok(b'{"id":7}')))["response"]["request_id"] == ""


@pytest.mark.parametrize(
    ("body", "shown"),
    [
        (b'{"error":{"message":"no"}}', {"error": {"message": "no"}}),
        (b"<html>", {"error": {"message": "<html>", "type": "engine_error", "param": None, "code": None}}),
        (b"", {"error": {"message": "", "type": "engine_error", "param": None, "code": None}}),
        (b"[1]", {"error": {"message": "[1]", "type": "engine_error", "param": None, "code": None}}),
        (b"\xff", {"error": {"message": "�", "type": "engine_error", "param": None, "code": None}}),
    ],
)
def test_an_http_error_has_a_response_and_no_error(body: bytes, shown: dict[str, Any]) -> None:
    parsed = orjson.loads(error_line(b'"a"', Outcome(Kind.HTTP_ERROR, status=400, body=body)))
    assert parsed["response"]["status_code"] == 400
    assert parsed["response"]["body"] == shown
    assert parsed["error"] is None


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (Kind.TIMEOUT, "request_timeout"),
        (Kind.REFUSED, "connection_error"),
        (Kind.DISCONNECTED, "connection_error"),
        (Kind.NO_ENDPOINT, "no_endpoint"),
        (Kind.INVALID, "invalid_response"),
        (Kind.REDIRECT, "invalid_response"),
    ],
)
def test_no_answer_has_an_error_and_no_response(kind: Kind, code: str) -> None:
    parsed = orjson.loads(error_line(b'"a"', Outcome(kind, detail="why")))
    assert parsed["response"] is None
    assert parsed["error"] == {"code": code, "message": "why"}


def test_every_line_has_its_own_id() -> None:
    assert len({failure_line(b'"a"', "c", "m") for _ in range(100)}) == 100


@pytest.mark.parametrize(
    ("usage", "counted"),
    [
        (
            {
                "prompt_tokens": 10,
                "completion_tokens": 5,
                "total_tokens": 15,
                "prompt_tokens_details": {"cached_tokens": 4},
                "completion_tokens_details": {"reasoning_tokens": 2},
            },
            Usage(input_tokens=10, cached_tokens=4, output_tokens=5, reasoning_tokens=2, total_tokens=15),
        ),
        (
            {
                "input_tokens": 1,
                "output_tokens": 2,
                "input_tokens_details": {"cached_tokens": 1},
                "output_tokens_details": {"reasoning_tokens": 1},
            },
            Usage(input_tokens=1, cached_tokens=1, output_tokens=2, reasoning_tokens=1, total_tokens=3),
        ),
        ({"prompt_tokens": 3, "total_tokens": 3}, Usage(input_tokens=3, total_tokens=3)),
        (None, Usage()),
        ("many", Usage()),
        (
            {"prompt_tokens": -1, "completion_tokens": True, "total_tokens": 1 << 70, "prompt_tokens_details": 3},
            Usage(),
        ),
    ],
)
def test_usage_is_what_engines_say(usage: Any, counted: Usage) -> None:
    total = UsageSum()
    total.add({"usage": usage})
    total.add({})
    assert total.sum() == counted
