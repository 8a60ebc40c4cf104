from __future__ import annotations

import asyncio
import uuid

import pytest

from brix.metadata.v1 import files_pb2
from services.kit.errors import AlreadyExists, IllegalTransition, InvalidArgument, NotFound
from tests.metadata.conftest import State, eventually, some_lines


def a_request(**fields):
    asked = {"project_id": "default", "filename": "in.jsonl", "purpose": "batch", "bytes": 3}
    return files_pb2.CreateFileRequest(**asked | {"object_key": f"files/{uuid.uuid4().hex}"} | fields)


def get(metadata, id, project_id="default"):
    return metadata.files.GetFile(files_pb2.GetFileRequest(project_id=project_id, id=id))


def delete(metadata, id):
    return metadata.files.DeleteFile(files_pb2.DeleteFileRequest(project_id="default", id=id))


async def pages(metadata, size, **fields):
    """All ids, page by page."""
    after, ids = None, []
    while True:
        request = files_pb2.ListFilesRequest(project_id="default", page_size=size, after=after, **fields)
        page = await metadata.files.ListFiles(request)
        ids.append([file.id for file in page.files])
        if not page.has_more:
            return ids
        after = page.files[-1].id


async def test_what_goes_in_comes_out(metadata):
    made = await metadata.file(b"{}\n", filename="täst.jsonl")
    assert made == await get(metadata, made.id)
    assert (made.filename, made.purpose, made.bytes) == ("täst.jsonl", "batch", 3)
    assert (made.expire_time.ToDatetime() - made.create_time.ToDatetime()).days == 30
    assert made.id.startswith("file-")
    assert len(made.id) >= 29


async def test_lifetimes(metadata):
    assert not (await metadata.file(b"x", purpose="user_data")).HasField("expire_time")
    made = await metadata.file(b"x", purpose="user_data", expires_after_s=3600)
    assert (made.expire_time.ToDatetime() - made.create_time.ToDatetime()).total_seconds() == 3600


async def test_of_another_project_it_does_not_exist(metadata):
    made = await metadata.file(b"x")
    with pytest.raises(NotFound) as mine:
        await get(metadata, "file-none")
    with pytest.raises(NotFound) as theirs:
        await get(metadata, made.id, "other")
    assert theirs.value.message.replace(made.id, "file-none") == mine.value.message
    assert mine.value.context["param"] == "id"


@pytest.mark.parametrize("id", ["", "file-nope", "x" * 5000, "nul\0", "💥"])
async def test_unknown_ids(metadata, id):
    with pytest.raises(NotFound):
        await get(metadata, id)
    with pytest.raises(NotFound):
        await delete(metadata, id)


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"purpose": "batch_output"}, "purpose", "invalid_value"),
        ({"purpose": ""}, "purpose", "missing_required_parameter"),
        ({"filename": ""}, "filename", "missing_required_parameter"),
        ({"filename": "a\0b"}, "filename", "invalid_value"),
        ({"filename": "a\r\nb"}, "filename", "invalid_value"),
        ({"filename": "a" * 256}, "filename", "string_above_max_length"),
        ({"expires_after_s": 3599}, "expires_after.seconds", "integer_below_min_value"),
        ({"expires_after_s": 2_592_001}, "expires_after.seconds", "integer_above_max_value"),
        ({"idempotency_key": "k"}, "request_hash", "missing_required_parameter"),
        ({"object_key": "segments/x"}, "object_key", None),
        ({"object_key": "files/../segments/x"}, "object_key", None),
    ],
)
async def test_wrong_values(metadata, fields, param, code):
    with pytest.raises(InvalidArgument) as raised:
        await metadata.files.CreateFile(a_request(**fields))
    assert raised.value.context.get("param") == param
    assert raised.value.context.get("code") == code


async def test_the_same_object_is_the_same_file(metadata):
    request = a_request()
    answers = await asyncio.gather(*(metadata.files.CreateFile(request) for _ in range(5)))
    assert len({answer.file.id for answer in answers}) == 1
    assert not any(answer.replayed for answer in answers)


async def test_idempotency(metadata):
    asked = {"idempotency_key": "key", "request_hash": "a" * 64}
    first = await metadata.files.CreateFile(a_request(**asked))
    again = await metadata.files.CreateFile(a_request(**asked))
    assert (again.file, again.replayed, first.replayed) == (first.file, True, False)
    with pytest.raises(AlreadyExists):
        await metadata.files.CreateFile(a_request(**asked | {"request_hash": "b" * 64}))
    other = await metadata.files.CreateFile(a_request(project_id="other", **asked))
    assert other.file.id != first.file.id
    metadata.clock.advance(86_401)
    later = await metadata.files.CreateFile(a_request(**asked | {"request_hash": "b" * 64}))
    assert not later.replayed


async def test_of_many_with_one_key_one_is_made(metadata):
    asked = {"idempotency_key": "key", "request_hash": "a" * 64}
    answers = await asyncio.gather(*(metadata.files.CreateFile(a_request(**asked)) for _ in range(8)))
    assert len({answer.file.id for answer in answers}) == 1
    assert sum(not answer.replayed for answer in answers) == 1


async def test_pages_stay_right_while_files_come_and_go(metadata):
    made = []
    for number in range(7):
        made.append(await metadata.file(b"x", purpose="batch" if number % 2 else "vision"))
        metadata.clock.advance(1 if number % 3 else 0)
    wanted = [file.id for file in sorted(made, key=lambda f: (f.create_time.ToMicroseconds(), f.id), reverse=True)]
    assert [id for page in await pages(metadata, 3) for id in page] == wanted
    assert [id for page in await pages(metadata, 2, ascending=True) for id in page] == wanted[::-1]
    vision = {file.id for file in made if file.purpose == "vision"}
    assert [id for page in await pages(metadata, 2, purpose="vision") for id in page] == [
        id for id in wanted if id in vision
    ]
    # A new one comes in front, and the cursor's own row goes: the next page is the same.
    metadata.clock.advance(1)
    await metadata.file(b"new")
    await delete(metadata, wanted[2])
    rest = await metadata.files.ListFiles(files_pb2.ListFilesRequest(project_id="default", after=wanted[2]))
    assert [file.id for file in rest.files] == wanted[3:]
    assert not rest.has_more


async def test_an_unknown_cursor_is_an_empty_page(metadata):
    await metadata.file(b"x")
    page = await metadata.files.ListFiles(files_pb2.ListFilesRequest(project_id="default", after="file-nope"))
    assert not page.files
    assert not page.has_more


@pytest.mark.parametrize("size", [-1, 10_001])
async def test_page_size(metadata, size):
    with pytest.raises(InvalidArgument) as raised:
        await metadata.files.ListFiles(files_pb2.ListFilesRequest(project_id="default", page_size=size))
    assert raised.value.context["param"] == "limit"


async def test_an_expired_file_is_gone_at_once_and_its_object_soon(metadata):
    made = await metadata.file(b"x", expires_after_s=3600)
    metadata.clock.advance(3600)
    with pytest.raises(NotFound):
        await get(metadata, made.id)
    assert await pages(metadata, 10) == [[]]

    async def empty():
        return not await metadata.keys("files/")

    await eventually(empty)


async def test_delete(metadata):
    made = await metadata.file(b"x")
    await delete(metadata, made.id)
    assert not await metadata.keys("files/")
    with pytest.raises(NotFound):
        await delete(metadata, made.id)


async def test_a_file_that_a_live_batch_reads_stays(metadata):
    file = await metadata.file(some_lines(3), expires_after_s=3600)
    batch = await metadata.batch(input_file_id=file.id)
    with pytest.raises(IllegalTransition) as raised:
        await delete(metadata, file.id)
    assert raised.value.context["code"] == "file_in_use"
    await metadata.reaches(batch.id, State.IN_PROGRESS)
    # Its time passes too: nobody sees it any more, but the batch goes on.
    metadata.clock.advance(3601)
    with pytest.raises(NotFound):
        await get(metadata, file.id)
    assert file.object_key in await metadata.keys("files/")
