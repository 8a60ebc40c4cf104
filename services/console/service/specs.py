"""What templates and jobs hold as JSON: read strictly, with the field's path in every error."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

import orjson
from pydantic import BaseModel, Field, ValidationError, field_validator

from services.kit.checks import pairs, wrong_type
from services.kit.engines import table as engines
from services.kit.errors import InvalidArgument
from services.kit.spec.block import as_invalid
from services.kit.spec.client import Client, Strict
from services.kit.spec.template import Plain, Template, TemplateSpec

SPEC = ("spec",)
# In UTF-8. A batch brings its template along in a block of at most 1 MiB.
LARGEST_SPEC = 512 * 1024
LARGEST_JSON = 64 * 1024
MOST_REPLICAS = 1024

S = TypeVar("S", bound=BaseModel)
Label = Annotated[str, Field(max_length=256), Plain]


class ResourceRequest(Strict):
    """What compute a job asks for, beside what its template says."""

    replicas: int | None = Field(default=None, ge=1, le=MOST_REPLICAS)
    """Copies of the engine."""
    providers: list[Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]{0,63}$")]] | None = Field(
        default=None, min_length=1, max_length=16
    )
    """In order of preference. Absent: the cheapest."""
    regions: list[Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:-]{0,63}$")]] | None = Field(
        default=None, min_length=1, max_length=32
    )
    """In order of preference. Absent: any."""
    max_hourly_price_usd: float | None = Field(default=None, gt=0, le=1_000_000)
    """Of all machines together."""
    labels: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,62}$")], Label] | None = Field(
        default=None, max_length=32
    )
    """What a static endpoint must have."""
    spot: bool | None = None
    """Only `false`: no provider here has machines that may be taken away."""

    @field_validator("spot")
    @classmethod
    def _not_spot(cls, spot: bool | None) -> bool | None:
        if spot:
            raise ValueError("no provider here offers spot machines")
        return spot

    @field_validator("providers", "regions")
    @classmethod
    def _each_once(cls, names: list[str] | None) -> list[str] | None:
        if names is not None and len(set(names)) < len(names):
            raise ValueError("a name stands there twice")
        return names


def read_spec(text: str, *, any_flag: bool) -> tuple[TemplateSpec, str]:
    """The spec of a template and the text to keep. Error: InvalidArgument, param such as `spec.engine.type`.

    `any_flag`: users may set every flag. Otherwise only those that neither read files nor load code.
    """
    spec = _read(TemplateSpec, "spec", text, LARGEST_SPEC)
    if not any_flag:
        given = spec.engine_args.model_dump(exclude_unset=True, exclude_none=True)
        engines.check_listed_args(spec.engine.type, given, (*SPEC, "engine_args"))
        engines.check_listed_model(spec.engine.type, spec.model_source, (*SPEC, "model_source"))
        engines.check_listed_flags(spec.engine.type, spec.engine.serve_args, (*SPEC, "engine", "serve_args"))
    return spec, spec.model_dump_json(exclude_unset=True)


def check_labels(spec: TemplateSpec, **labels: str | None) -> None:
    """Name, version and status as any registry wants them. Error: InvalidArgument, param the label."""
    given = {label: text for label, text in labels.items() if text is not None}
    try:
        Template.model_validate({"name": "a", "spec": spec} | given)
    except ValidationError as error:
        raise _first(error) from error


def read_client(text: str) -> Client:
    """Error: InvalidArgument, param such as `client.max_concurrency`."""
    return _read(Client, "client", text, LARGEST_JSON)


def read_resource_request(text: str) -> ResourceRequest:
    """Error: InvalidArgument, param such as `resource_request.replicas`."""
    return _read(ResourceRequest, "resource_request", text, LARGEST_JSON)


def kept(resource_request: str) -> str:
    """A resource request as the planner gets it, without what says nothing."""
    return read_resource_request(resource_request).model_dump_json(exclude_none=True, exclude={"spot"})


def check_metadata(text: str) -> None:
    """As OpenAI's: 16 pairs of texts. Error: InvalidArgument, param `metadata` or `metadata.<key>`."""
    pairs("metadata", _object("metadata", text, LARGEST_JSON))


def _read(model: type[S], param: str, text: str, largest: int) -> S:
    _object(param, text, largest)
    try:
        return model.model_validate_json(text)
    except ValidationError as error:
        raise _first(error, param) from error


def _object(param: str, text: str, largest: int) -> dict[str, Any]:
    """An object of JSON. Stricter than pydantic: no NaN, no lone surrogates, no bottomless nesting."""
    if len(text) > largest or len(text.encode()) > largest:
        message = f"Invalid '{param}': it is larger than {largest} bytes."
        raise InvalidArgument(message, param=param, code="invalid_value")
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise _no_json(param) from error
    if not isinstance(value, dict):
        raise wrong_type(param, "an object", value)
    return value


def _no_json(param: str) -> InvalidArgument:
    return InvalidArgument(f"Invalid '{param}': it is not valid JSON.", param=param, code="invalid_type")


def _first(error: ValidationError, root: str = "") -> InvalidArgument:
    return as_invalid(error.errors(include_url=False, include_input=False)[0], root)
