"""What a registry keeps of its documents: an entry that turns bad stays as it last was. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Generic

from services.kit.spec.documents import Key, Problem, Read, T, key_of


@dataclass(frozen=True)
class Held(Generic[T]):
    """One document: its good entries, and those that were good before and are bad now."""

    items: Mapping[Key, T] = field(default_factory=dict)
    problems: tuple[Problem, ...] = ()
    default: str | None = None


@dataclass(frozen=True)
class Shelf(Generic[T]):
    """All documents of a source as one."""

    items: Mapping[Key, T] = field(default_factory=dict)
    problems: tuple[Problem, ...] = ()
    default: str | None = None


def renewed(before: Held[T], read: Read[T]) -> Held[T]:
    """The document after it changed to `read`. What is no longer in it goes, unless it may be one of its bad entries."""
    items = {key_of(item): item for item in read.items}
    for key, item in before.items.items():
        if key not in items and _may_be_lost(key, read):
            items[key] = item
    default = read.default
    if default is None and (read.default_is_bad or (None, None) in read.lost) and (before.default or "", "") in items:
        default = before.default
    return Held(items, read.problems, default)


def _may_be_lost(key: Key, read: Read[T]) -> bool:
    name, version = key
    return not read.lost.isdisjoint({(name, version), (name, None), (None, version), (None, None)})


def unreadable(origin: str, why: str) -> Read[T]:
    """A document of which nothing is known: everything of it stays."""
    return Read(problems=(Problem(origin, None, None, "", why),), lost=frozenset({(None, None)}))


def joined(documents: Mapping[str, Held[T]]) -> Shelf[T]:
    """Of two entries with one name and version the one in the first document holds."""
    items: dict[Key, T] = {}
    places: dict[Key, str] = {}
    problems: list[Problem] = []
    default: str | None = None
    for origin, held in documents.items():
        problems.extend(held.problems)
        for key, item in held.items.items():
            if key in items:
                problems.append(Problem(origin, None, None, "", _twice(key, places[key]), *key))
            else:
                items[key], places[key] = item, origin
        if default is not None and held.default is not None:
            problems.append(Problem(origin, None, None, "default", "another document names a default already"))
        default = default or held.default
    return Shelf(items, tuple(problems), default)


def _twice(key: Key, place: str) -> str:
    return f"{'@'.join(part for part in key if part)} is in {place} already"
