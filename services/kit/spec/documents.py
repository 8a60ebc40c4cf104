"""Templates and profiles in YAML text: each entry is read by itself, and each fault has its line.

A text is a list of templates, one template, or a document of profiles; a Kubernetes ConfigMap that holds such a text; or
several of these as YAML documents. JSON is YAML.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from pydantic import TypeAdapter, ValidationError

from services.kit.spec.profile import Profile, ProfileList
from services.kit.spec.template import DEFAULT_VERSION, Name, Template
from services.kit.spec.tree import Node, Place, Unreadable, compose

T = TypeVar("T", bound=Template | Profile)
Path = tuple[str | int, ...]
Found = tuple[Place, Path, str]
"""Where, in which field, and why."""
Key = tuple[str, str]
"""Name and version; a profile's version is empty."""

# The keys of a ConfigMap.
KEYS = {"templates": "templates.yaml", "profiles": "profiles.yaml"}
OTHER = {"templates": KEYS["profiles"], "profiles": KEYS["templates"]}
MOST_PROBLEMS = 10_000
LONGEST_MESSAGE = 400
LONGEST_SHOWN = 64
DEFAULT_NAME: TypeAdapter[str | None] = TypeAdapter(Name | None)


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong in a text. As a `str` it is a line for a person: `a.yaml:12: templates[1].name: why`."""

    origin: str
    line: int | None
    """From 1. None: it is about the text as a whole."""
    column: int | None
    path: str
    """Such as `templates[1].spec.engine.type`; empty for the text as a whole."""
    message: str
    name: str | None = None
    """Of the entry, as far as it can be read."""
    version: str | None = None

    def __str__(self) -> str:
        place = self.origin if self.line is None else f"{self.origin}:{self.line}"
        return ": ".join(part for part in (place, self.path, self.message) if part)


@dataclass(frozen=True)
class Read(Generic[T]):
    """What a text holds."""

    items: tuple[T, ...] = ()
    """The good entries, in their order; (name, version) is unique."""
    problems: tuple[Problem, ...] = ()
    """All problems of all entries; of very many the first, and how many more."""
    default: str | None = None
    """Of profiles: the name of the default one, which is among the items."""
    default_is_bad: bool = False
    """A default is named, but it is none."""
    lost: frozenset[tuple[str | None, str | None]] = frozenset()
    """Names and versions of the entries that are not good; None where that cannot be read. (None, None) may be any entry."""


def read_templates(text: str, origin: str) -> Read[Template]:
    """The templates of `text`; `origin` is its name in problems, such as the file's path. Nothing is raised."""
    return _Reading(origin, Template.model_validate, "templates").read(text)


def read_profiles(text: str, origin: str) -> Read[Profile]:
    """The profiles of `text`, and which of them is the default. Nothing is raised."""
    return _Reading(origin, Profile.model_validate, "profiles").read(text)


def key_of(item: Template | Profile) -> Key:
    return item.name, item.version if isinstance(item, Template) else ""


@dataclass
class _Reading(Generic[T]):
    """Gathers what is found in one text."""

    origin: str
    validate: Callable[[Any], T]
    kind: str
    items: dict[Key, T] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    lost: set[tuple[str | None, str | None]] = field(default_factory=set)
    defaults: list[tuple[Node, Place]] = field(default_factory=list)
    count: int = 0
    more: int = 0

    def read(self, text: str) -> Read[T]:
        try:
            documents = compose(text)
        except Unreadable as error:
            self._lose(error.place, (), error.message)
            documents = []
        for document in documents:
            if is_config_map(document):
                self._config_map(document, text, is_alone=len(documents) == 1)
            else:
                self._document(document)
        default, default_is_bad = self._default()
        if self.more:
            self.problems.append(Problem(self.origin, None, None, "", f"{self.more} more problems"))
        return Read(tuple(self.items.values()), tuple(self.problems), default, default_is_bad, frozenset(self.lost))

    def _config_map(self, document: Node, text: str, *, is_alone: bool) -> None:
        for place, path, why in document.all_faults():
            self._lose(place, path, why)
        data = document.pairs["data"][1]
        key = self._key_of(list(data.pairs))
        if key == OTHER[self.kind] and not is_alone:
            return  # it stands beside the one that is meant
        node = data.pairs[key][1] if key is not None and key != OTHER[self.kind] else None
        if node is None or not isinstance(node.value, str):
            self._lose(data.place, ("data",), f"the ConfigMap has no text under the key {KEYS[self.kind]}")
            return
        try:
            documents = compose(node.value, within(node, text))
        except Unreadable as error:
            self._lose(error.place or node.place, (), error.message)
            return
        for inner in documents:
            self._document(inner)

    def _key_of(self, keys: list[str]) -> str | None:
        wanted = KEYS[self.kind]
        return wanted if wanted in keys else keys[0] if len(keys) == 1 else None

    def _document(self, document: Node) -> None:
        if document.value is None:
            return
        if self.kind == "templates" and isinstance(document.value, (list, dict)):
            entries = document.elements if isinstance(document.value, list) else [document]
            self._faults(document, entries)
        elif self.kind == "profiles" and isinstance(document.value, dict):
            entries = self._profile_list(document)
        else:
            wanted = "a list of templates" if self.kind == "templates" else "a mapping with `default` and `items`"
            self._lose(document.place, (), f"it must be {wanted}")
            return
        for entry in entries:
            self._entry(entry)

    def _faults(self, document: Node, entries: Sequence[Node]) -> None:
        """Of the document itself, which are in no entry."""
        if document in entries:
            return
        for place, key, why in document.faults:
            self._lose(place, (key,) if key else (), why)

    def _profile_list(self, document: Node) -> Sequence[Node]:
        self._faults(document, [])
        for name in document.pairs:
            if name not in ProfileList.model_fields:
                self._lose(document.pairs[name][0].place, (name,), "there is no such field")
        if "default" in document.pairs:
            key, named = document.pairs["default"]
            self.defaults.append((named, key.place))
        if "items" not in document.pairs:
            return []
        key, items = document.pairs["items"]
        if not isinstance(items.value, list):
            self._lose(key.place, ("items",), "it must be a list of profiles")
        self._faults(items, [])
        return items.elements

    def _entry(self, node: Node) -> None:
        root: Path = ("templates" if self.kind == "templates" else "items", self.count)
        self.count += 1
        name, version = self._identity(node)
        found: list[Found] = list(node.all_faults())
        try:
            item = self.validate(node.value)
        except ValidationError as error:
            details = error.errors(include_url=False, include_input=False, include_context=False)
            found += [_explained(detail, node) for detail in details]
        else:
            if not found and key_of(item) not in self.items:
                self.items[key_of(item)] = item
                return
            if not found:
                what = "name" if self.kind == "profiles" else "name and version"
                found = [(node.place, ("name",), f"an entry before it has this {what}")]
        self.lost.add((name, version))
        for where, field_path, why in sorted(found, key=lambda one: one[0]):
            self._problem(where, (*root, *field_path), why, name, version)

    def _identity(self, node: Node) -> tuple[str | None, str | None]:
        """As far as it can be read: a number is what is written there."""
        if not isinstance(node.value, dict):
            return None, None
        version = _written(node, "version") if "version" in node.pairs else DEFAULT_VERSION
        return _written(node, "name"), version if self.kind == "templates" else ""

    def _default(self) -> tuple[str | None, bool]:
        """The default's name, and whether what is named is none."""
        named: str | None = None
        is_bad = False
        for node, place in self.defaults:
            why = self._why_no_default(node, named)
            if why is not None:
                self._problem(place, ("default",), why)
                is_bad = True
            elif node.value is not None:
                named = node.value
        return named, is_bad and named is None

    def _why_no_default(self, node: Node, named: str | None) -> str | None:
        try:
            name = DEFAULT_NAME.validate_python(node.value, strict=True)
        except ValidationError as error:
            return _explained({**error.errors(include_input=False)[0], "loc": ()}, node)[2]
        if name is not None and named is not None:
            return "a default is named already"
        if name is not None and (name, "") not in self.items:
            return "the default profile is not among the good items"
        return None

    def _lose(self, place: Place | None, path: Path, why: str) -> None:
        self._problem(place, path, why)
        self.lost.add((None, None))

    def _problem(
        self, place: Place | None, path: Path, why: str, name: str | None = None, version: str | None = None
    ) -> None:
        if len(self.problems) >= MOST_PROBLEMS:
            self.more += 1
            return
        line, column = place or (None, None)
        shown = _plain(why, LONGEST_MESSAGE)
        self.problems.append(Problem(self.origin, line, column, _path(path), shown, name, version))


def _written(node: Node, name: str) -> str | None:
    _, child = node.at((name,))
    if child is None or isinstance(child.value, str):
        return child.value if child else None
    return child.raw if isinstance(child.value, (int, float)) else None


def is_config_map(document: Node) -> bool:
    data = document.pairs.get("data")
    return isinstance(document.value, dict) and document.value.get("kind") == "ConfigMap" and data is not None


def within(node: Node, text: str) -> Callable[[int, int], Place]:
    """Where in `text` the lines and columns of the text that is the scalar `node` are. Quoted lines are folded: where it begins."""
    if not node.is_literal:
        return lambda line, column: node.place
    first, outer, inner = node.place[0], text.splitlines(), node.value.splitlines()

    def where(line: int, column: int) -> Place:
        is_there = line < len(inner) and first + line < len(outer)
        indent = len(outer[first + line]) - len(inner[line]) if is_there else 0
        return first + 1 + line, column + 1 + indent

    return where


def _explained(detail: Any, node: Node) -> Found:
    """One of pydantic's complaints about the entry `node`. It never repeats a value, but a number that wants quotes."""
    path: Path = detail["loc"]
    place, at = node.at(path)
    kind: str = detail["type"]
    if kind == "extra_forbidden":
        return place, path, "there is no such field"
    if kind == "missing":
        return place, path, "this field is required"
    if kind in ("model_type", "dict_type"):
        return place, path, "it must be a mapping"
    why: str = detail["msg"].removeprefix("Value error, ")
    if kind == "string_type" and at is not None and at.raw and len(at.raw) <= LONGEST_SHOWN:
        why += f'; write it in quotes: "{at.raw}"'
    return place, path, why


def _path(parts: Path) -> str:
    """`templates[1].spec.engine.type`: short and of one line, whatever the names in it."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{_plain(part, LONGEST_SHOWN)}" for part in parts)
    return text.removeprefix(".")[: 8 * LONGEST_SHOWN]


def _plain(text: str, longest: int) -> str:
    return "".join(character if character.isprintable() else " " for character in text[:longest])
