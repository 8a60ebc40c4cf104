"""Checks of values that more than one call of this role needs; those that other roles need too come from the kit."""

from __future__ import annotations

from services.kit import checks
from services.kit.checks import LONGEST_ID
from services.kit.checks import between as between
from services.kit.checks import idempotency as idempotency
from services.kit.checks import one_of as one_of
from services.kit.checks import page_size as page_size
from services.kit.checks import pairs as pairs
from services.kit.checks import same_request as same_request
from services.kit.errors import NotFound


def no_nul(param: str, value: str | None) -> None:
    checks.no_nul(**{param: value})


def required(param: str, value: str) -> None:
    required_document(param, value)
    text(param, value)


def text(param: str, value: str, longest: int = LONGEST_ID) -> None:
    no_nul(param, value)
    checks.at_most(param, value, longest)


def missing_job(id: str) -> NotFound:
    shown = id[:128].replace("\0", "?")
    return NotFound(f"No job found with id '{shown}'.", resource="job", id=shown, param="id")


def required_document(param: str, value: str | None) -> None:
    """Its size and contents are looked at by whoever reads it."""
    if not value:
        raise checks.missing_parameter(param)
