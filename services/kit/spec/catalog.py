"""What a registry holds at one moment, and how a batch's reference finds its template and profile in it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Self

from services.kit.errors import InvalidArgument, ServiceError, Unavailable
from services.kit.spec.profile import Profile
from services.kit.spec.template import Template
from services.kit.spec.versions import version_key

MOST_LISTED = 50
NO_TEMPLATES = (
    "Missing required parameter: 'aibrix.model_template.spec'. This server has no template registry "
    "(AIBRIX_TEMPLATES__SOURCE), so a batch brings its template along."
)
NO_PROFILES = (
    "Missing required parameter: 'aibrix.profile.spec'. This server has no profile registry "
    "(AIBRIX_PROFILES__SOURCE), so a batch brings its profile along."
)


@dataclass(frozen=True)
class Templates:
    """By name, each name's versions from the latest to the earliest."""

    by_name: Mapping[str, tuple[Template, ...]] = field(default_factory=dict)
    by_operator: bool = True
    """False: ordinary users wrote them, in the console, and they are bound like a template that a batch brings along."""
    is_read: bool = True
    """False: the source has not answered since this process began, so nobody knows what there is."""

    @classmethod
    def of(cls, templates: Collection[Template], *, by_operator: bool = True, is_read: bool = True) -> Self:
        """Of templates that differ in (name, version)."""
        by_name: dict[str, list[Template]] = {}
        for one in sorted(templates, key=lambda template: version_key(template.version), reverse=True):
            by_name.setdefault(one.name, []).append(one)
        return cls({name: tuple(by_name[name]) for name in sorted(by_name)}, by_operator, is_read)

    def active(self) -> list[Template]:
        """The latest active version of each name that has one."""
        first = (next((one for one in versions if one.status == "active"), None) for versions in self.by_name.values())
        return [template for template in first if template is not None]

    def resolve(self, name: str, version: str | None) -> Template:
        """The named version in any status, else the latest active one.

        Errors: InvalidArgument, param `aibrix.model_template.name` or `aibrix.model_template.version`; Unavailable.
        """
        versions = self.by_name.get(name)
        if versions is None:
            raise not_there(self.is_read, "aibrix.model_template.name", name, "templates", self.by_name)
        if version:
            found = next((one for one in versions if one.version == version), None)
            if found is None:
                listed = [one.version for one in versions]
                raise unknown("aibrix.model_template.version", version, f"versions of '{name}'", listed)
            return found
        active = next((one for one in versions if one.status == "active"), None)
        if active is None:
            param = "aibrix.model_template.version"
            all_of_them = some(f"{one.version} ({one.status})" for one in versions)
            message = (
                f"Missing required parameter: '{param}'. No version of template '{name}' is active: {all_of_them}."
            )
            raise InvalidArgument(message, param=param, code="missing_required_parameter")
        return active


@dataclass(frozen=True)
class Profiles:
    by_name: Mapping[str, Profile] = field(default_factory=dict)
    default: str | None = None
    is_read: bool = True
    """As that of Templates."""

    def resolve(self, name: str) -> Profile:
        """Errors: InvalidArgument, param `aibrix.profile.name`; Unavailable."""
        found = self.by_name.get(name)
        if found is None:
            raise not_there(self.is_read, "aibrix.profile.name", name, "profiles", self.by_name)
        return found

    def default_profile(self) -> Profile | None:
        """Error: Unavailable, since a batch without a profile may not pass by the one that binds it."""
        if not self.is_read:
            raise unread("profiles")
        return self.by_name.get(self.default) if self.default is not None else None


@dataclass(frozen=True)
class Catalog:
    """None: no registry of that kind is configured."""

    templates: Templates | None = None
    profiles: Profiles | None = None


def not_there(is_read: bool, param: str, value: str, kind: str, known: Collection[str]) -> ServiceError:
    return unknown(param, value, kind, known) if is_read else unread(kind)


def unread(kind: str) -> Unavailable:
    return Unavailable(f"The server cannot read its {kind} yet. Try again later.")


def unknown(param: str, value: str, kind: str, known: Collection[str]) -> InvalidArgument:
    listed = some(f"'{name}'" for name in known) or "none"
    message = f"Invalid value for '{param}': '{value}'. Known {kind} are: {listed}."
    return InvalidArgument(message, param=param, code="invalid_value")


def some(names: Iterable[str]) -> str:
    found = list(names)
    more = f" and {len(found) - MOST_LISTED} more" if len(found) > MOST_LISTED else ""
    return ", ".join(found[:MOST_LISTED]) + more
