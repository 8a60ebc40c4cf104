"""The checks of an input file by themselves: bytes in, findings out."""

from __future__ import annotations

import json
import random
import tracemalloc

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.kit.lines import read_index
from services.metadata.validation import ENDPOINTS, Abandoned, Limits, check
from tests.metadata.conftest import CHAT, a_line

LIMITS = Limits(lines=50_000, line_bytes=10 * 1024 * 1024)
GOOD = orjson.dumps(a_line(0))


def found(data, endpoint=CHAT, limits=LIMITS, size=7):
    """Findings, from chunks so small that everything is cut somewhere."""
    return check([data[at : at + size] for at in range(0, len(data), size)], endpoint, limits)


def with_body(**fields):
    body = {"model": "m", "messages": []} | fields
    return orjson.dumps(a_line(1, body={name: value for name, value in body.items() if value is not ...}))


def without(name):
    line = a_line(1)
    del line[name]
    return orjson.dumps(line)


CASES = {
    "not json": (b"nope", "invalid_json_line", None),
    "not an object": (b"[1]", "invalid_json_line", None),
    "a number": (b"1", "invalid_json_line", None),
    "cut": (GOOD[:-1], "invalid_json_line", None),
    "two objects": (GOOD + GOOD, "invalid_json_line", None),
    "nan": (b'{"custom_id": NaN}', "invalid_json_line", None),
    "a NUL byte": (b'{"custom_id": "\0"}', "invalid_json_line", None),
    "only NUL": (b"\0\0\0", "invalid_json_line", None),
    "deep": (b'{"body": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "invalid_json_line", None),
    "deep objects": (b'{"a":' * 50_000 + b"1" + b"}" * 50_000, "invalid_json_line", None),
    "a lone surrogate": (b'{"custom_id": "\\ud800 and more", "body": 1}', "invalid_json_line", None),
    "a lone low surrogate": (b'{"custom_id": "a", "body": {"x": "\\udc00 and more"}}', "invalid_json_line", None),
    "not utf-8": (b'{"custom_id": "\xff"}', "invalid_encoding", None),
    "not utf-8 deep inside": (GOOD.replace(b"question", b"qu\xe4stion"), "invalid_encoding", None),
    "utf-16": (("\ufeff" + GOOD.decode()).encode("utf-16-le"), "invalid_encoding", None),
    "a repeated id": (b'{"custom_id":"a",' + GOOD[1:], "invalid_json_line", "custom_id"),
    "a repeated body": (GOOD[:-1] + b',"body":{}}', "invalid_json_line", "body"),
    "a repeated extra key": (GOOD[:-1] + b',"x":1,"x":2}', "invalid_json_line", "x"),
    "a large envelope": (GOOD[:-1] + b',"x":"' + b"y" * 70_000 + b'"}', "invalid_json_line", None),
    "many keys": (b"{" + b",".join(b'"k%d":1' % n for n in range(100_000)) + b"}", "invalid_json_line", None),
    "no id": (without("custom_id"), "missing_required_parameter", "custom_id"),
    "no method": (without("method"), "missing_required_parameter", "method"),
    "no url": (without("url"), "missing_required_parameter", "url"),
    "no body": (without("body"), "missing_required_parameter", "body"),
    "a null id": (orjson.dumps(a_line(1, custom_id=None)), "missing_required_parameter", "custom_id"),
    "a number as id": (orjson.dumps(a_line(1, custom_id=7)), "invalid_type", "custom_id"),
    "an empty id": (orjson.dumps(a_line(1, custom_id="")), "invalid_value", "custom_id"),
    "GET": (orjson.dumps(a_line(1, method="GET")), "invalid_method", "method"),
    "a number as method": (orjson.dumps(a_line(1, method=1.5)), "invalid_type", "method"),
    "another url": (orjson.dumps(a_line(1, url="/v1/embeddings")), "invalid_url", "url"),
    "a list as body": (orjson.dumps(a_line(1, body=[])), "invalid_type", "body"),
    "no model": (with_body(model=...), "invalid_request", "body.model"),
    "a null model": (with_body(model=None), "invalid_request", "body.model"),
    "a number as model": (with_body(model=3), "invalid_type", "body.model"),
    "an empty model": (with_body(model=""), "invalid_value", "body.model"),
    "no messages": (with_body(messages=...), "invalid_request", "body.messages"),
    "a long model": (with_body(model="m" * 513), "invalid_value", "body.model"),
    "stream": (with_body(stream=True), "streaming_unsupported", "body.stream"),
    "stream as text": (with_body(stream="true"), "invalid_type", "body.stream"),
}


@pytest.mark.parametrize(("line", "code", "param"), CASES.values(), ids=CASES.keys())
def test_a_bad_line(line, code, param):
    findings = found(GOOD.replace(b'"r0"', b'"first"') + b"\n" + line)
    (error,) = findings.errors
    assert (error.code, error.param, error.line) == (code, param, 2)
    assert error.message


def test_messages():
    lines = [b"x", without("custom_id"), with_body(model=...), with_body(stream=True).replace(b"r1", b"r2")]
    assert [error.message for error in found(b"\n".join(lines)).errors] == [
        "This line is not parseable as valid JSON.",
        "Missing required parameter: 'custom_id'.",
        "Model parameter is required.",
        "Chat Completions: Streaming is not supported in the Batch API.",
    ]
    wrong = found(orjson.dumps(a_line(1, custom_id=7)))
    assert wrong.errors[0].message == "Invalid type for 'custom_id': expected a string, but got an integer instead."


def test_what_is_accepted():
    data = b"\xef\xbb\xbf" + b"\r\n \t \r\n\n".join(orjson.dumps(a_line(n)) for n in range(3))
    findings = found(data)
    assert not findings.errors
    assert (findings.count, findings.model) == (3, "m")
    spans = list(read_index(bytes(findings.index)))
    assert [json.loads(data[span.offset : span.offset + span.length])["custom_id"] for span in spans] == [
        "r0",
        "r1",
        "r2",
    ]
    assert not found(with_body(stream=False)).errors
    assert not found(
        GOOD[:-1] + b', "x": ' + b"1" * 6000 + b', "y": 1e999, "z": ' + b"[" * 300 + b"]" * 300 + b"}"
    ).errors
    assert not found(with_body(stream=None)).errors
    assert not found(json.dumps(a_line(1), indent=None, separators=(" , ", " : ")).encode()).errors
    assert not found(with_body(messages=["\ud83d\ude00".encode("utf-16", "surrogatepass").decode("utf-16")])).errors
    assert not found(json.dumps(a_line(1, custom_id="😀", url=CHAT)).replace("/", "\\/").encode()).errors


def test_blank_lines_count_for_places_not_for_requests():
    (error,) = found(b"\n\n" + GOOD + b"\n\nnope\n").errors
    assert error.line == 5


@pytest.mark.parametrize("data", [b"", b"\n", b" \r\n\t\n", b"\xef\xbb\xbf", b"\xef\xbb\xbf\n", b"\xef\xbb"])
def test_an_empty_file(data):
    (error,) = found(data).errors
    assert error.code == ("invalid_encoding" if data == b"\xef\xbb" else "empty_file")


def test_ids_are_unique_and_models_are_one():
    long = "x" * 5000
    lines = [a_line(1), a_line(1), a_line(2, custom_id=long), a_line(3, custom_id=long)]
    lines.append(a_line(4, body={"model": "other", "messages": []}))
    errors = found(b"\n".join(orjson.dumps(line) for line in lines)).errors
    assert [(error.code, error.line) for error in errors] == [
        ("duplicate_custom_id", 2),
        ("duplicate_custom_id", 4),
        ("mismatched_model", 5),
    ]
    assert all(len(error.message) < 300 for error in errors)


def test_all_bad_lines_are_told_in_order_up_to_a_hundred():
    exactly = found(b"nope\n" * 100)
    assert [error.line for error in exactly.errors] == list(range(1, 101))
    more = found(b"nope\n" * 250)
    assert len(more.errors) == 100
    assert [error.line for error in more.errors[:99]] == list(range(1, 100))
    assert more.errors[99].message == "151 more lines have errors."


def test_too_many_lines():
    limits = Limits(lines=3, line_bytes=1000)
    data = b"\n".join(orjson.dumps(a_line(n)) for n in range(4))
    assert [error.code for error in found(data, limits=limits).errors] == ["too_many_tasks"]
    assert not found(data[: data.rindex(b"\n") + 1], limits=limits).errors


def test_a_line_of_60_mb_costs_no_memory():
    limits = Limits(lines=10, line_bytes=1024 * 1024)
    chunk = b"x" * (1024 * 1024)

    def chunks():
        yield GOOD + b"\n"
        for _ in range(60):
            yield chunk
        yield b"\n" + orjson.dumps(a_line(2))

    tracemalloc.start()
    try:
        findings = check(chunks(), CHAT, limits)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert [(error.code, error.line) for error in findings.errors] == [("line_too_large", 2)]
    assert findings.count == 3
    assert peak < 8 * 1024 * 1024


def test_a_line_of_brackets_costs_no_memory():
    line = b'{"custom_id":"a","method":"POST","url":"/v1/chat/completions","body":{"model":"m","messages":['
    line += b"[]," * 3_000_000 + b"[]]}}"
    tracemalloc.start()
    try:
        assert not check([line], CHAT, LIMITS).errors
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 6 * len(line)


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_what_each_endpoint_needs(endpoint):
    needed = ENDPOINTS[endpoint][1]
    body = dict.fromkeys(needed, "x")
    assert not found(orjson.dumps(a_line(1, url=endpoint, body=body)), endpoint).errors
    for name in needed:
        rest = {other: "x" for other in needed if other != name}
        (error,) = found(orjson.dumps(a_line(1, url=endpoint, body=rest)), endpoint).errors
        assert (error.code, error.param) == ("invalid_request", f"body.{name}")


def test_embedding_inputs_are_counted_over_all_lines():
    def line(number, value):
        return orjson.dumps(a_line(number, url="/v1/embeddings", body={"model": "m", "input": value}))

    texts, tokens = ["x"] * 24_999, [[1, 2]] * 24_999
    data = b"\n".join([line(1, texts), line(2, tokens), line(3, [1] * 60_000), line(4, "one")])
    assert not found(data, "/v1/embeddings", size=1 << 16).errors
    errors = found(data + b"\n" + line(5, "more"), "/v1/embeddings", size=1 << 16).errors
    assert [(error.code, error.line) for error in errors] == [("too_many_tasks", 5)]


def test_an_input_of_nothing_but_brackets():
    body = b'{"model": "m", "input": [' + b"[]," * 600_000 + b"[]]}"
    line = b'{"custom_id": "a", "method": "POST", "url": "/v1/embeddings", "body": ' + body + b"}"
    (error,) = found(line, "/v1/embeddings", size=1 << 20).errors
    assert (error.code, error.param) == ("line_too_large", "body.input")


def test_it_stops_when_told():
    with pytest.raises(Abandoned):
        check([GOOD + b"\n"] * 1000, CHAT, LIMITS, lambda: False)


@given(st.binary(max_size=200), st.integers(1, 64))
def test_any_bytes_get_an_answer(data, size):
    findings = found(data, size=size)
    assert findings.errors
    assert all(error.code for error in findings.errors)


@given(st.lists(st.sampled_from([b"\n", b"\r\n", b" ", b"\t", GOOD, b"nope", b"\xef\xbb\xbf"])), st.integers(1, 300))
def test_the_index_is_that_of_a_simple_reading(parts, size):
    data = b"".join(parts)
    findings = found(data, size=size)
    clean = data.removeprefix(b"\xef\xbb\xbf")
    wanted = [line.strip(b" \t\r") for line in clean.split(b"\n")]
    assert findings.count == sum(bool(line) for line in wanted)
    spans = list(read_index(bytes(findings.index)))
    assert all(data[span.offset : span.offset + span.length] == GOOD for span in spans)
    assert len(spans) == (GOOD in wanted)


def test_a_mutated_line_never_breaks_it():
    chance = random.Random(7)
    for _ in range(3000):
        line = bytearray(GOOD)
        for _ in range(chance.randint(1, 4)):
            line[chance.randrange(len(line))] = chance.randrange(256)
        check([bytes(line)], CHAT, LIMITS)
