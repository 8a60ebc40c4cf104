"""The documents that a job brings along: its template's spec, `client`, `resource_request` and `metadata`."""

from __future__ import annotations

import json
from typing import Annotated, Any, TypeVar

from pydantic import Field, StringConstraints, ValidationError

from services.kit.errors import InvalidArgument
from services.kit.spec.block import as_invalid
from services.kit.spec.client import Client, Strict
from services.kit.spec.template import TemplateSpec
from services.planner.service import checks

D = TypeVar("D", bound=Strict)

SPEC = "model_template_spec"
CLIENT = "client"
REQUEST = "resource_request"
METADATA = "metadata"
LARGEST = 1024 * 1024

Name = Annotated[str, StringConstraints(min_length=1, max_length=128)]


class ResourceRequest(Strict):
    """What compute a job wants, besides what its template needs."""

    replicas: int = 1
    """Machines of the same kind: 1 today."""
    providers: list[Name] = Field(default_factory=list, max_length=32)
    """In order of preference. Empty: the cheapest of all that are configured."""
    regions: list[Name] = Field(default_factory=list, max_length=32)
    """In order of preference. Empty: any."""
    max_hourly_price_usd: float | None = Field(default=None, gt=0, le=1_000_000)
    """The most that an hour may cost, in US dollars."""
    labels: dict[str, str] = Field(default_factory=dict, max_length=32)
    """Labels that a static endpoint must have."""
    spot: bool = False
    """Refused: no provider here has it."""


def read_spec(text: str) -> TemplateSpec:
    """Error: InvalidArgument, param such as `model_template_spec.engine.type`."""
    return _read(TemplateSpec, text, SPEC)


def read_client(text: str | None) -> Client | None:
    """Error: InvalidArgument, param such as `client.max_concurrency`."""
    return None if text is None else _read(Client, text, CLIENT)


def read_request(text: str | None) -> ResourceRequest:
    """Error: InvalidArgument, param such as `resource_request.replicas`."""
    return ResourceRequest() if text is None else _read(ResourceRequest, text, REQUEST)


def check_metadata(text: str | None) -> None:
    """Error: InvalidArgument, param `metadata` or `metadata.<key>`."""
    if text is None:
        return
    checks.pairs(METADATA, _parsed(text, METADATA))


def _read(kind: type[D], text: str, place: str) -> D:
    _check_size(text, place)
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        raise as_invalid(error.errors(include_url=False, include_input=False)[0], place) from error


def _check_size(text: str, place: str) -> None:
    if len(text.encode("utf-8", "surrogatepass")) > LARGEST:
        message = f"Invalid '{place}': it is larger than {LARGEST} bytes."
        raise InvalidArgument(message, param=place, code="invalid_value")
    checks.no_nul(place, text)


def _parsed(text: str, place: str) -> Any:
    _check_size(text, place)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _no_json(place) from error


def _no_json(place: str) -> InvalidArgument:
    return InvalidArgument(f"Invalid '{place}': it is not valid JSON.", param=place, code="invalid_type")
