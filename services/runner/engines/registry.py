"""How each type of engine is started: one adapter a row, from the template's typed flags to an argument list.

Values come from users, so an adapter accepts flags by name and type, and no others: real engines have flags that import
code or read files. There is never a shell.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from services.kit.errors import InvalidArgument
from services.kit.spec.block import as_invalid
from services.kit.spec.template import TemplateSpec
from services.runner.engines.options import Behaviour

# Where `-m services...` is found, whatever the working directory of the runner.
ROOT = Path(__file__).resolve().parents[3]
TEMPLATE = ("model_template", "spec")


@dataclass(frozen=True, kw_only=True)
class Command:
    """What is to be started on this machine."""

    arguments: tuple[str, ...]
    folder: Path | None = None
    """Working directory; None: a folder of its own."""
    reports_port: bool = False
    """It binds a free port itself and writes it to the port file. Otherwise the port is chosen for it."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where it listens."""

    host: str
    port: int
    port_file: Path


Adapter = Callable[[TemplateSpec, Place], Command]


def mock(spec: TemplateSpec, place: Place) -> Command:
    values = _typed(spec.engine_args.model_dump(exclude_unset=True)) | _typed_text(spec.engine.serve_args)
    flags = [part for name, value in sorted(values.items()) for part in (_flag(name), str(value))]
    module = (sys.executable, "-m", "services.runner.engines.mock")
    where = ("--host", place.host, "--port", "0", "--port-file", str(place.port_file))
    return Command(arguments=(*module, *where, *flags), folder=ROOT, reports_port=True)


ADAPTERS: dict[str, Adapter] = {"mock": mock}


def command(spec: TemplateSpec, place: Place) -> Command:
    """Error: InvalidArgument, with the path in the template of what cannot be started."""
    adapter = ADAPTERS.get(spec.engine.type)
    if adapter is None:
        path = ".".join(("aibrix", *TEMPLATE, "engine", "type"))
        raise InvalidArgument(
            f"Invalid value for '{path}': this version starts these engines itself: {', '.join(sorted(ADAPTERS))}.",
            param=path,
            code="invalid_value",
        )
    return adapter(spec, place)


def _typed(values: dict[str, Any]) -> dict[str, Any]:
    try:
        return Behaviour.model_validate(values, strict=True).model_dump(exclude_unset=True)
    except ValidationError as error:
        raise _refused(error, "engine_args") from error


def _typed_text(arguments: Sequence[str]) -> dict[str, Any]:
    """`["--latency-ms", "20"]` and `["--latency-ms=20"]`, by the same types."""
    words = [part for argument in arguments for part in argument.split("=", 1)]
    names, values = words[::2], words[1::2]
    if len(names) != len(values) or not all(name.startswith("--") for name in names):
        path = ".".join(("aibrix", *TEMPLATE, "engine", "serve_args"))
        raise InvalidArgument(f"Invalid value for '{path}': it must be flags with values.", param=path)
    try:
        found = Behaviour.model_validate_strings(
            {name[2:].replace("-", "_"): value for name, value in zip(names, values, strict=True)}
        )
    except ValidationError as error:
        raise _refused(error, "engine", "serve_args") from error
    return found.model_dump(exclude_unset=True)


def _refused(error: ValidationError, *place: str) -> InvalidArgument:
    first = error.errors(include_url=False, include_input=False)[0]
    return as_invalid({**first, "loc": (*TEMPLATE, *place, *first["loc"])})


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
