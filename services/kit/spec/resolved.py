"""What a block's references came to when the batch was made. Kept with the batch: a registry may change, a batch does not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeVar

from pydantic import ValidationError

from services.kit.errors import InvalidArgument
from services.kit.spec.block import Block, as_invalid, dotted
from services.kit.spec.block import ModelTemplate as TemplateReference
from services.kit.spec.block import Profile as ProfileReference
from services.kit.spec.catalog import NO_PROFILES, NO_TEMPLATES, Catalog
from services.kit.spec.client import Strict
from services.kit.spec.profile import Profile, ProfileSpec, Quota
from services.kit.spec.template import DEFAULT_VERSION, Template, TemplateSpec

T = TypeVar("T")
SUPPORTED = "aibrix.model_template.spec.supported_endpoints"


class ResolvedTemplate(Template):
    """With the batch's overrides in it."""

    source: Literal["inline", "registry"]
    """`inline`: an ordinary user wrote it, in the batch or in the console. `registry`: an operator did."""
    overrides: dict[str, Any] | None = None
    """What the batch changed, as it was given."""


class ResolvedProfile(Profile):
    source: Literal["inline", "registry"]
    overrides: dict[str, Any] | None = None


class Resolved(Strict):
    template: ResolvedTemplate | None = None
    profile: ResolvedProfile | None = None

    def to_json(self) -> str | None:
        """None: there is nothing to keep."""
        if self.template is None and self.profile is None:
            return None
        return self.model_dump_json(exclude_unset=True)

    def spec(self) -> TemplateSpec | None:
        return self.template.spec if self.template else None


def resolve(block: Block, catalog: Catalog, largest: Quota) -> Resolved:
    """`largest`: what a profile that a batch brings along may allow at most. Error: InvalidArgument with the field's path."""
    template = _template(block.model_template, catalog) if block.model_template else None
    return Resolved(template=template, profile=_profile(block.profile, catalog, largest))


def check_endpoint_supported(resolved: Resolved, endpoint: str) -> None:
    spec = resolved.spec()
    if spec is not None and endpoint not in spec.supported_endpoints:
        listed = ", ".join(f"'{path}'" for path in spec.supported_endpoints)
        message = f"Invalid value for '{SUPPORTED}': the batch calls '{endpoint}', the template supports: {listed}."
        raise InvalidArgument(message, param=SUPPORTED, code="invalid_value")


def parse_resolved(text: str | None, block: Block) -> Resolved:
    """As it was kept; without a text, what the block says by itself. Error: InvalidArgument."""
    if text is None:
        # Nothing to keep, or made by a version that knew inline templates only and looked up no names.
        reference = block.model_template if block.model_template and block.model_template.spec else None
        return resolve(Block(model_template=reference), Catalog(), Quota())
    try:
        return Resolved.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise InvalidArgument(f"what the block came to cannot be read: {dotted(*first['loc'])}") from error


def _template(reference: TemplateReference, catalog: Catalog) -> ResolvedTemplate:
    source: Literal["inline", "registry"] = "registry"
    if reference.spec is not None:
        source = "inline"
        version = reference.version or DEFAULT_VERSION
        found = Template(name=reference.name, version=version, status="active", spec=reference.spec)
    elif catalog.templates is None:
        raise InvalidArgument(NO_TEMPLATES, param="aibrix.model_template.spec", code="missing_required_parameter")
    else:
        found = catalog.templates.resolve(reference.name, reference.version)
        source = "registry" if catalog.templates.by_operator else "inline"
    overrides = reference.overrides.model_dump(exclude_unset=True) if reference.overrides else None
    if reference.overrides and reference.overrides.engine_args:
        args = reference.overrides.engine_args
        found = _overridden(lambda: found.with_engine_args(args), "model_template", "overrides", "engine_args")
    return ResolvedTemplate(
        name=found.name,
        version=found.version,
        status=found.status,
        spec=found.spec,
        source=source,
        **_given(overrides),
    )


def _profile(reference: ProfileReference | None, catalog: Catalog, largest: Quota) -> ResolvedProfile | None:
    source: Literal["inline", "registry"] = "registry"
    found: Profile | None
    if reference is None:
        found = catalog.profiles.default_profile() if catalog.profiles else None
        if found is None:
            return None
    elif reference.spec is not None:
        source = "inline"
        # A user's own quota may be smaller than the operator's, never larger.
        default = catalog.profiles.default_profile() if catalog.profiles else None
        quota = reference.spec.quota.within(default.spec.quota if default else largest)
        spec = ProfileSpec(scheduling=reference.spec.scheduling, quota=quota)
        found = Profile(name=reference.name, spec=spec)
    elif catalog.profiles is None:
        raise InvalidArgument(NO_PROFILES, param="aibrix.profile.spec", code="missing_required_parameter")
    else:
        found = catalog.profiles.resolve(reference.name)
    overrides = None
    if reference is not None and reference.overrides is not None:
        overrides = reference.overrides.model_dump(exclude_unset=True)
        named, changes = found, reference.overrides.scheduling
        found = _overridden(lambda: named.with_scheduling(changes), "profile", "overrides", "scheduling")
    return ResolvedProfile(name=found.name, spec=found.spec, source=source, **_given(overrides))


def _given(overrides: dict[str, Any] | None) -> dict[str, Any]:
    return {} if overrides is None else {"overrides": overrides}


def _overridden(change: Callable[[], T], *place: str) -> T:
    try:
        return change()
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise as_invalid({**first, "loc": (*place, *first["loc"])}) from error
