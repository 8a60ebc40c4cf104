"""Checks of values that several roles make alike. Messages and codes are OpenAI's where OpenAI has some."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from services.kit.errors import AlreadyExists, InvalidArgument
from services.kit.spec.block import LONGEST_SHOWN, dotted

# Of ids, names and idempotency keys.
LONGEST_ID = 255
LONGEST_HASH = 64
# OpenAI's limits of `metadata`.
MOST_PAIRS = 16
LONGEST_KEY = 64
LONGEST_VALUE = 512

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


def missing_parameter(param: str, more: str = "") -> InvalidArgument:
    message = f"Missing required parameter: '{param}'.{more}"
    return InvalidArgument(message, param=param, code="missing_required_parameter")


def wrong_type(param: str, expected: str, value: Any) -> InvalidArgument:
    message = f"Invalid type for '{param}': expected {expected}, but got {TYPE_NAMES[type(value)]} instead."
    return InvalidArgument(message, param=param, code="invalid_type")


def required(**texts: str | None) -> None:
    """None of them may be absent or empty."""
    for param, text in texts.items():
        if not text:
            raise missing_parameter(param)


def no_nul(**texts: str | None) -> None:
    """PostgreSQL stores no NUL character, so nothing of ours holds one."""
    for param, text in texts.items():
        if text is not None and "\0" in text:
            raise InvalidArgument(
                f"Invalid '{param}': NUL characters are not allowed.", param=param, code="invalid_value"
            )


def at_most(param: str, text: str, longest: int) -> None:
    """`longest`: in characters."""
    if len(text) > longest:
        message = (
            f"Invalid '{param}': string too long. Expected a string with maximum length {longest}, "
            f"but got a string with length {len(text)} instead."
        )
        raise InvalidArgument(message, param=param, code="string_above_max_length")


def one_of(param: str, value: str, supported: Sequence[str]) -> None:
    """`supported`: two or more."""
    if value not in supported:
        listed = ", ".join(f"'{name}'" for name in supported[:-1]) + f", and '{supported[-1]}'"
        message = f"Invalid value: '{shown(value)}'. Supported values are: {listed}."
        raise InvalidArgument(message, param=param, code="invalid_value")


def between(param: str, value: int, lowest: int, highest: int) -> None:
    """Both ends are allowed."""
    if value < lowest:
        raise _outside(param, value, "below minimum", f">= {lowest}", "integer_below_min_value")
    if value > highest:
        raise _outside(param, value, "above maximum", f"<= {highest}", "integer_above_max_value")


def _outside(param: str, value: int, side: str, expected: str, code: str) -> InvalidArgument:
    message = f"Invalid '{param}': integer {side} value. Expected a value {expected}, but got {value} instead."
    return InvalidArgument(message, param=param, code=code)


def page_size(value: int, default: int, largest: int) -> int:
    """Zero is that it was not said."""
    if value == 0:
        return default
    between("limit", value, 1, largest)
    return value


def pairs(param: str, value: Any) -> Mapping[str, str]:
    """OpenAI's `metadata`, once it is parsed: some pairs of short texts. Error: InvalidArgument, param perhaps `metadata.<key>`."""
    if not isinstance(value, dict):
        raise wrong_type(param, "an object", value)
    if len(value) > MOST_PAIRS:
        message = (
            f"Invalid '{param}': too many properties. Expected an object with at most {MOST_PAIRS} properties, "
            f"but got an object with {len(value)} properties instead."
        )
        raise InvalidArgument(message, param=param, code="object_above_max_properties")
    for key, item in value.items():
        at_most(param, key, LONGEST_KEY)
        place = dotted(param, key)
        if not isinstance(item, str):
            raise wrong_type(place, "a string", item)
        at_most(place, item, LONGEST_VALUE)
        no_nul(**{param: key, place: item})
    return value


def idempotency(key: str | None, request_hash: str) -> None:
    """The hash is of the request that the key stands for."""
    at_most("request_hash", request_hash, LONGEST_HASH)
    no_nul(idempotency_key=key, request_hash=request_hash)
    if key is not None:
        required(idempotency_key=key, request_hash=request_hash)
        at_most("idempotency_key", key, LONGEST_ID)


def same_request(key: str, earlier: str, now: str) -> None:
    """`earlier`, `now`: hashes of the requests that came with this key."""
    if earlier != now:
        message = f"The idempotency key '{shown(key)}' was used with another request."
        raise AlreadyExists(message, param="Idempotency-Key")


def shown(text: str) -> str:
    """What a user wrote, short and of one line."""
    return dotted(text)[:LONGEST_SHOWN]
