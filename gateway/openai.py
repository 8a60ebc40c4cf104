"""OpenAI's field names: the only file that knows them. Requests to values, messages to JSON.

Every key of an object is present, null where it has no value; times are integers.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
from aiohttp import web
from google.protobuf.message import Message

from brix.metadata.v1.batches_pb2 import CreateBatchRequest
from brix.metadata.v1.runners_pb2 import Model
from brix.metadata.v1.uploads_pb2 import CreateUploadRequest
from brix.type.v1.batch_pb2 import Batch
from brix.type.v1.file_pb2 import File, Upload, UploadPart
from gateway.shape import Field, Kind, bounded, checked_text, missing, parse, printable
from services.kit.errors import InvalidArgument, NotFound

BATCH_PURPOSE = "batch"
ANCHOR = "created_at"
MAX_FILENAME_BYTES = 255
EXPIRES_AFTER = Field(
    Kind.OBJECT, fields={"anchor": Field(Kind.STRING, required=True), "seconds": Field(Kind.INTEGER, required=True)}
)
CREATE_BATCH = {
    "input_file_id": Field(Kind.STRING, required=True),
    "endpoint": Field(Kind.STRING, required=True),
    "completion_window": Field(Kind.STRING, required=True),
    "metadata": Field(Kind.TEXTS),
    "output_expires_after": EXPIRES_AFTER,
    "aibrix": Field(Kind.RAW),
}
CREATE_UPLOAD = {
    "bytes": Field(Kind.INTEGER, required=True),
    "filename": Field(Kind.STRING, required=True),
    "mime_type": Field(Kind.STRING, required=True),
    "purpose": Field(Kind.STRING, required=True),
    "expires_after": EXPIRES_AFTER,
}
COMPLETE_UPLOAD = {"part_ids": Field(Kind.STRINGS, required=True), "md5": Field(Kind.STRING)}
MD5 = re.compile(r"[0-9a-fA-F]{32}")
# Separators of paths, and characters that reorder or hide what is around them.
UNSAFE = re.compile("[/\\\\\u200e\u200f\u061c\u202a-\u202e\u2066-\u2069\ufeff]")
FORM_FIELDS = {
    "purpose": "purpose",
    "expires_after[anchor]": "anchor",
    "expires_after.anchor": "anchor",
    "expires_after[seconds]": "seconds",
    "expires_after.seconds": "seconds",
}


def parse_create_batch(body: bytes) -> CreateBatchRequest:
    """Error: InvalidArgument."""
    values = parse(body, CREATE_BATCH)
    return CreateBatchRequest(
        input_file_id=values["input_file_id"],
        endpoint=values["endpoint"],
        completion_window=values["completion_window"],
        metadata_json=values.get("metadata"),
        aibrix_json=values.get("aibrix"),
        output_expires_after_s=_seconds(values, "output_expires_after"),
    )


def parse_create_upload(body: bytes) -> CreateUploadRequest:
    """Error: InvalidArgument."""
    values = parse(body, CREATE_UPLOAD)
    return CreateUploadRequest(
        bytes=values["bytes"],
        filename=clean_filename(values["filename"], "filename"),
        mime_type=values["mime_type"],
        purpose=values["purpose"],
        expires_after_s=_seconds(values, "expires_after"),
    )


def parse_complete_upload(body: bytes) -> tuple[list[str], str | None]:
    """The ids of the parts in order, and the MD5 in lower-case hex. Error: InvalidArgument."""
    values = parse(body, COMPLETE_UPLOAD)
    md5: str | None = values.get("md5")
    if md5 is not None and not MD5.fullmatch(md5):
        raise InvalidArgument("Invalid 'md5': expected 32 hex digits.", param="md5", code="invalid_value")
    return values["part_ids"], md5.lower() if md5 else None


def _seconds(values: dict[str, Any], name: str) -> int | None:
    lifetime = values.get(name)
    if lifetime is None:
        return None
    _check_anchor(lifetime["anchor"], f"{name}.anchor")
    seconds: int = lifetime["seconds"]
    return seconds


def _check_anchor(anchor: str, path: str) -> None:
    if anchor != ANCHOR:
        raise InvalidArgument(
            f"Invalid value: '{printable(anchor)}'. Supported values are: '{ANCHOR}'.", param=path, code="invalid_value"
        )


@dataclass
class FileForm:
    """The text fields of a file's form, in whatever order they come."""

    values: dict[str, str] = field(default_factory=dict)
    only_purpose: str | None = None
    """What the purpose is where the path leaves no choice."""

    def set(self, name: str, text: str) -> None:
        """Fields that nobody knows are let go: the SDK's `extra_body` makes such. Error: InvalidArgument."""
        known = FORM_FIELDS.get(name)
        if known is None:
            return
        if known in self.values:
            raise InvalidArgument(f"Duplicate parameter: '{name}'.", param=name, code="duplicate_parameter")
        if known == "purpose" and self.only_purpose not in {None, text}:
            raise InvalidArgument(
                f"Invalid value: '{printable(text)}'. Supported values are: '{self.only_purpose}'.",
                param="purpose",
                code="invalid_value",
            )
        self.values[known] = text

    @property
    def purpose(self) -> str | None:
        return self.only_purpose or self.values.get("purpose")

    def required_purpose(self) -> str:
        """Error: InvalidArgument."""
        if not self.purpose:
            raise missing("purpose")
        return self.purpose

    def expires_after_s(self) -> int | None:
        """Error: InvalidArgument; the two fields come together or not at all."""
        anchor, seconds = self.values.get("anchor"), self.values.get("seconds")
        if anchor is None and seconds is None:
            return None
        if anchor is None or seconds is None:
            raise missing("expires_after.anchor" if anchor is None else "expires_after.seconds")
        _check_anchor(anchor, "expires_after.anchor")
        if not re.fullmatch(r"-?[0-9]+", seconds):
            raise InvalidArgument(
                "Invalid type for 'expires_after.seconds': expected an integer, but got a string instead.",
                param="expires_after.seconds",
                code="invalid_type",
            )
        return bounded("expires_after.seconds", seconds)


def clean_filename(name: str, param: str) -> str:
    """A name that can stand in a header and be saved under. Error: InvalidArgument."""
    clean = UNSAFE.sub("_", unicodedata.normalize("NFC", checked_text(param, name)))
    clean = "".join("_" if unicodedata.category(ch) in {"Cc", "Zl", "Zp", "Cs"} else ch for ch in clean).strip()
    if not clean or len(clean.encode()) > MAX_FILENAME_BYTES:
        raise InvalidArgument(
            f"Invalid '{param}': expected a filename of 1 to {MAX_FILENAME_BYTES} bytes.",
            param=param,
            code="invalid_value" if not clean else "string_above_max_length",
        )
    return "_" if clean in {".", ".."} else clean


def query_int(request: web.Request, name: str, *, default: int, most: int) -> int:
    """0 means the default. Error: InvalidArgument."""
    text = request.query.get(name, "")
    if text == "":
        return default
    if not re.fullmatch(r"-?[0-9]+", text):
        raise InvalidArgument(
            f"Invalid type for '{name}': expected an integer, but got a string instead.",
            param=name,
            code="invalid_type",
        )
    value = bounded(name, text)
    if not 0 <= value <= most:
        side, bound = ("below_min", ">= 1") if value < 0 else ("above_max", f"<= {most}")
        raise InvalidArgument(
            f"Invalid '{name}': integer {side.replace('_', ' ')}imum value. Expected a value {bound}, but got {value} "
            "instead.",
            param=name,
            code=f"integer_{side}_value",
        )
    return value or default


def query_text(request: web.Request, name: str) -> str | None:
    """Error: InvalidArgument."""
    text = request.query.get(name, "")
    return checked_text(name, text) if text else None


def query_ascending(request: web.Request) -> bool:
    """Error: InvalidArgument."""
    order = request.query.get("order", "") or "desc"
    if order not in {"asc", "desc"}:
        raise InvalidArgument(
            f"Invalid value: '{printable(order)}'. Supported values are: 'asc' and 'desc'.",
            param="order",
            code="invalid_value",
        )
    return order == "asc"


def no_such_file(id: str) -> NotFound:
    return NotFound(f"No such File object: {printable(id)}", param="id")


def no_such_batch(id: str) -> NotFound:
    return NotFound(f"No batch found with id '{printable(id)}'.", param="batch_id")


def no_such_upload(id: str) -> NotFound:
    return NotFound(f"No upload found with id '{printable(id)}'.", param="upload_id")


def no_such_model(id: str) -> NotFound:
    return NotFound(f"The model '{printable(id)}' does not exist.", param="model", code="model_not_found")


def respond(body: Any) -> web.Response:
    return web.Response(body=msgspec.json.encode(body), content_type="application/json")


def page(items: Sequence[dict[str, Any]], has_more: bool) -> dict[str, Any]:
    return {
        "object": "list",
        "data": items,
        "first_id": items[0]["id"] if items else None,
        "last_id": items[-1]["id"] if items else None,
        "has_more": has_more and bool(items),
    }


def file_object(file: File) -> dict[str, Any]:
    return {
        "id": file.id,
        "object": "file",
        "bytes": file.bytes,
        "created_at": file.create_time.seconds,
        "expires_at": _time(file, "expire_time"),
        "filename": file.filename,
        "purpose": file.purpose,
        "status": "processed",
        "status_details": None,
    }


def deleted_file(id: str) -> dict[str, Any]:
    return {"id": id, "object": "file", "deleted": True}


def upload_object(upload: Upload, file: File | None = None) -> dict[str, Any]:
    return {
        "id": upload.id,
        "object": "upload",
        "bytes": upload.bytes,
        "created_at": upload.create_time.seconds,
        "expires_at": upload.expire_time.seconds,
        "filename": upload.filename,
        "purpose": upload.purpose,
        "status": Upload.State.Name(upload.state).lower(),
        "file": file_object(file) if file else None,
    }


def part_object(part: UploadPart) -> dict[str, Any]:
    return {
        "id": part.id,
        "object": "upload.part",
        "created_at": part.create_time.seconds,
        "upload_id": part.upload_id,
    }


def model_object(model: Model) -> dict[str, Any]:
    return {
        "id": model.id,
        "object": "model",
        "created": model.create_time.seconds,
        "owned_by": model.owned_by,
        "shutdown_date": None,
    }


def model_list(models: Sequence[Model]) -> dict[str, Any]:
    return {"object": "list", "data": [model_object(model) for model in models]}


def batch_object(batch: Batch) -> dict[str, Any]:
    return {
        "id": batch.id,
        "object": "batch",
        "endpoint": batch.endpoint,
        "model": _optional(batch, "model"),
        "errors": _errors(batch),
        "input_file_id": batch.input_file_id,
        "completion_window": batch.completion_window,
        "status": Batch.State.Name(batch.state).lower(),
        "output_file_id": _optional(batch, "output_file_id"),
        "error_file_id": _optional(batch, "error_file_id"),
        "created_at": batch.create_time.seconds,
        "in_progress_at": _time(batch, "in_progress_time"),
        "expires_at": batch.expire_time.seconds,
        "finalizing_at": _time(batch, "finalizing_time"),
        "completed_at": _time(batch, "completed_time"),
        "failed_at": _time(batch, "failed_time"),
        "expired_at": _time(batch, "expired_time"),
        "cancelling_at": _time(batch, "cancelling_time"),
        "cancelled_at": _time(batch, "cancelled_time"),
        "request_counts": {
            "total": batch.total_count,
            "completed": batch.completed_count,
            "failed": batch.failed_count,
        },
        "usage": {
            "input_tokens": batch.usage.input_tokens,
            "input_tokens_details": {"cached_tokens": batch.usage.cached_tokens},
            "output_tokens": batch.usage.output_tokens,
            "output_tokens_details": {"reasoning_tokens": batch.usage.reasoning_tokens},
            "total_tokens": batch.usage.total_tokens,
        },
        "metadata": _raw(batch, "metadata_json"),
        "aibrix": _raw(batch, "aibrix_json"),
    }


def _errors(batch: Batch) -> dict[str, Any] | None:
    if not batch.errors:
        return None
    data = [
        {
            "code": error.code,
            "message": error.message,
            "param": _optional(error, "param"),
            "line": _optional(error, "line"),
        }
        for error in batch.errors
    ]
    return {"object": "list", "data": data}


def _optional(message: Message, name: str) -> Any:
    return getattr(message, name) if message.HasField(name) else None


def _time(message: Message, name: str) -> int | None:
    return getattr(message, name).seconds if message.HasField(name) else None


def _raw(message: Message, name: str) -> msgspec.Raw | None:
    """JSON text as it was given, byte for byte."""
    return msgspec.Raw(getattr(message, name).encode()) if message.HasField(name) else None
