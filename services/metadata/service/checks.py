"""Checks of values that more than one call needs. Messages and codes are OpenAI's where OpenAI has some."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta

from services.kit.errors import AlreadyExists, InvalidArgument, NotFound
from services.metadata.domain import DEFAULT_FILE_LIFE

PURPOSES = ("assistants", "batch", "fine-tune", "vision", "user_data", "evals")
KEPT_PURPOSES = ("batch", "batch_output")
LIFE_S = (3600, 2_592_000)


def no_nul(**texts: str | None) -> None:
    """PostgreSQL stores no NUL character, so nothing of ours holds one."""
    for param, text in texts.items():
        if text is not None and "\0" in text:
            raise InvalidArgument(
                f"Invalid '{param}': NUL characters are not allowed.", param=param, code="invalid_value"
            )


def required(**texts: str) -> None:
    for param, text in texts.items():
        if not text:
            message = f"Missing required parameter: '{param}'."
            raise InvalidArgument(message, param=param, code="missing_required_parameter")
    no_nul(**texts)


def one_of(param: str, value: str, supported: Sequence[str]) -> None:
    if value not in supported:
        listed = ", ".join(f"'{name}'" for name in supported[:-1]) + f", and '{supported[-1]}'"
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


def at_most(param: str, text: str, longest: int) -> None:
    if len(text) > longest:
        message = (
            f"Invalid '{param}': string too long. Expected a string with maximum length {longest}, "
            f"but got a string with length {len(text)} instead."
        )
        raise InvalidArgument(message, param=param, code="string_above_max_length")


def filename(name: str) -> None:
    required(filename=name)
    at_most("filename", name, 255)
    if any(ord(character) < 32 or ord(character) == 127 for character in name):
        raise InvalidArgument(
            "Invalid 'filename': control characters are not allowed.", param="filename", code="invalid_value"
        )


def lifetime(param: str, seconds: int | None) -> None:
    if seconds is not None:
        between(param, seconds, *LIFE_S)


def idempotency(key: str | None, request_hash: str) -> None:
    if key is None:
        return
    required(idempotency_key=key, request_hash=request_hash)
    at_most("idempotency_key", key, 255)
    at_most("request_hash", request_hash, 64)


def same_request(key: str, earlier: str, now: str) -> None:
    if earlier != now:
        raise AlreadyExists(f"The idempotency key '{key}' was used with another request.", param="Idempotency-Key")


def page_size(value: int, default: int, largest: int) -> int:
    if value == 0:
        return default
    between("limit", value, 1, largest)
    return value


def object_key(key: str, prefix: str) -> None:
    """A caller names only objects of the kind that its call is about."""
    required(object_key=key)
    if not key.startswith(prefix) or ".." in key or len(key) > 512:
        raise InvalidArgument(f"the key of the object must start with {prefix}", param="object_key")


def life_of(purpose: str, seconds: int | None) -> timedelta | None:
    """How long a file lives from its creation; None: for ever."""
    if seconds is not None:
        return timedelta(seconds=seconds)
    return DEFAULT_FILE_LIFE if purpose in KEPT_PURPOSES else None


NAMES: Mapping[str, str] = {
    "file": "No such File object: {id}",
    "upload": "No such Upload object: {id}",
    "batch": "No batch found with id '{id}'.",
}


def missing(resource: str, id: str) -> NotFound:
    shown = id[:128]
    return NotFound(NAMES[resource].format(id=shown), resource=resource, id=shown, param="id")
