"""`runtime.options` of the target Local: an engine that the runner starts on its own machine."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from pydantic import Field, ValidationError

from services.kit.errors import InvalidArgument
from services.kit.spec.block import as_invalid
from services.kit.spec.client import Strict


class LocalOptions(Strict):
    """Empty: the engine of the batch's template."""

    command: str | None = Field(default=None, pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}$")
    """Name of one of the operator's commands (setting `local.commands`), never a command line."""


def parse_local(options: dict[str, Any], commands: Collection[str] | None = None) -> LocalOptions:
    """Error: InvalidArgument, param such as `aibrix.runtime.options.command`. Without `commands` the name is only read."""
    try:
        given = LocalOptions.model_validate(options)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise as_invalid({**first, "loc": ("runtime", "options", *first["loc"])}) from error
    if given.command is not None and commands is not None and given.command not in commands:
        path = "aibrix.runtime.options.command"
        raise InvalidArgument(
            f"Invalid value for '{path}': the operator has set up no command of this name.",
            param=path,
            code="invalid_value",
        )
    return given
