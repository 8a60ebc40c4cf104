"""Checks of values that more than one call needs. Messages and codes are OpenAI's where OpenAI has some."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from services.kit.errors import AlreadyExists, InvalidArgument, NotFound

LONGEST_NAME = 255

# What JSON's types are called in messages.
TYPE_NAMES: dict[type, str] = {
    dict: "an object",
    list: "an array",
    str: "a string",
    int: "an integer",
    float: "a decimal",
    bool: "a boolean",
    type(None): "null",
}


def no_nul(param: str, value: str | None) -> None:
    """PostgreSQL stores no NUL character, so nothing of ours holds one."""
    if value is not None and "\0" in value:
        raise InvalidArgument(f"Invalid '{param}': NUL characters are not allowed.", param=param, code="invalid_value")


def required(param: str, value: str) -> None:
    if not value:
        message = f"Missing required parameter: '{param}'."
        raise InvalidArgument(message, param=param, code="missing_required_parameter")
    text(param, value)


def text(param: str, value: str, longest: int = LONGEST_NAME) -> None:
    no_nul(param, value)
    if len(value) > longest:
        message = (
            f"Invalid '{param}': string too long. Expected a string with maximum length {longest}, "
            f"but got a string with length {len(value)} instead."
        )
        raise InvalidArgument(message, param=param, code="string_above_max_length")


def wrong_type(param: str, expected: str, value: Any) -> InvalidArgument:
    message = f"Invalid type for '{param}': expected {expected}, but got {TYPE_NAMES[type(value)]} instead."
    return InvalidArgument(message, param=param, code="invalid_type")


def one_of(param: str, value: str, supported: Sequence[str]) -> None:
    if value not in supported:
        listed = ", ".join(f"'{name}'" for name in supported)
        message = f"Invalid value: '{value[:64]}'. Supported values are: {listed}."
        raise InvalidArgument(message, param=param, code="invalid_value")


def between(param: str, value: int, lowest: int, highest: int) -> None:
    if value < lowest:
        message = (
            f"Invalid '{param}': integer below minimum value. Expected a value >= {lowest}, but got {value} instead."
        )
        raise InvalidArgument(message, param=param, code="integer_below_min_value")
    if value > highest:
        message = (
            f"Invalid '{param}': integer above maximum value. Expected a value <= {highest}, but got {value} instead."
        )
        raise InvalidArgument(message, param=param, code="integer_above_max_value")


def idempotency(key: str | None, request_hash: str) -> None:
    if key is None:
        return
    required("idempotency_key", key)
    required("request_hash", request_hash)
    text("request_hash", request_hash, 64)


def same_request(key: str, earlier: str, now: str) -> None:
    if earlier != now:
        raise AlreadyExists(f"The idempotency key '{key}' was used with another request.", param="Idempotency-Key")


def page_size(value: int, default: int, largest: int) -> int:
    if value == 0:
        return default
    between("limit", value, 1, largest)
    return value


def missing_job(id: str) -> NotFound:
    shown = id[:128].replace("\0", "?")
    return NotFound(f"No job found with id '{shown}'.", resource="job", id=shown, param="id")


def required_document(param: str, value: str | None) -> None:
    """Its size and contents are looked at by whoever reads it."""
    if not value:
        message = f"Missing required parameter: '{param}'."
        raise InvalidArgument(message, param=param, code="missing_required_parameter")
