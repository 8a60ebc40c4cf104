"""Uploads in parts."""

from __future__ import annotations

import asyncio
import hashlib
from typing import Any

import openai
import pytest

from tests.gateway.front import LINE, Front, field, file, form

pytestmark = pytest.mark.asyncio(loop_scope="module")
DATA = LINE * 3000


async def create(front: Front, size: int = len(DATA), purpose: str = "batch", **more: Any) -> str:
    body = {"bytes": size, "filename": "big.jsonl", "mime_type": "application/jsonl", "purpose": purpose} | more
    answer = await front.post_json("/v1/uploads", body)
    assert answer.status == 200, answer.body
    id: str = answer.json["id"]
    return id


async def add(front: Front, upload_id: str, data: bytes) -> str:
    answer = await front.post_form(f"/v1/uploads/{upload_id}/parts", form(file(data, "upload", "data")))
    assert answer.status == 200, answer.body
    assert set(answer.json) == {"id", "object", "created_at", "upload_id"}
    id: str = answer.json["id"]
    return id


async def test_the_sdk_uploads_in_chunks(front: Front) -> None:
    async with front.sdk() as client:
        done = await client.uploads.upload_file_chunked(
            file=DATA, filename="big.jsonl", bytes=len(DATA), mime_type="application/jsonl", purpose="batch",
            part_size=100_000, md5=hashlib.md5(DATA).hexdigest(),
        )  # fmt: skip
        assert (done.status, done.bytes, done.filename, done.purpose) == ("completed", len(DATA), "big.jsonl", "batch")
        assert done.expires_at == done.created_at + 3600
        assert done.file is not None
        assert (await client.files.retrieve(done.file.id)).bytes == len(DATA)
        assert (await client.files.content(done.file.id)).content == DATA


async def test_the_order_of_the_ids_is_the_order_of_the_file(front: Front) -> None:
    pieces = [DATA[:50_000], DATA[50_000:51_000], DATA[51_000:]]
    id = await create(front)
    ids = dict(zip(range(3), await asyncio.gather(*(add(front, id, piece) for piece in pieces)), strict=True))
    async with front.sdk() as client:
        done = await client.uploads.complete(id, part_ids=[ids[0], ids[1], ids[2]])
        assert done.file is not None
        assert (await client.files.content(done.file.id)).content == DATA


async def test_what_cannot_be_completed_leaves_no_file(front: Front) -> None:
    id = await create(front)
    part, rest = await add(front, id, DATA[:100]), await add(front, id, DATA[100:])
    before = await front.stored()
    good = [part, rest]
    cases: list[tuple[dict[str, Any], str | None, str]] = [
        ({}, "missing_required_parameter", "part_ids"),
        ({"part_ids": "x"}, "invalid_type", "part_ids"),
        ({"part_ids": [1]}, "invalid_type", "part_ids[0]"),
        ({"part_ids": ["x"] * 10_001}, "array_above_max_length", "part_ids"),
        ({"part_ids": [part]}, "invalid_value", "part_ids"),
        ({"part_ids": [part, part]}, "invalid_value", "part_ids"),
        ({"part_ids": [part, "part_x"]}, "invalid_value", "part_ids"),
        ({"part_ids": good, "md5": "0" * 32}, "invalid_value", "md5"),
        ({"part_ids": good, "md5": "x"}, "invalid_value", "md5"),
        ({"part_ids": good[::-1]}, "invalid_json_line", "file"),
        ({"part_ids": good, "colour": 1}, "unknown_parameter", "colour"),
    ]
    for body, code, param in cases:
        answer = await front.post_json(f"/v1/uploads/{id}/complete", body)
        assert answer.status == 400, body
        assert (answer.error["code"], answer.error["param"]) == (code, param)
    assert await front.stored() == before
    assert (await front.post_json(f"/v1/uploads/{id}/complete", {"part_ids": good})).status == 200


async def test_a_completed_upload_takes_nothing_more(front: Front) -> None:
    id = await create(front, 5, "user_data")
    part = await add(front, id, b"hello")
    body = {"part_ids": [part], "md5": None}
    first = await front.post_json(f"/v1/uploads/{id}/complete", body)
    assert first.json["file"]["bytes"] == 5
    again = await front.post_json(f"/v1/uploads/{id}/complete", body)
    late = await front.post_form(f"/v1/uploads/{id}/parts", form(file(b"x", "upload", "data")))
    cancelled = await front.post_json(f"/v1/uploads/{id}/cancel", b"")
    for refused in (again, late, cancelled):
        assert refused.status == 409
        assert refused.headers["x-should-retry"] == "false"
        assert "completed" in refused.error["message"]
    retried = await front.post_json(f"/v1/uploads/{id}/complete", body, **{"x-stainless-retry-count": "1"})
    assert (retried.status, retried.json) == (200, first.json)


async def test_a_cancelled_upload(front: Front) -> None:
    id = await create(front)
    async with front.sdk() as client:
        done = await client.uploads.cancel(id)
        assert (done.status, done.file) == ("cancelled", None)
        with pytest.raises(openai.ConflictError):
            await client.uploads.parts.create(id, data=b"x")
        assert (await client.uploads.cancel(id)).status == "cancelled"


@pytest.mark.parametrize(
    ("body", "status", "code", "param"),
    [
        (form(field("data", "x")), 400, "missing_required_parameter", "data"),
        (form(file(b"x", "upload", "file")), 400, "missing_required_parameter", "data"),
        (form(), 400, "missing_required_parameter", "data"),
        (form(file(b"x", "u", "data"), file(b"x", "u", "data")), 400, "invalid_value", "data"),
        (form(file(b"x", "u", "data"), end=b""), 400, "invalid_multipart", None),
        (
            form(file(b"x", "u", "data", extra="Content-Transfer-Encoding: base64\r\n")),
            415,
            "unsupported_encoding",
            None,
        ),
    ],
)
async def test_a_wrong_part_leaves_nothing(
    front: Front, body: bytes, status: int, code: str, param: str | None
) -> None:
    id = await create(front)
    before = await front.stored()
    answer = await front.post_form(f"/v1/uploads/{id}/parts", body)
    assert (answer.status, answer.error["code"], answer.error["param"]) == (status, code, param)
    assert await front.stored() == before


@pytest.mark.parametrize(
    ("change", "code", "param"),
    [
        ({"bytes": None}, "invalid_type", "bytes"),
        ({"bytes": "5"}, "invalid_type", "bytes"),
        ({"bytes": 0}, "integer_below_min_value", "bytes"),
        ({"bytes": 10**12}, "integer_above_max_value", "bytes"),
        ({"bytes": 209_715_201}, "integer_above_max_value", "bytes"),
        ({"purpose": "fun"}, "invalid_value", "purpose"),
        ({"filename": ""}, "invalid_value", "filename"),
        ({"filename": "x" * 256}, "string_above_max_length", "filename"),
        ({"expires_after": {"anchor": "created_at", "seconds": 1}}, "integer_below_min_value", "expires_after.seconds"),
        ({"colour": "red"}, "unknown_parameter", "colour"),
    ],
)
async def test_a_wrong_create(front: Front, change: dict[str, Any], code: str, param: str) -> None:
    body = {"bytes": 5, "filename": "a", "mime_type": "text/plain", "purpose": "batch"} | change
    answer = await front.post_json("/v1/uploads", body)
    assert (answer.status, answer.error["code"], answer.error["param"]) == (400, code, param)


async def test_unknown_uploads(front: Front) -> None:
    part = form(file(b"x", "u", "data"))
    for answer in (
        await front.post_form("/v1/uploads/upload_x/parts", part),
        await front.post_json("/v1/uploads/upload_x/complete", {"part_ids": []}),
        await front.post_json("/v1/uploads/upload_x/cancel", b""),
        await front.post_json("/v1/uploads/%00/cancel", b""),
    ):
        assert answer.status == 404
        assert answer.error["param"] == "upload_id"
    assert (await front.call("GET", "/v1/uploads/upload_x")).status == 404


async def test_an_idempotency_key_makes_one_upload(front: Front) -> None:
    body = {"bytes": 5, "filename": "a", "mime_type": "text/plain", "purpose": "user_data"}
    key = {"Idempotency-Key": "up-1"}
    first, again = await front.post_json("/v1/uploads", body, **key), await front.post_json("/v1/uploads", body, **key)
    assert first.json == again.json
    other = await front.post_json("/v1/uploads", body | {"bytes": 6}, **key)
    assert (other.status, other.headers["x-should-retry"]) == (409, "false")
    part = await add(front, first.json["id"], b"hello")
    done = await front.post_json(f"/v1/uploads/{first.json['id']}/complete", {"part_ids": [part]})
    assert (await front.post_json("/v1/uploads", body, **key)).json == done.json
