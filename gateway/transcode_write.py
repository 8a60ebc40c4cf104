"""Console messages as JSON: every member present, null where there is nothing, integers as numbers."""

from __future__ import annotations

from typing import Any

import msgspec
from google.protobuf.message import Message

from gateway.openai import page
from gateway.transcode_fields import Form, Member, enum_texts, members_of, object_name


def as_json(message: Message) -> dict[str, Any]:
    """The whole of an answer; a list is as OpenAI's are."""
    if is_list(message):
        listed: Any = message
        return page([_object(item) for item in listed.data], listed.has_more)
    return _object(message)


def is_list(message: Message) -> bool:
    return {"data", "has_more"} == set(message.DESCRIPTOR.fields_by_name)


def _object(message: Message) -> dict[str, Any]:
    written = _members(message)
    head = {"id": written["id"]} if "id" in written else {}
    return head | {"object": object_name(message.DESCRIPTOR.name)} | written


def _members(message: Message) -> dict[str, Any]:
    return {member.key: _member(message, member) for member in members_of(message.DESCRIPTOR)}


def _member(message: Message, member: Member) -> Any:
    if member.repeated:
        return [_value(member, item) for item in getattr(message, member.name)]
    if (member.optional or member.form is Form.TIME) and not message.HasField(member.name):
        return None
    return _value(member, getattr(message, member.name))


def _value(member: Member, value: Any) -> Any:
    match member.form:
        case Form.TIME:
            return value.seconds
        case Form.JSON:
            return msgspec.Raw(value.encode()) if value else None
        case Form.ENUM:
            assert member.values is not None
            return enum_texts(member.values).get(value)
        case Form.MESSAGE:
            return _members(value)
        case _:
            return value
