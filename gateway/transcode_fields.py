"""How the fields of console messages are called and written in JSON; reading and writing both go by this.

A Timestamp `x_time` is `x_at` in whole seconds since 1970, a text `x_json` is the object `x`, enums are lower case; all else
keeps its name.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum, auto
from functools import cache

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor

# The gateway knows these: what a caller says about them is never looked at.
FILLED = frozenset({"project_id", "created_by", "idempotency_key", "request_hash", "key_hash", "call_id"})
TIMESTAMP = "google.protobuf.Timestamp"
# As OpenAI's objects say it.
PAST = {"create": "created", "update": "updated"}
HUMP = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")


class Form(Enum):
    STRING = auto()
    JSON = auto()
    """A text that holds an object of JSON."""
    INTEGER = auto()
    NUMBER = auto()
    BOOLEAN = auto()
    ENUM = auto()
    TIME = auto()
    MESSAGE = auto()


FORMS = {
    FieldDescriptor.TYPE_STRING: Form.STRING,
    FieldDescriptor.TYPE_INT32: Form.INTEGER,
    FieldDescriptor.TYPE_INT64: Form.INTEGER,
    FieldDescriptor.TYPE_DOUBLE: Form.NUMBER,
    FieldDescriptor.TYPE_BOOL: Form.BOOLEAN,
    FieldDescriptor.TYPE_ENUM: Form.ENUM,
    FieldDescriptor.TYPE_MESSAGE: Form.MESSAGE,
}


@dataclass(frozen=True)
class Member:
    """A field as a member of an object."""

    key: str
    name: str
    form: Form
    repeated: bool
    optional: bool
    """Absent is null; other messages are written with what they hold by default."""
    is_filled: bool
    bits: int
    values: EnumDescriptor | None
    message: Descriptor | None


@cache
def members_of(descriptor: Descriptor) -> tuple[Member, ...]:
    """In the order of the proto. Error: TypeError, for a field that has no form in JSON here."""
    return tuple(_member(field) for field in descriptor.fields)


def check_forms(descriptor: Descriptor, seen: frozenset[str] = frozenset()) -> None:
    """Error: TypeError, for a field in it, however deep, that has no form in JSON here."""
    for member in members_of(descriptor):
        if member.form is Form.MESSAGE and member.message is not None and member.message.full_name not in seen:
            check_forms(member.message, seen | {member.message.full_name})


@cache
def by_key(descriptor: Descriptor) -> dict[str, Member]:
    return {member.key: member for member in members_of(descriptor)}


def _member(field: FieldDescriptor) -> Member:
    form = FORMS.get(field.type)
    if form is None or (field.message_type is not None and field.message_type.GetOptions().map_entry):
        raise TypeError(f"{field.full_name} has no form in JSON")
    key = field.name
    if field.message_type is not None and field.message_type.full_name == TIMESTAMP:
        form, key = Form.TIME, time_key(field.name)
    elif form is Form.STRING and field.name.endswith("_json"):
        form, key = Form.JSON, field.name.removesuffix("_json")
    return Member(
        key=key,
        name=field.name,
        form=form,
        repeated=field.is_repeated,
        optional=field.containing_oneof is not None,
        is_filled=field.name in FILLED,
        bits=32 if field.type == FieldDescriptor.TYPE_INT32 else 64,
        values=field.enum_type,
        message=field.message_type,
    )


def time_key(name: str) -> str:
    """`queued_time` is `queued_at`, `create_time` is `created_at`, `time` is `at`."""
    stem = name.removesuffix("time").removesuffix("_")
    return f"{PAST.get(stem, stem)}_at" if stem else "at"


@cache
def enum_names(values: EnumDescriptor) -> dict[str, int]:
    """Numbers by name in JSON. Zero is that there is none."""
    return {value.name.lower(): value.number for value in values.values if value.number != 0}


@cache
def enum_texts(values: EnumDescriptor) -> dict[int, str]:
    return {number: name for name, number in enum_names(values).items()}


@cache
def object_name(message_name: str) -> str:
    """`DeploymentTemplate` is `deployment_template`."""
    return HUMP.sub("_", message_name).lower()
