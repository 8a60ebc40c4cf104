from __future__ import annotations

import asyncio
import uuid

import pytest

from brix.metadata.v1 import uploads_pb2 as pb
from brix.type.v1 import file_pb2
from services.kit.errors import AlreadyExists, IllegalTransition, InvalidArgument, NotFound
from tests.metadata.conftest import eventually

Upload = file_pb2.Upload


def create(metadata, **fields):
    asked = {
        "project_id": "default",
        "filename": "big.jsonl",
        "purpose": "batch",
        "mime_type": "application/jsonl",
        "bytes": 6,
    }
    return metadata.uploads.CreateUpload(pb.CreateUploadRequest(**asked | fields))


async def add(metadata, upload, data):
    key = f"uploads/{upload.id}/{uuid.uuid4().hex}"
    await metadata.store.put(key, data)
    request = pb.AddPartRequest(project_id="default", upload_id=upload.id, object_key=key, bytes=len(data))
    return await metadata.uploads.AddPart(request)


def parts(metadata, upload, ids):
    return metadata.uploads.ListParts(pb.ListPartsRequest(project_id="default", upload_id=upload.id, part_ids=ids))


async def complete(metadata, upload, data=b"abcdef"):
    key = f"files/{uuid.uuid4().hex}"
    await metadata.store.put(key, data)
    request = pb.CompleteUploadRequest(project_id="default", upload_id=upload.id, object_key=key)
    return await metadata.uploads.CompleteUpload(request), request


def cancel(metadata, upload):
    return metadata.uploads.CancelUpload(pb.CancelUploadRequest(project_id="default", upload_id=upload.id))


def get(metadata, upload, project_id="default"):
    return metadata.uploads.GetUpload(pb.GetUploadRequest(project_id=project_id, id=upload.id))


async def is_gone(metadata, part):
    async def gone():
        return part.object_key not in await metadata.keys("uploads/")

    await eventually(gone)


async def test_the_whole_way(metadata):
    upload = await create(metadata, expires_after_s=7200)
    assert upload.state == Upload.PENDING
    assert (upload.expire_time.ToDatetime() - upload.create_time.ToDatetime()).total_seconds() == 3600
    second, first = await asyncio.gather(add(metadata, upload, b"def"), add(metadata, upload, b"abc"))
    listed = await parts(metadata, upload, [first.id, second.id])
    assert list(listed.parts) == [first, second]
    done, request = await complete(metadata, upload)
    assert done.upload.state == Upload.COMPLETED
    assert done.upload.file_id == done.file.id
    assert (done.file.filename, done.file.purpose, done.file.bytes) == ("big.jsonl", "batch", 6)
    assert (done.file.expire_time.ToDatetime() - done.file.create_time.ToDatetime()).total_seconds() == 7200
    assert await metadata.uploads.CompleteUpload(request) == done
    assert await get(metadata, upload) == done.upload
    await is_gone(metadata, first)
    await is_gone(metadata, second)


async def test_the_same_part_again(metadata):
    upload = await create(metadata)
    part = await add(metadata, upload, b"abc")
    request = pb.AddPartRequest(project_id="default", upload_id=upload.id, object_key=part.object_key, bytes=part.bytes)
    assert await metadata.uploads.AddPart(request) == part


async def test_parts_must_be_known_differ_and_add_up(metadata):
    upload = await create(metadata)
    part = await add(metadata, upload, b"abc")
    for ids in ([part.id, "part_nope"], [part.id, part.id], [part.id], []):
        with pytest.raises(InvalidArgument) as raised:
            await parts(metadata, upload, ids)
        assert raised.value.context["param"] == "part_ids"
    with pytest.raises(InvalidArgument):
        await complete(metadata, upload, b"abc")


async def test_of_two_completions_one_wins(metadata):
    upload = await create(metadata)
    results = await asyncio.gather(*(complete(metadata, upload) for _ in range(4)), return_exceptions=True)
    assert sum(isinstance(result, IllegalTransition) for result in results) == 3


async def test_cancel(metadata):
    upload = await create(metadata)
    part = await add(metadata, upload, b"abc")
    assert (await cancel(metadata, upload)).state == Upload.CANCELLED
    assert (await cancel(metadata, upload)).state == Upload.CANCELLED
    with pytest.raises(IllegalTransition):
        await add(metadata, upload, b"def")
    with pytest.raises(IllegalTransition):
        await complete(metadata, upload)
    await is_gone(metadata, part)


async def test_an_upload_ends_after_an_hour(metadata):
    upload = await create(metadata)
    part = await add(metadata, upload, b"abcdef")
    metadata.clock.advance(3600)
    assert (await get(metadata, upload)).state == Upload.EXPIRED
    for call in (add(metadata, upload, b"x"), parts(metadata, upload, [part.id]), complete(metadata, upload)):
        with pytest.raises(IllegalTransition):
            await call
    with pytest.raises(IllegalTransition):
        await cancel(metadata, upload)
    await is_gone(metadata, part)


async def test_unknown(metadata):
    upload = await create(metadata)
    with pytest.raises(NotFound):
        await get(metadata, upload, "other")
    with pytest.raises(NotFound):
        await get(metadata, Upload(id="upload_\0"))


async def test_idempotency(metadata):
    asked = {"idempotency_key": "key", "request_hash": "a" * 64}
    assert await create(metadata, **asked) == await create(metadata, **asked)
    with pytest.raises(AlreadyExists):
        await create(metadata, **asked | {"request_hash": "b" * 64})


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"bytes": 0}, "bytes"),
        ({"bytes": 209_715_201}, "bytes"),
        ({"bytes": 9 * 1024**3, "purpose": "user_data"}, "bytes"),
        ({"purpose": "nope"}, "purpose"),
        ({"mime_type": ""}, "mime_type"),
        ({"filename": ""}, "filename"),
        ({"expires_after_s": 1}, "expires_after.seconds"),
    ],
)
async def test_wrong_values(metadata, fields, param):
    with pytest.raises(InvalidArgument) as raised:
        await create(metadata, **fields)
    assert raised.value.context["param"] == param
