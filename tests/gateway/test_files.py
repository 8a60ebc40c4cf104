"""Files through the SDK and through raw forms: what goes in comes out, and what is wrong leaves nothing behind."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import Any

import openai
import pytest
import yarl

from tests.gateway.front import LINE, Front, eventually, field, file, form, fronting, settings_for

pytestmark = pytest.mark.asyncio(loop_scope="module")
BATCH = field("purpose", "batch")
USER = field("purpose", "user_data")
KEYS = {"id", "object", "bytes", "created_at", "expires_at", "filename", "purpose", "status", "status_details"}


async def test_every_way_of_the_sdk_to_name_a_file(front: Front, tmp_path: Path) -> None:
    path = tmp_path / "on disk.jsonl"
    path.write_bytes(LINE)
    async with front.sdk() as client:
        opened = path.open("rb")
        given: list[tuple[Any, str]] = [
            (LINE, "upload"),
            (path, "on disk.jsonl"),
            (opened, "on disk.jsonl"),
            (("n.jsonl", LINE), "n.jsonl"),
            (("\u00fc \u4e2d.jsonl", LINE, "application/jsonl"), "\u00fc \u4e2d.jsonl"),
        ]
        for what, name in given:
            made = await client.files.create(file=what, purpose="batch")
            assert (made.filename, made.bytes, made.purpose, made.status) == (name, len(LINE), "batch", "processed")
            assert made.id.startswith("file-")
            assert made._request_id
            assert made.expires_at == made.created_at + 2_592_000
            assert abs(made.created_at - time.time()) < 60
            assert (await client.files.retrieve(made.id)).filename == name
            assert (await client.files.content(made.id)).content == LINE
        opened.close()


async def test_every_key_is_there(front: Front) -> None:
    id = await front.upload(b"x", purpose="user_data")
    made = (await front.call("GET", f"/v1/files/{id}")).json
    assert set(made) == KEYS
    assert made["expires_at"] is None
    assert made["status_details"] is None


async def test_a_file_that_is_given_a_lifetime(front: Front) -> None:
    async with front.sdk() as client:
        made = await client.files.create(
            file=LINE, purpose="batch", expires_after={"anchor": "created_at", "seconds": 3600}
        )
    assert made.expires_at == made.created_at + 3600
    dotted = form(field("expires_after.anchor", "created_at"), file(b"x"), USER, field("expires_after.seconds", "7200"))
    answer = await front.post_form("/v1/files", dotted)
    assert answer.json["expires_at"] == answer.json["created_at"] + 7200


async def test_fields_may_come_after_the_file_and_unknown_ones_are_let_go(front: Front) -> None:
    answer = await front.post_form("/v1/files", form(field("nested[a][]", "1"), file(LINE), field("x", "y"), BATCH))
    assert answer.status == 200
    assert (await front.call("GET", f"/v1/files/{answer.json['id']}/content")).body == LINE


BAD_FORMS: list[tuple[str, bytes, int, str | None, str | None, str]] = [
    ("no file", form(BATCH), 400, "missing_required_parameter", "file", "Missing required parameter: 'file'."),
    ("no purpose", form(file(LINE)), 400, "missing_required_parameter", "purpose", "'purpose'"),
    ("bad purpose", form(field("purpose", "fun"), file(LINE)), 400, "invalid_value", "purpose", "Supported values are"),
    ("a result's", form(field("purpose", "batch_output"), file(LINE)), 400, "invalid_value", "purpose", "Supported"),
    ("two files", form(BATCH, file(LINE), file(LINE)), 400, "invalid_value", "file", "Expected one file"),
    ("two purposes", form(BATCH, USER, file(LINE)), 400, "duplicate_parameter", "purpose", "Duplicate"),
    ("file as text", form(BATCH, field("file", "x")), 400, "invalid_type", "file", "expected a file upload"),
    ("other file", form(BATCH, file(LINE, name="data")), 400, "unknown_parameter", "data", "Unknown parameter"),
    ("no filename", form(BATCH, file(LINE, filename="")), 400, "invalid_value", "file", "filename"),
    ("long name", form(BATCH, file(LINE, filename="x" * 256)), 400, "string_above_max_length", "file", "255"),
    ("NUL in name", form(BATCH, file(LINE, filename="a\0b")), 400, "invalid_value", "file", "NUL"),
    ("NUL in purpose", form(field("purpose", "ba\0tch"), file(LINE)), 400, "invalid_value", "purpose", "NUL"),
    ("empty", form(BATCH, file(b"")), 400, "empty_file", "file", "Invalid file format for Batch API"),
    ("blank", form(BATCH, file(b"\n \r\n")), 400, "empty_file", "file", "Must be .jsonl"),
    ("not JSON", form(BATCH, file(b"a,b,c\n")), 400, "invalid_json_line", "file", "Must be .jsonl"),
    ("not JSON, late", form(file(b"a,b,c\n"), BATCH), 400, "invalid_json_line", "file", "Must be .jsonl"),
    ("not UTF-8", form(BATCH, file(LINE + b"\xff")), 400, "invalid_encoding", "file", "Must be utf-8 encoded"),
    ("not UTF-8, late", form(file(LINE + b"\xff"), BATCH), 400, "invalid_encoding", "file", "Must be utf-8 encoded"),
    ("NUL bytes", form(BATCH, file(b"\0\0\0\n")), 400, "invalid_json_line", "file", "Must be .jsonl"),
    ("deep", form(BATCH, file(b'{"a":' + b"[" * 100_000 + b"\n")), 400, "invalid_json_line", "file", "Must be .jsonl"),
    (
        "half an expiry",
        form(BATCH, field("expires_after[seconds]", "3600"), file(LINE)),
        400,
        "missing_required_parameter",
        "expires_after.anchor",
        "expires_after.anchor",
    ),
    (
        "the other half",
        form(BATCH, field("expires_after[anchor]", "created_at"), file(LINE)),
        400,
        "missing_required_parameter",
        "expires_after.seconds",
        "expires_after.seconds",
    ),
    (
        "expiry of words",
        form(BATCH, field("expires_after[anchor]", "created_at"), field("expires_after[seconds]", "1h"), file(LINE)),
        400,
        "invalid_type",
        "expires_after.seconds",
        "expected an integer",
    ),
    (
        "expiry too short",
        form(BATCH, field("expires_after[anchor]", "created_at"), field("expires_after[seconds]", "60"), file(LINE)),
        400,
        "integer_below_min_value",
        "expires_after.seconds",
        "3600",
    ),
    (
        "expiry of another time",
        form(BATCH, field("expires_after[anchor]", "now"), field("expires_after[seconds]", "3600"), file(LINE)),
        400,
        "invalid_value",
        "expires_after.anchor",
        "Supported values are: 'created_at'.",
    ),
    (
        "encoded part",
        form(BATCH, file(LINE, extra="Content-Encoding: gzip\r\n")),
        415,
        "unsupported_encoding",
        None,
        "",
    ),
    ("cut off", form(BATCH, file(LINE), end=b""), 400, "invalid_multipart", None, "ends before its last boundary"),
    ("cut in the file", form(BATCH, file(LINE))[:-60], 400, "invalid_multipart", None, "ends before"),
    ("empty body", b"", 400, "invalid_multipart", None, ""),
    ("no form", b"hello", 400, "invalid_multipart", None, ""),
]


@pytest.mark.parametrize(
    ("body", "status", "code", "param", "text"), [c[1:] for c in BAD_FORMS], ids=[c[0] for c in BAD_FORMS]
)
async def test_a_wrong_form_is_refused_and_leaves_nothing(
    front: Front, body: bytes, status: int, code: str | None, param: str | None, text: str
) -> None:
    before = await front.stored()
    answer = await front.post_form("/v1/files", body)
    assert answer.status == status, answer.body
    assert (answer.error["code"], answer.error["param"]) == (code, param)
    assert answer.error["type"] == "invalid_request_error"
    assert text in answer.error["message"]
    assert await front.stored() == before


@pytest.mark.parametrize(
    ("content_type", "status"),
    [("multipart/form-data", 400), ("application/json", 415), ("application/x-www-form-urlencoded", 415), ("", 415)],
)
async def test_a_body_that_is_no_form_is_refused(front: Front, content_type: str, status: int) -> None:
    answer = await front.call("POST", "/v1/files", data=b"{}", headers={"Content-Type": content_type})
    assert answer.status == status
    assert answer.error


async def test_a_compressed_body_is_refused(front: Front) -> None:
    answer = await front.post_form("/v1/files", form(BATCH, file(LINE)), **{"Content-Encoding": "gzip"})
    assert answer.status == 415
    assert answer.error["code"] == "unsupported_encoding"


async def test_other_purposes_take_any_bytes(front: Front) -> None:
    for data in (b"", b"\0\xff\r\n--b0undar", os.urandom(3_000_000)):
        id = await front.upload(data, purpose="user_data")
        answer = await front.call("GET", f"/v1/files/{id}/content")
        assert answer.body == data
        assert answer.headers["content-type"] == "application/octet-stream"


async def test_a_deleted_file_is_gone(front: Front) -> None:
    async with front.sdk() as client:
        made = await client.files.create(file=LINE, purpose="batch")
        gone = await client.files.delete(made.id)
        assert (gone.id, gone.deleted, gone.object) == (made.id, True, "file")
        for call in (client.files.retrieve, client.files.content, client.files.delete):
            with pytest.raises(openai.NotFoundError) as caught:
                await call(made.id)
            assert caught.value.body == {
                "message": f"No such File object: {made.id}",
                "type": "invalid_request_error",
                "param": "id",
                "code": None,
            }


@pytest.mark.parametrize("id", ["file-unknown", "a%2F..%2Fb", "%00", "x" * 500, "%ED%A0%80", "%F0%9F%98%80", ".."])
async def test_ids_that_are_none(front: Front, id: str) -> None:
    for method, path in (("GET", ""), ("DELETE", ""), ("GET", "/content")):
        url = yarl.URL(f"{front.url}/v1/files/{id}{path}", encoded=True)
        async with front.session.request(method, url) as response:
            assert response.status == 404
            assert (await response.json())["error"]["type"] == "invalid_request_error"


async def test_an_idempotency_key_makes_one_file(front: Front) -> None:
    body = form(BATCH, file(LINE))
    first = await front.post_form("/v1/files", body, **{"Idempotency-Key": "k-1"})
    stored = await front.stored()
    again = await front.post_form("/v1/files", body, **{"Idempotency-Key": "k-1"})
    assert (first.status, again.status) == (200, 200)
    assert again.json == first.json
    assert await front.stored() == stored
    others = [form(BATCH, file(LINE * 2)), form(BATCH, file(LINE, filename="b")), form(USER, file(LINE))]
    for other in others:
        answer = await front.post_form("/v1/files", other, **{"Idempotency-Key": "k-1"})
        assert answer.status == 409
        assert answer.headers["x-should-retry"] == "false"
        assert answer.error
    assert await front.stored() == stored
    unkeyed = await front.post_form("/v1/files", body)
    assert unkeyed.json["id"] != first.json["id"]


@pytest.mark.parametrize("key", ["", "x" * 256, "a\tb", "\u00ff\u0080"])
async def test_keys_that_are_none(front: Front, key: str) -> None:
    data = (
        f"POST /v1/files HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: multipart/form-data; boundary=b\r\n"
        f"Content-Length: 0\r\nIdempotency-Key: {key}\r\n\r\n"
    )
    answer = await front.raw(data.encode())
    assert answer.status == 400
    assert answer.error["param"] == "Idempotency-Key"


async def test_lists_page_filter_and_sort(tmp_path: Path) -> None:
    async with fronting(settings_for(tmp_path)) as front, front.sdk() as client:
        empty = await client.files.list()
        assert (empty.data, empty.has_more) == ([], False)
        ids = [await front.upload(purpose="batch" if n % 3 else "user_data") for n in range(10)]
        batch = [id for n, id in enumerate(ids) if n % 3]
        pages = [file.id async for file in client.files.list(limit=3, purpose="batch")]
        assert pages == batch[::-1]
        assert [file.id async for file in client.files.list(limit=4, order="asc")] == ids
        assert [file.id async for file in client.files.list(limit=0)] == ids[::-1]
        first = (await front.call("GET", "/v1/files?limit=2")).json
        assert (first["first_id"], first["last_id"], first["has_more"]) == (ids[9], ids[8], True)
        nothing = (await front.call("GET", "/v1/files?after=file-unknown")).json
        assert nothing == {"object": "list", "data": [], "first_id": None, "last_id": None, "has_more": False}


@pytest.mark.parametrize(
    ("query", "code", "param"),
    [
        ("limit=-1", "integer_below_min_value", "limit"),
        ("limit=10001", "integer_above_max_value", "limit"),
        ("limit=99999999999999999999999", "integer_above_max_value", "limit"),
        ("limit=ten", "invalid_type", "limit"),
        ("limit=1.5", "invalid_type", "limit"),
        ("limit=%D9%A1", "invalid_type", "limit"),
        ("order=up", "invalid_value", "order"),
        ("after=%00", "invalid_value", "after"),
        ("purpose=%00", "invalid_value", "purpose"),
    ],
)
async def test_queries_that_are_wrong(front: Front, query: str, code: str, param: str) -> None:
    answer = await front.call("GET", f"/v1/files?{query}")
    assert answer.status == 400
    assert (answer.error["code"], answer.error["param"]) == (code, param)


async def test_a_file_that_is_too_large(tmp_path: Path) -> None:
    settings = settings_for(tmp_path, max_batch_file_bytes=1_000_000, max_file_bytes=2_000_000)
    async with fronting(settings) as front:
        line = b'{"a":"' + b"x" * 1_000 + b'"}\n'
        for body in (form(BATCH, file(line * 1500)), form(file(line * 1500), BATCH), form(USER, file(line * 2500))):
            answer = await front.post_form("/v1/files", body)
            assert answer.status == 413
            assert answer.headers["x-should-retry"] == "false"
            assert answer.headers["connection"] == "close"
            assert answer.error["code"] == "file_too_large"
        assert (await front.post_form("/v1/files", form(USER, file(line * 1500)))).status == 200
        assert len(await front.stored()) == 1
        declared = await front.raw(
            b"POST /v1/files HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: multipart/form-data; boundary=b\r\n"
            b"Content-Length: 9000000000\r\nExpect: 100-continue\r\n\r\n"
        )
        assert declared.status == 413
        async with front.sdk() as client:
            with pytest.raises(openai.APIStatusError) as caught:
                await client.files.create(file=line * 4000, purpose="batch")
            assert caught.value.status_code == 413


async def test_a_client_that_stalls_or_leaves(tmp_path: Path) -> None:
    async with fronting(settings_for(tmp_path, idle_timeout_s=0.3)) as front:
        head = (
            b"POST /v1/files HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: multipart/form-data; boundary=b0undary\r\n"
            b"Content-Length: 90000000\r\n\r\n"
        )
        begun = form(BATCH, file(LINE * 30_000), end=b"")[:-2]
        answer = await front.raw(head + begun)
        assert answer.status == 408
        assert answer.headers["connection"] == "close"
        assert answer.error["code"] == "request_timeout"
        assert await front.stored() == set()

        host, _, port = front.address.rpartition(":")
        _, writer = await asyncio.open_connection(host, int(port))
        writer.write(head + begun)
        await writer.drain()
        writer.transport.abort()
        await eventually(lambda: not [p for p in (front.settings.data_dir / "objects").rglob("*") if p.is_file()])
        assert (await front.call("GET", "/v1/files")).json["data"] == []


async def test_an_interim_answer_is_given_when_the_body_is_wanted(front: Front) -> None:
    host, _, port = front.address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    body = form(BATCH, file(LINE))
    writer.write(
        b"POST /v1/files HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: multipart/form-data; boundary=b0undary\r\n"
        b"Content-Length: %d\r\nExpect: 100-continue\r\n\r\n" % len(body)
    )
    assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    writer.write(body)
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
    writer.close()
