"""Checks of values that more than one call needs. Messages and codes are OpenAI's where OpenAI has some."""

from __future__ import annotations

from collections.abc import Sequence

from services.kit.errors import AlreadyExists, Conflict, InvalidArgument, NotFound
from services.kit.spec.block import LONGEST_SHOWN, dotted
from services.kit.spec.template import CONTROL

DEFAULT_PAGE = 20
LARGEST_PAGE = 100
LONGEST_ID = 255
# A page ends early when its texts hold this many characters: a message has at most 16 MiB.
PAGE_CHARACTERS = 4 * 1024 * 1024


def missing_parameter(param: str, more: str = "") -> InvalidArgument:
    message = f"Missing required parameter: '{param}'.{more}"
    return InvalidArgument(message, param=param, code="missing_required_parameter")


def invalid(param: str, why: str) -> InvalidArgument:
    return InvalidArgument(f"Invalid value for '{param}': {why}.", param=param, code="invalid_value")


def required(**texts: str) -> None:
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
    if len(text) > longest:
        message = (
            f"Invalid '{param}': string too long. Expected a string with maximum length {longest}, "
            f"but got a string with length {len(text)} instead."
        )
        raise InvalidArgument(message, param=param, code="string_above_max_length")


def plain(param: str, text: str, longest: int) -> None:
    """One line for people: no control characters, no space around it."""
    at_most(param, text, longest)
    if CONTROL.search(text) or text != text.strip():
        raise invalid(param, "it may not hold control characters, nor begin or end with a space")


def prose(param: str, text: str, longest: int) -> None:
    at_most(param, text, longest)
    no_nul(**{param: text})


def one_of(param: str, value: str, supported: Sequence[str]) -> None:
    if value not in supported:
        listed = ", ".join(f"'{name}'" for name in supported[:-1]) + f", and '{supported[-1]}'"
        message = f"Invalid value: '{shown(value)}'. Supported values are: {listed}."
        raise InvalidArgument(message, param=param, code="invalid_value")


def page_size(value: int) -> int:
    if value == 0:
        return DEFAULT_PAGE
    if value < 1:
        message = f"Invalid 'limit': integer below minimum value. Expected a value >= 1, but got {value} instead."
        raise InvalidArgument(message, param="limit", code="integer_below_min_value")
    if value > LARGEST_PAGE:
        message = f"Invalid 'limit': integer above maximum value. Expected a value <= {LARGEST_PAGE}, but got {value} instead."
        raise InvalidArgument(message, param="limit", code="integer_above_max_value")
    return value


def revision(value: int) -> None:
    """Zero is that it was not said."""
    if value == 0:
        raise missing_parameter("revision", " Send the revision that you saw, so that nobody's change is lost.")
    if value < 0:
        raise invalid("revision", "it must be at least 1")


def idempotency(key: str | None, request_hash: str) -> None:
    at_most("request_hash", request_hash, 64)
    no_nul(idempotency_key=key, request_hash=request_hash)
    if key is not None:
        required(idempotency_key=key, request_hash=request_hash)
        at_most("idempotency_key", key, LONGEST_ID)


def same_request(key: str, earlier: str, now: str) -> None:
    if earlier != now:
        message = f"The idempotency key '{shown(key)}' was used with another request."
        raise AlreadyExists(message, param="Idempotency-Key")


def findable(*ids: str) -> bool:
    """Whether anything can have these ids; the database is not asked for others."""
    return all(0 < len(id) <= LONGEST_ID and "\0" not in id for id in ids)


def missing(kind: str, id: str, param: str = "id") -> NotFound:
    return NotFound(f"No {kind} found with id '{shown(id)}'.", param=param)


def changed(kind: str, seen: int, current: int) -> Conflict:
    message = f"The {kind} is at revision {current}, not {seen}: somebody changed it. Look at it again, then repeat."
    return Conflict(message, param="revision")


def shown(text: str) -> str:
    """What a user wrote, short and of one line."""
    return dotted(text)[:LONGEST_SHOWN]
