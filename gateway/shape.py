"""The shape of a JSON body: which members it may have and of which JSON type, in OpenAI's words when it is wrong.

Values (enums, ranges, lengths) are metadata's to judge. A member of kind RAW keeps the bytes it came with.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, auto
from itertools import islice
from json.decoder import scanstring  # type: ignore[attr-defined]  # the C scanner of the standard library
from typing import Any

import msgspec

from services.kit.errors import InvalidArgument

MAX_MEMBERS = 64
MAX_ITEMS = 10_000
MAX_INT64 = 2**63 - 1
UNPARSABLE = "We could not parse the JSON body of your request. The API expects a JSON object, encoded as UTF-8."
SPACE = re.compile(r"[ \t\r\n]*")
INTEGER = re.compile(r"-?(0|[1-9][0-9]*)")


class Kind(Enum):
    STRING = auto()
    INTEGER = auto()
    OBJECT = auto()
    """An object with `fields` of its own."""
    TEXTS = auto()
    """An object whose values are strings; kept as JSON text."""
    RAW = auto()
    """An object that somebody else reads; kept as JSON text."""
    STRINGS = auto()
    """An array of strings."""


NAMES = {
    Kind.STRING: "a string",
    Kind.INTEGER: "an integer",
    Kind.OBJECT: "an object",
    Kind.TEXTS: "an object",
    Kind.RAW: "an object",
    Kind.STRINGS: "an array of strings",
}


@dataclass(frozen=True)
class Field:
    kind: Kind
    required: bool = False
    fields: Mapping[str, Field] | None = None


def parse(body: bytes, fields: Mapping[str, Field]) -> dict[str, Any]:
    """The members that are present and not null, as `str`, `int`, `dict`, `list[str]`, or JSON text for TEXTS and RAW.

    Error: InvalidArgument with `param` and `code`.
    """
    return _members(open_body(body), fields, "")


def open_body(body: bytes) -> dict[str, msgspec.Raw]:
    """The members of a body, each with the bytes it came with. Error: InvalidArgument."""
    try:
        text = body.decode()
        # Checks all of it, escapes too: what is inside can be decoded later without another thought.
        members = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    except msgspec.ValidationError as error:
        raise wrong_type("", "an object", body.lstrip()) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidArgument(UNPARSABLE) from error
    if len(members) > MAX_MEMBERS:
        raise InvalidArgument(f"Too many parameters: expected at most {MAX_MEMBERS}.", code="invalid_value")
    refuse_duplicates(text, members)
    return members


def _members(members: Mapping[str, msgspec.Raw], fields: Mapping[str, Field], prefix: str) -> dict[str, Any]:
    for name in members:
        if name not in fields:
            raise unknown(prefix + name)
    for name, field in fields.items():
        if field.required and name not in members:
            raise missing(prefix + name)
    values: dict[str, Any] = {}
    for name, raw in members.items():
        field = fields[name]
        token = bytes(raw)
        if token != b"null":
            values[name] = _value(prefix + name, field, token)
        elif field.required:
            raise wrong_type(prefix + name, NAMES[field.kind], token)
    return values


def _value(path: str, field: Field, token: bytes) -> Any:
    match field.kind:
        case Kind.STRING:
            return _string(path, token)
        case Kind.INTEGER:
            return _integer(path, token)
        case Kind.STRINGS:
            return _strings(path, token)
        case Kind.OBJECT:
            return _members(_object(path, token), field.fields or {}, f"{path}.")
        case Kind.TEXTS:
            # Metadata takes far fewer: a body of a million of them must not hold up the loop.
            for name, value in islice(_object(path, token).items(), MAX_MEMBERS):
                _string(f"{path}.{printable(name)}", bytes(value))
            return token.decode()
        case Kind.RAW:
            _object(path, token)
            return token.decode()


def _string(path: str, token: bytes) -> str:
    if token[:1] != b'"':
        raise wrong_type(path, "a string", token)
    return checked_text(path, msgspec.json.decode(token, type=str))


def _integer(path: str, token: bytes) -> int:
    if not INTEGER.fullmatch(token.decode()):
        raise wrong_type(path, "an integer", token)
    return bounded(path, token.decode())


def bounded(path: str, digits: str) -> int:
    """The integer that `digits` spell, if it fits into 64 bits."""
    negative = digits.startswith("-")
    if len(digits) > 20 or abs(int(digits)) > MAX_INT64:
        side, bound = ("below_min", ">= -") if negative else ("above_max", "<= ")
        raise InvalidArgument(
            f"Invalid '{path}': integer out of range. Expected a value {bound}{MAX_INT64}.",
            param=path,
            code=f"integer_{side}_value",
        )
    return int(digits)


def _strings(path: str, token: bytes) -> list[str]:
    if token[:1] != b"[":
        raise wrong_type(path, NAMES[Kind.STRINGS], token)
    return [_string(f"{path}[{index}]", bytes(item)) for index, item in enumerate(open_array(path, token))]


def open_array(path: str, token: bytes) -> list[msgspec.Raw]:
    """Error: InvalidArgument, if it is too long."""
    items = msgspec.json.decode(token, type=list[msgspec.Raw])
    if len(items) > MAX_ITEMS:
        raise InvalidArgument(
            f"Invalid '{path}': array too long. Expected an array with maximum length {MAX_ITEMS}, but got an array with "
            f"length {len(items)} instead.",
            param=path,
            code="array_above_max_length",
        )
    return items


def _object(path: str, token: bytes) -> dict[str, msgspec.Raw]:
    if token[:1] != b"{":
        raise wrong_type(path, "an object", token)
    return msgspec.json.decode(token, type=dict[str, msgspec.Raw])


def refuse_duplicates(text: str, members: Mapping[str, msgspec.Raw], prefix: str = "") -> None:
    """A dict keeps the last of two equal keys: walk its members along the text, which then no longer fits."""
    at = _skip(text, 0) + 1
    for position, (name, raw) in enumerate(members.items()):
        at = _skip(text, at) + bool(position)
        key, at = scanstring(text, _skip(text, at) + 1)
        value = bytes(raw).decode()
        at = _skip(text, _skip(text, at) + 1)
        if key != name or not text.startswith(value, at):
            raise duplicate(prefix + key)
        at = _skip(text, at + len(value))
        if text[at] not in ",}":
            raise duplicate(prefix + key)
    if members and text[at] == ",":
        raise duplicate(prefix + scanstring(text, _skip(text, at + 1) + 1)[0])


def _skip(text: str, at: int) -> int:
    match = SPACE.match(text, at)
    assert match is not None
    return match.end()


def duplicate(path: str) -> InvalidArgument:
    path = printable(path)
    return InvalidArgument(f"Duplicate parameter: '{path}'.", param=path, code="duplicate_parameter")


def unknown(path: str) -> InvalidArgument:
    path = printable(path)
    return InvalidArgument(f"Unknown parameter: '{path}'.", param=path, code="unknown_parameter")


def missing(path: str) -> InvalidArgument:
    return InvalidArgument(f"Missing required parameter: '{path}'.", param=path, code="missing_required_parameter")


def wrong_type(path: str, expected: str, token: bytes) -> InvalidArgument:
    text = f"expected {expected}, but got {_type_of(token)} instead."
    if not path:
        return InvalidArgument(f"Invalid type for the body: {text}", code="invalid_type")
    return InvalidArgument(f"Invalid type for '{path}': {text}", param=path, code="invalid_type")


def _type_of(token: bytes) -> str:
    first = token[:1]
    known = {b'"': "a string", b"{": "an object", b"[": "an array", b"t": "a boolean", b"f": "a boolean", b"n": "null"}
    if first in known:
        return known[first]
    return "an integer" if token.lstrip(b"-").isdigit() else "a decimal"


def checked_text(path: str, text: str) -> str:
    """`text`, unless it holds a NUL, which no database column and no header can."""
    if "\0" in text:
        raise InvalidArgument(f"Invalid '{path}': it contains a NUL character.", param=path, code="invalid_value")
    return text


def printable(name: str) -> str:
    """A name that a user chose, fit for a message."""
    return "".join(ch if ch.isprintable() else "?" for ch in name[:100])
