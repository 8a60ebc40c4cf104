"""/v1/files. Bytes go straight between the socket and the object store; metadata keeps the record."""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass

import msgspec
from aiohttp import web

from brix.metadata.v1.files_pb2 import CreateFileRequest, DeleteFileRequest, GetFileRequest, ListFilesRequest
from brix.type.v1.file_pb2 import File
from gateway import openai
from gateway.auth import PROJECT
from gateway.backend import BACKEND, Backend, idempotency_key, path_id, record
from gateway.body import Body, over
from gateway.download import send
from gateway.errors import too_large
from gateway.intake import Intake
from gateway.jsonl import JsonlCheck
from gateway.multipart import Multipart, Part
from gateway.shape import missing, printable
from services.kit import errors

FILE_FIELD = "file"
DEFAULT_PAGE = 10_000


@dataclass
class Received:
    """One form, as far as it has been read."""

    object_key: str
    hashed: bool
    """With an Idempotency-Key the content is hashed, so that another body under the same key is found out."""
    check: JsonlCheck
    form: openai.FileForm
    filename: str | None = None
    size: int = 0
    content_hash: str = ""


async def create(request: web.Request) -> web.Response:
    return await _create(request, openai.FileForm())


async def create_batch_file(request: web.Request) -> web.Response:
    """The purpose may be left out: there is only one."""
    return await _create(request, openai.FileForm(only_purpose=openai.BATCH_PURPOSE))


async def _create(request: web.Request, form: openai.FileForm) -> web.Response:
    backend = request.app[BACKEND]
    key = idempotency_key(request)
    body = Body(request, backend.settings.gateway.idle_timeout_s)
    limits = backend.settings.gateway
    reader = body.multipart(max(limits.max_file_bytes, limits.max_batch_file_bytes))
    received = Received(
        f"files/{secrets.token_hex(16)}", key is not None, JsonlCheck(backend.settings.metadata.max_line_bytes), form
    )
    message = None
    try:
        await _receive(backend, body, reader, received)
        message = _message(backend, received, request[PROJECT], key)
    finally:
        if message is None and received.filename is not None:
            await backend.discard(received.object_key)
    answer = await record(backend, backend.files.CreateFile, message, received.object_key)
    if answer.replayed and answer.file.object_key != received.object_key:
        await backend.discard(received.object_key)
    return openai.respond(openai.file_object(answer.file))


async def _receive(backend: Backend, body: Body, reader: Multipart, received: Received) -> None:
    limits = backend.settings.gateway
    while (part := await reader.next_part()) is not None:
        if part.name == FILE_FIELD:
            if received.filename is not None:
                raise errors.InvalidArgument("Expected one file, but got two.", param=FILE_FIELD, code="invalid_value")
            await _store(backend, part, received)
        elif part.filename is not None:
            name = printable(part.name)
            raise errors.InvalidArgument(f"Unknown parameter: '{name}'.", param=name, code="unknown_parameter")
        else:
            received.form.set(part.name, await part.text())
            if received.form.purpose == openai.BATCH_PURPOSE:
                body.refuse_longer(limits.max_batch_file_bytes)


async def _store(backend: Backend, part: Part, received: Received) -> None:
    if part.filename is None:
        raise errors.InvalidArgument(
            "Invalid type for 'file': expected a file upload, but got a string instead.",
            param=FILE_FIELD,
            code="invalid_type",
        )
    filename = openai.clean_filename(part.filename, FILE_FIELD)
    purpose, limits = received.form.purpose, backend.settings.gateway
    batch = purpose == openai.BATCH_PURPOSE
    digest = hashlib.sha256() if received.hashed else None
    intake = Intake(
        part.read,
        limit=limits.max_batch_file_bytes if batch else limits.max_file_bytes,
        digest=digest,
        check=received.check if batch or purpose is None else None,
        strict=batch,
    )
    await intake.store(backend.objects, received.object_key)
    received.filename = filename
    received.size = intake.size
    received.content_hash = digest.hexdigest() if digest else ""


def _message(backend: Backend, received: Received, project_id: str, key: str | None) -> CreateFileRequest:
    """What metadata is asked for, once the form is whole. Errors: InvalidArgument, Refused."""
    if received.filename is None:
        raise missing(FILE_FIELD)
    purpose = received.form.required_purpose()
    if purpose == openai.BATCH_PURPOSE:
        limit = backend.settings.gateway.max_batch_file_bytes
        if received.size > limit:
            raise too_large(over(limit))
        if received.check.problem is not None:
            raise received.check.problem
    lifetime = received.form.expires_after_s()
    asked = msgspec.json.encode([purpose, received.filename, lifetime, received.content_hash])
    return CreateFileRequest(
        project_id=project_id,
        object_key=received.object_key,
        filename=received.filename,
        purpose=purpose,
        bytes=received.size,
        expires_after_s=lifetime,
        idempotency_key=key,
        request_hash=hashlib.sha256(asked).hexdigest() if key is not None else "",
    )


async def list_files(request: web.Request) -> web.Response:
    backend = request.app[BACKEND]
    answer = await backend.files.ListFiles(
        ListFilesRequest(
            project_id=request[PROJECT],
            purpose=openai.query_text(request, "purpose"),
            page_size=openai.query_int(request, "limit", default=DEFAULT_PAGE, most=DEFAULT_PAGE),
            after=openai.query_text(request, "after"),
            ascending=openai.query_ascending(request),
        )
    )
    return openai.respond(openai.page([openai.file_object(file) for file in answer.files], answer.has_more))


async def retrieve(request: web.Request) -> web.Response:
    return openai.respond(openai.file_object(await _get(request)))


async def content(request: web.Request) -> web.StreamResponse:
    file = await _get(request)
    try:
        return await send(request, file)
    except errors.NotFound:
        raise openai.no_such_file(file.id) from None


async def delete(request: web.Request) -> web.Response:
    id = path_id(request)
    try:
        if id is None:
            raise errors.NotFound("no such id")
        await request.app[BACKEND].files.DeleteFile(DeleteFileRequest(project_id=request[PROJECT], id=id))
    except errors.NotFound:
        raise openai.no_such_file(request.match_info["id"]) from None
    return openai.respond(openai.deleted_file(id))


async def _get(request: web.Request) -> File:
    id = path_id(request)
    try:
        if id is None:
            raise errors.NotFound("no such id")
        return await request.app[BACKEND].files.GetFile(GetFileRequest(project_id=request[PROJECT], id=id))
    except errors.NotFound:
        raise openai.no_such_file(request.match_info["id"]) from None
