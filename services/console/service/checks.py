"""Checks of values that more than one call of this role needs; those that other roles need too come from the kit."""

from __future__ import annotations

from services.kit import checks
from services.kit.checks import LONGEST_ID as LONGEST_ID
from services.kit.checks import at_most as at_most
from services.kit.checks import idempotency as idempotency
from services.kit.checks import missing_parameter as missing_parameter
from services.kit.checks import no_nul as no_nul
from services.kit.checks import one_of as one_of
from services.kit.checks import required as required
from services.kit.checks import same_request as same_request
from services.kit.checks import shown as shown
from services.kit.errors import Conflict, InvalidArgument, NotFound
from services.kit.spec.template import CONTROL

DEFAULT_PAGE = 20
LARGEST_PAGE = 100
# A page ends early when its texts hold this many characters: a message has at most 16 MiB.
PAGE_CHARACTERS = 4 * 1024 * 1024
# No thing comes to as many: the one behind a revision still fits into its column.
REVISIONS = 2**62


def invalid(param: str, why: str) -> InvalidArgument:
    return InvalidArgument(f"Invalid value for '{param}': {why}.", param=param, code="invalid_value")


def plain(param: str, text: str, longest: int) -> None:
    """One line for people: no control characters, no space around it."""
    at_most(param, text, longest)
    if CONTROL.search(text) or text != text.strip():
        raise invalid(param, "it may not hold control characters, nor begin or end with a space")


def prose(param: str, text: str, longest: int) -> None:
    at_most(param, text, longest)
    no_nul(**{param: text})


def page_size(value: int | None) -> int:
    if value is None:
        return DEFAULT_PAGE
    checks.between("limit", value, 1, LARGEST_PAGE)
    return value


def revision(value: int) -> None:
    """Zero is that it was not said."""
    if value == 0:
        raise missing_parameter("revision", " Send the revision that you saw, so that nobody's change is lost.")
    if not 0 < value < REVISIONS:
        raise invalid("revision", "it must be at least 1, and one that an answer had")


def findable(*ids: str) -> bool:
    """Whether anything can have these ids; the database is not asked for others."""
    return all(0 < len(id) <= LONGEST_ID and "\0" not in id for id in ids)


def missing(kind: str, id: str, param: str = "id") -> NotFound:
    return NotFound(f"No {kind} found with id '{shown(id)}'.", param=param)


def changed(kind: str, seen: int, current: int) -> Conflict:
    message = f"The {kind} is at revision {current}, not {seen}: somebody changed it. Look at it again, then repeat."
    return Conflict(message, param="revision")
