"""/v1/uploads: a file in parts. Each part is an object; completing streams them into one."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import AsyncIterator, Sequence

from aiohttp import web

from brix.metadata.v1.files_pb2 import GetFileRequest
from brix.metadata.v1.uploads_pb2 import (
    AddPartRequest,
    CancelUploadRequest,
    CompleteUploadRequest,
    GetUploadRequest,
    ListPartsRequest,
)
from brix.type.v1.file_pb2 import File, Upload, UploadPart
from gateway import openai
from gateway.auth import PROJECT
from gateway.backend import BACKEND, Backend, idempotency_key, path_id, persist, record
from gateway.body import Body, read_json
from gateway.intake import Intake
from gateway.jsonl import JsonlCheck
from gateway.multipart import Multipart
from gateway.shape import missing
from services.kit import errors
from services.kit.ids import new_id
from services.kit.objects import ObjectStore

PART_FIELD = "data"
RETRY_COUNT = "x-stainless-retry-count"


async def create(request: web.Request) -> web.Response:
    backend = request.app[BACKEND]
    limits = backend.settings.gateway
    key = idempotency_key(request) or new_id("once_")
    body = await read_json(request, limits.idle_timeout_s, limits.max_json_bytes)
    message = openai.parse_create_upload(body)
    message.project_id = request[PROJECT]
    message.idempotency_key = key
    message.request_hash = hashlib.sha256(body).hexdigest()
    return await _answer(request, await persist(backend.uploads.CreateUpload, message))


async def add_part(request: web.Request) -> web.Response:
    backend = request.app[BACKEND]
    limits = backend.settings.gateway
    upload = await _get(request)
    if upload.state != Upload.State.PENDING:
        status = Upload.State.Name(upload.state).lower()
        raise errors.IllegalTransition(f"Cannot add a part to an upload with status '{status}'.")
    reader = Body(request, limits.idle_timeout_s).multipart(limits.max_part_bytes)
    object_key = f"uploads/{upload.id}/{secrets.token_hex(16)}"
    size: int | None = None
    whole = False
    try:
        size = await _receive_part(backend, reader, object_key)
        whole = await reader.next_part() is None
        if not whole:
            raise errors.InvalidArgument("Expected one part, but got two.", param=PART_FIELD, code="invalid_value")
    finally:
        if size is not None and not whole:
            await backend.discard(object_key)
    message = AddPartRequest(project_id=request[PROJECT], upload_id=upload.id, object_key=object_key, bytes=size)
    part = await record(backend, backend.uploads.AddPart, message, object_key)
    return openai.respond(openai.part_object(part))


async def _receive_part(backend: Backend, reader: Multipart, object_key: str) -> int:
    """Its size. Fields before it are nobody's."""
    while (part := await reader.next_part()) is not None:
        if part.name == PART_FIELD and part.filename is not None:
            intake = Intake(part.read, limit=backend.settings.gateway.max_part_bytes)
            await intake.store(backend.objects, object_key)
            return intake.size
        await part.text()
    raise missing(PART_FIELD)


async def complete(request: web.Request) -> web.Response:
    backend = request.app[BACKEND]
    limits = backend.settings.gateway
    part_ids, md5 = openai.parse_complete_upload(await read_json(request, limits.idle_timeout_s, limits.max_json_bytes))
    upload = await _get(request)
    if upload.state == Upload.State.COMPLETED and request.headers.get(RETRY_COUNT, "0") != "0":
        return await _answer(request, upload)  # the SDK asks again after a lost answer, and says so
    listed = await backend.uploads.ListParts(
        ListPartsRequest(project_id=request[PROJECT], upload_id=upload.id, part_ids=part_ids)
    )
    object_key = f"files/{secrets.token_hex(16)}"
    await _join(backend, listed.upload, listed.parts, object_key, md5)
    message = CompleteUploadRequest(project_id=request[PROJECT], upload_id=upload.id, object_key=object_key)
    answer = await record(backend, backend.uploads.CompleteUpload, message, object_key)
    return openai.respond(openai.upload_object(answer.upload, answer.file))


async def _join(
    backend: Backend, upload: Upload, parts: Sequence[UploadPart], object_key: str, md5: str | None
) -> None:
    """Errors: InvalidArgument (its MD5, or what it holds), NotFound, the object store's. After one, nothing is left."""
    batch = upload.purpose == openai.BATCH_PURPOSE
    digest = hashlib.md5(usedforsecurity=False) if md5 is not None else None
    intake = Intake(
        Joined(backend.objects, parts).read,
        limit=upload.bytes,
        digest=digest,
        check=JsonlCheck(backend.settings.metadata.max_line_bytes) if batch else None,
        strict=batch,
    )
    await intake.store(backend.objects, object_key)
    if digest is not None and digest.hexdigest() != md5:
        await backend.discard(object_key)
        raise errors.InvalidArgument(
            "The MD5 of the uploaded bytes does not match 'md5'.", param="md5", code="invalid_value"
        )


class Joined:
    """The bytes of several objects, one after the other."""

    def __init__(self, objects: ObjectStore, parts: Sequence[UploadPart]) -> None:
        self._objects = objects
        self._waiting = list(reversed(parts))
        self._chunks: AsyncIterator[bytes] | None = None

    async def read(self) -> bytes:
        while True:
            chunk = b"" if self._chunks is None else await anext(self._chunks, b"")
            if chunk or not self._waiting:
                return chunk
            part = self._waiting.pop()
            self._chunks = self._objects.stream(part.object_key, 0, part.bytes)


async def cancel(request: web.Request) -> web.Response:
    backend = request.app[BACKEND]
    limits = backend.settings.gateway
    await Body(request, limits.idle_timeout_s).read_all(limits.max_json_bytes)
    upload = await _get(request)
    message = CancelUploadRequest(project_id=request[PROJECT], upload_id=upload.id)
    return await _answer(request, await backend.uploads.CancelUpload(message))


async def _get(request: web.Request) -> Upload:
    id = path_id(request)
    try:
        if id is None:
            raise errors.NotFound("no such id")
        return await request.app[BACKEND].uploads.GetUpload(GetUploadRequest(project_id=request[PROJECT], id=id))
    except errors.NotFound:
        raise openai.no_such_upload(request.match_info["id"]) from None


async def _answer(request: web.Request, upload: Upload) -> web.Response:
    """With its file, if it has one that was not deleted since."""
    file: File | None = None
    if upload.HasField("file_id"):
        try:
            file = await request.app[BACKEND].files.GetFile(
                GetFileRequest(project_id=request[PROJECT], id=upload.file_id)
            )
        except errors.NotFound:
            file = None
    return openai.respond(openai.upload_object(upload, file))
