"""The mock engine: flags that say how it behaves. It has no model, and flags that engines share have no effect on it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from services.kit.engines.base import Adapter
from services.kit.engines.flags import SPEC, Ignored, Path, invalid
from services.kit.engines.listed import Integer, Kind, Real
from services.kit.errors import InvalidArgument
from services.kit.spec.block import as_invalid
from services.kit.spec.template import EngineArgs, ModelSource, Parallelism, Quantization, TemplateSpec


class Behaviour(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)

    latency_ms: float = Field(default=0.0, ge=0, le=3_600_000)
    """How long an answer takes."""
    capacity: int | None = Field(default=None, ge=1)
    """Requests in flight above this many get a 429. None: no limit."""
    retry_after_s: int = Field(default=1, ge=0, le=3600)
    """The Retry-After of a 429."""
    error_rate: float = Field(default=0.0, ge=0, le=1)
    """Share of requests that get a 500, decided by seed, content and how often this content came."""
    seed: int = 0


LISTED: dict[str, Kind] = {
    "--latency-ms": Real(0, 3_600_000),
    "--capacity": Integer(1, 1_000_000_000),
    "--retry-after-s": Integer(0, 3600),
    "--error-rate": Real(0, 1),
    "--seed": Integer(0, 2**63 - 1),
}


def _check(spec: TemplateSpec) -> None:
    _check_args(spec.engine_args.others())
    _check_flags(spec.engine.serve_args)


def _check_args(others: dict[str, Any]) -> None:
    spelled = {key.replace("-", "_"): key for key in others}
    try:
        Behaviour.model_validate({name: others[key] for name, key in spelled.items()}, strict=True)
    except ValidationError as error:
        raise _refused(error, ("engine_args",), spelled) from error


def _check_flags(arguments: Sequence[str]) -> None:
    """`["--latency-ms", "20"]` and `["--latency-ms=20"]`, by the types of the fields."""
    found: dict[str, str] = {}
    rest = list(arguments)
    while rest:
        name, sign, value = rest.pop(0).partition("=")
        if not name.startswith("--") or not (sign or rest):
            raise invalid((*SPEC, "engine", "serve_args"), "it must be flags with values")
        found[name[2:].replace("-", "_")] = value if sign else rest.pop(0)
    try:
        Behaviour.model_validate_strings(found)
    except ValidationError as error:
        raise _refused(error, ("engine", "serve_args"), {}) from error


def _refused(error: ValidationError, place: Path, spelled: dict[str, str]) -> InvalidArgument:
    first = error.errors(include_url=False, include_input=False)[0]
    names = [spelled.get(str(part), part) for part in first["loc"]]
    return as_invalid({**first, "loc": (*SPEC[1:], *place, *names)})


MOCK = Adapter(
    engine="mock",
    program=("python", "-m", "services.runner.engines.mock"),
    port=8000,
    model={name: Ignored() for name in ModelSource.model_fields},
    parallelism={name: Ignored() for name in Parallelism.model_fields},
    engine_args={name: Ignored() for name in EngineArgs.model_fields},
    quantization={name: Ignored() for name in Quantization.model_fields},
    check=_check,
    listed=LISTED,
)
