"""JSON bodies and query parameters into console messages, strictly: what is not known is refused, by its dotted path."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import msgspec
from google.protobuf.message import Message

from gateway.shape import (
    INTEGER,
    bounded,
    checked_text,
    duplicate,
    open_array,
    open_body,
    printable,
    refuse_duplicates,
    unknown,
    wrong_type,
)
from gateway.transcode_fields import Form, Member, by_key, enum_names
from services.kit.errors import InvalidArgument

MAX_DEPTH = 32
MAX_VALUES = 100_000  # in all of a free object
MAX_INT32 = 2**31 - 1
# In free objects, whose readers take both kinds of 64 bits.
MIN_INT64, MAX_UINT64 = -(2**63), 2**64 - 1
LONGEST_INTEGER = 20
SHORT = 4  # characters; no number that is written with so few is too large
LATEST = 253_402_300_799  # the last second of the year 9999
NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
NAMES = {
    Form.STRING: "a string",
    Form.JSON: "an object",
    Form.INTEGER: "an integer",
    Form.NUMBER: "a number",
    Form.BOOLEAN: "a boolean",
    Form.ENUM: "a string",
    Form.TIME: "an integer",
    Form.MESSAGE: "an object",
}
BOOLEANS = {b"true": True, b"false": False}
IN_QUERY = frozenset({Form.STRING, Form.INTEGER, Form.NUMBER, Form.BOOLEAN, Form.ENUM, Form.TIME})


def read_body(body: bytes, message: Message, taken: Collection[str] = ()) -> None:
    """Put the members of a JSON object into the fields of `message`; null is as if it were not there.

    `taken`: fields that the path has. Error: InvalidArgument with `param` and `code`.
    """
    _read_members(open_body(body), message, "", taken, MAX_DEPTH)


def read_query(query: Mapping[str, Sequence[str]], message: Message, taken: Collection[str] = ()) -> None:
    """Likewise from query parameters; an empty one is as if it were not there."""
    known = by_key(message.DESCRIPTOR)
    for key, texts in query.items():
        member = known.get(key)
        if member is None or member.is_filled or member.name in taken or member.form not in IN_QUERY:
            raise unknown(key)
        given = [text for text in texts if text]
        if len(given) > 1 and not member.repeated:
            raise duplicate(key)
        values = [_query_value(key, member, text) for text in given]
        if member.repeated:
            getattr(message, member.name).extend(values)
        elif values:
            _put(message, member, values[0])


def _query_value(path: str, member: Member, text: str) -> Any:
    """The parameter as if it stood in JSON; a text needs no quotes there."""
    if member.form in (Form.STRING, Form.ENUM):
        return _text_value(path, member, text)
    try:
        return _value(path, member, text.encode())
    except InvalidArgument as error:
        if error.context.get("code") != "invalid_type":
            raise
        message = f"Invalid type for '{path}': expected {NAMES[member.form]}, but got a string instead."
        raise InvalidArgument(message, param=path, code="invalid_type") from error


def _read_members(
    members: Mapping[str, msgspec.Raw], message: Message, prefix: str, taken: Collection[str], depth: int
) -> None:
    known = by_key(message.DESCRIPTOR)
    for key in members:
        member = known.get(key)
        if member is None or member.is_filled or member.name in taken:
            raise unknown(prefix + key)
    for key, raw in members.items():
        token = bytes(raw)
        if token != b"null":
            _read_member(prefix + key, known[key], token, message, depth)


def _read_member(path: str, member: Member, token: bytes, message: Message, depth: int) -> None:
    if member.repeated:
        if token[:1] != b"[":
            raise wrong_type(path, "an array", token)
        place = getattr(message, member.name)
        for index, item in enumerate(open_array(path, token)):
            item_path, item_token = f"{path}[{index}]", bytes(item)
            if member.form is Form.MESSAGE:
                _read_object(item_path, item_token, place.add(), depth - 1)
            else:
                place.append(_value(item_path, member, item_token))
    elif member.form is Form.MESSAGE:
        inner = getattr(message, member.name)
        inner.SetInParent()
        _read_object(path, token, inner, depth - 1)
    else:
        _put(message, member, _value(path, member, token))


def _read_object(path: str, token: bytes, message: Message, depth: int) -> None:
    _read_members(_open_object(path, token, depth), message, f"{path}.", (), depth)


def _put(message: Message, member: Member, value: Any) -> None:
    if member.form is Form.TIME:
        getattr(message, member.name).seconds = value
        getattr(message, member.name).SetInParent()
    else:
        setattr(message, member.name, value)


def _value(path: str, member: Member, token: bytes) -> Any:
    """Of all forms but messages."""
    return READERS[member.form](path, member, token)


def _string(path: str, member: Member, token: bytes) -> str | int:
    if token[:1] != b'"':
        raise wrong_type(path, "a string", token)
    return _text_value(path, member, msgspec.json.decode(token, type=str))


def _boolean(path: str, member: Member, token: bytes) -> bool:
    if token not in BOOLEANS:
        raise wrong_type(path, "a boolean", token)
    return BOOLEANS[token]


def _free(path: str, member: Member, token: bytes) -> str:
    """The text of an object that somebody else reads: not too deep nor of too many values, no member stands twice, and
    numbers are what 64 bits hold."""
    if token[:1] != b"{":
        raise wrong_type(path, "an object", token)
    _walk(path, token, MAX_DEPTH, [MAX_VALUES])
    return token.decode()


def _text_value(path: str, member: Member, text: str) -> str | int:
    if member.values is None:
        return checked_text(path, text)
    names = enum_names(member.values)
    if text not in names:
        listed = ", ".join(f"'{name}'" for name in names)
        message = f"Invalid value: '{printable(text)}'. Supported values are: {listed}."
        raise InvalidArgument(message, param=path, code="invalid_value")
    return names[text]


def _integer(path: str, member: Member, token: bytes) -> int:
    digits = token.decode()
    if not INTEGER.fullmatch(digits):
        raise wrong_type(path, "an integer", token)
    value = bounded(path, digits)
    if member.form is Form.TIME:
        least, most = 0, LATEST
    elif member.bits == 32:
        least, most = -MAX_INT32, MAX_INT32
    else:
        return value
    if not least <= value <= most:
        side, bound = ("below_min", f">= {least}") if value < least else ("above_max", f"<= {most}")
        message = f"Invalid '{path}': integer out of range. Expected a value {bound}."
        raise InvalidArgument(message, param=path, code=f"integer_{side}_value")
    return value


def _number(path: str, member: Member, token: bytes) -> float:
    text = token.decode()
    if not NUMBER.fullmatch(text):
        raise wrong_type(path, "a number", token)
    value = float(text)
    if not math.isfinite(value):
        raise InvalidArgument(f"Invalid '{path}': number out of range.", param=path, code="invalid_value")
    return value


def _walk(path: str, token: bytes, depth: int, left: list[int]) -> None:
    left[0] -= 1
    if left[0] < 0:
        raise InvalidArgument(f"Invalid '{path}': too many values.", param=path, code="invalid_value")
    if token[:1] == b"{":
        for name, raw in _open_object(path, token, depth).items():
            _walk(f"{path}.{printable(name)}", bytes(raw), depth - 1, left)
    elif token[:1] == b"[":
        _check_depth(path, depth)
        for index, raw in enumerate(open_array(path, token)):
            _walk(f"{path}[{index}]", bytes(raw), depth - 1, left)
    elif token[:1] not in b'"tfn' and len(token) > SHORT:
        _check_number(path, token.decode())


def _check_number(path: str, text: str) -> None:
    """Whoever reads it later would take a larger one for something else, or not see which of them it was."""
    if INTEGER.fullmatch(text):
        if len(text) > LONGEST_INTEGER or not MIN_INT64 <= int(text) <= MAX_UINT64:
            side, bound = ("below_min", f">= {MIN_INT64}") if text[0] == "-" else ("above_max", f"<= {MAX_UINT64}")
            message = f"Invalid '{path}': integer out of range. Expected a value {bound}."
            raise InvalidArgument(message, param=path, code=f"integer_{side}_value")
    elif not math.isfinite(float(text)):
        raise InvalidArgument(f"Invalid '{path}': number out of range.", param=path, code="invalid_value")


def _open_object(path: str, token: bytes, depth: int) -> dict[str, msgspec.Raw]:
    if token[:1] != b"{":
        raise wrong_type(path, "an object", token)
    _check_depth(path, depth)
    members = msgspec.json.decode(token, type=dict[str, msgspec.Raw])
    refuse_duplicates(token.decode(), members, f"{path}.")
    return members


def _check_depth(path: str, depth: int) -> None:
    if depth <= 0:
        raise InvalidArgument(
            f"Invalid '{path}': expected at most {MAX_DEPTH} levels of nesting.", param=path, code="invalid_value"
        )


READERS: dict[Form, Callable[[str, Member, bytes], Any]] = {
    Form.STRING: _string,
    Form.ENUM: _string,
    Form.INTEGER: _integer,
    Form.TIME: _integer,
    Form.NUMBER: _number,
    Form.BOOLEAN: _boolean,
    Form.JSON: _free,
}
