"""The `aibrix` block of a batch: the seed's contract, strict, with the field's path in every error."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, ValidationError, field_validator

from services.kit.errors import InvalidArgument
from services.kit.spec.client import MAX_CONCURRENCY, Client, Strict
from services.kit.spec.profile import ProfileSpec
from services.kit.spec.template import Name, TemplateSpec

EXTERNAL = "External"
# A name that a user invented stands in messages up to this length.
LONGEST_SHOWN = 64


class Runtime(Strict):
    target: str = Field(min_length=1, max_length=128)
    options: dict[str, Any] = Field(default_factory=dict)
    """Free-form: the runtime that `target` names checks it."""


class TemplateOverrides(Strict):
    """What a batch may change of its template."""

    engine_args: dict[str, Any] = Field(default_factory=dict)


class ModelTemplate(Strict):
    name: Name
    version: Annotated[str, Field(pattern=r"^(?:[A-Za-z0-9][!-~]{0,127})?$")] | None = None
    """Absent or empty: the latest active one of the registry."""
    spec: TemplateSpec | None = None
    """Absent or empty: the registry's."""
    overrides: TemplateOverrides | None = None

    @field_validator("spec", mode="before")
    @classmethod
    def _an_empty_one_is_none(cls, spec: Any) -> Any:
        return None if spec == {} else spec


class ProfileOverrides(Strict):
    """What a batch may change of its profile."""

    scheduling: dict[str, Any] = Field(default_factory=dict)


class Profile(Strict):
    name: Name
    spec: ProfileSpec | None = None
    """Absent: the registry's."""
    overrides: ProfileOverrides | None = None


class Block(Strict):
    job_id: str | None = Field(default=None, min_length=1, max_length=256)
    model: str | None = Field(default=None, min_length=1, max_length=512)
    runtime: Runtime | None = None
    resource_allocation: dict[str, Any] | None = None
    """Free-form: what a resource manager records."""
    model_template: ModelTemplate | None = None
    profile: Profile | None = None
    client: Client | None = None

    def target(self) -> str:
        return self.runtime.target if self.runtime else EXTERNAL

    def options(self) -> dict[str, Any]:
        return self.runtime.options if self.runtime else {}


def parse_block(text: str | bytes | None) -> Block:
    """The block of JSON `text`; an empty one for none. Error: InvalidArgument, param such as `aibrix.client.max_concurrency`."""
    if text is None:
        return Block()
    try:
        return Block.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise as_invalid(first) from error


def as_invalid(detail: Any, root: str = "aibrix") -> InvalidArgument:
    """One of pydantic's complaints as ours. It never repeats the value: that may be a secret or a megabyte.

    `root`: the parameter that holds the document; empty, if its fields are parameters themselves.
    """
    path = dotted(*([root] if root else []), *detail["loc"])
    kind: str = detail["type"]
    if kind == "extra_forbidden":
        return InvalidArgument(f"Unknown parameter: '{path}'.", param=path, code="unknown_parameter")
    if kind == "missing":
        return InvalidArgument(f"Missing required parameter: '{path}'.", param=path, code="missing_required_parameter")
    if kind == "json_invalid":
        return InvalidArgument(f"Invalid '{path}': it is not valid JSON.", param=path, code="invalid_type")
    code = "invalid_type" if kind.endswith(("_type", "_parsing")) else "invalid_value"
    hint = f" At most {MAX_CONCURRENCY} requests may be in flight." if path.endswith("max_concurrency") else ""
    why = detail["msg"].removeprefix("Value error, ")
    return InvalidArgument(f"Invalid value for '{path}': {why}.{hint}", param=path, code=code)


def dotted(*parts: object) -> str:
    """A path for people and programs: short, and of one line, whatever the names in it."""
    shown = (str(part) for part in parts)
    plain = ("".join(c if c.isprintable() else "?" for c in text[:LONGEST_SHOWN]) for text in shown)
    return ".".join(plain)[: 8 * LONGEST_SHOWN]
