"""Checks of values that more than one call of this role needs; those that other roles need too come from the kit."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta

from services.kit import checks
from services.kit.checks import at_most as at_most
from services.kit.checks import between as between
from services.kit.checks import idempotency as idempotency
from services.kit.checks import no_nul as no_nul
from services.kit.checks import one_of as one_of
from services.kit.checks import page_size as page_size
from services.kit.checks import same_request as same_request
from services.kit.errors import InvalidArgument, NotFound
from services.metadata.domain import DEFAULT_FILE_LIFE

PURPOSES = ("assistants", "batch", "fine-tune", "vision", "user_data", "evals")
KEPT_PURPOSES = ("batch", "batch_output")
LIFE_S = (3600, 2_592_000)


def required(**texts: str) -> None:
    checks.required(**texts)
    no_nul(**texts)


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
