"""Rules that turn the value of one field of a template into words of a command line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import orjson

from services.kit.errors import InvalidArgument
from services.kit.spec.block import dotted

Words = tuple[str, ...]
Path = tuple[str, ...]
SPEC: Path = ("aibrix", "model_template", "spec")


class Rule(Protocol):
    @property
    def flags(self) -> frozenset[str]:
        """Every flag that it may emit."""
        ...

    def render(self, value: Any, path: Path) -> Words:
        """`value` is not None. Error: InvalidArgument with `path`."""
        ...


@dataclass(frozen=True)
class Positional:
    """The bare value."""

    flags: frozenset[str] = frozenset()

    def render(self, value: Any, path: Path) -> Words:
        return (text(value, path),)


@dataclass(frozen=True)
class Valued:
    """A flag with the value behind it."""

    flag: str
    also: str | None = None
    """A second flag that takes the same value."""
    omit: str | None = None
    """A value that is the engine's own default, and is not given."""

    @property
    def flags(self) -> frozenset[str]:
        return frozenset({self.flag} if self.also is None else {self.flag, self.also})

    def render(self, value: Any, path: Path) -> Words:
        if value == self.omit:
            return ()
        shown = text(value, path)
        return (self.flag, shown) if self.also is None else (self.flag, shown, self.also, shown)


@dataclass(frozen=True)
class Bare:
    """A flag without a value."""

    flag: str

    @property
    def flags(self) -> frozenset[str]:
        return frozenset({self.flag})

    def render(self, value: Any, path: Path) -> Words:
        return (self.flag,)


@dataclass(frozen=True)
class Choice:
    """One group of words a value; other values are refused."""

    words: Mapping[Any, Words]
    why: str = ""
    """Said of a value that is not there."""

    @property
    def flags(self) -> frozenset[str]:
        return frozenset(word for words in self.words.values() for word in words if word.startswith("--"))

    def render(self, value: Any, path: Path) -> Words:
        if value not in self.words:
            raise invalid(path, self.why)
        return self.words[value]


@dataclass(frozen=True)
class Refused:
    """The engine has nothing like it."""

    why: str
    flags: frozenset[str] = frozenset()

    def render(self, value: Any, path: Path) -> Words:
        raise invalid(path, self.why)


@dataclass(frozen=True)
class Ignored:
    """Accepted, and without effect."""

    flags: frozenset[str] = frozenset()

    def render(self, value: Any, path: Path) -> Words:
        return ()


def render(rules: Mapping[str, Rule], values: Mapping[str, Any], *place: str) -> Words:
    """The words of all values in the order of the rules; None is not given."""
    words: list[str] = []
    for name, rule in rules.items():
        value = values.get(name)
        if value is not None:
            words += rule.render(value, (*SPEC, *place, name))
    return tuple(words)


def other(key: str, value: Any, path: Path, *, equals: bool = True) -> Words:
    """A flag without a rule. True: bare; False: with `no-`; a list: repeated; an object: JSON; None: not given.

    `equals`: the engine knows `--flag=value`, which keeps a value with a dash at its front from being taken for a flag.
    """
    flag = "--" + key.replace("_", "-")
    if value is None:
        return ()
    if value is True:
        return (flag,)
    if value is False:
        return ("--no-" + flag[2:],)
    if isinstance(value, list):
        return tuple(word for item in value for word in other(key, item, path, equals=equals))
    shown = text(value, path)
    return (f"{flag}={shown}",) if equals and shown.startswith("-") else (flag, shown)


def text(value: Any, path: Path) -> str:
    """A value as one argument; objects as compact JSON."""
    if isinstance(value, str):
        return value
    if isinstance(value, (int, float)):
        return str(value)
    try:
        return orjson.dumps(value).decode()
    except TypeError as error:
        raise invalid(path, "it cannot be written as JSON") from error


def invalid(path: Path, why: str) -> InvalidArgument:
    where = dotted(*path)
    return InvalidArgument(f"Invalid value for '{where}': {why}.", param=where, code="invalid_value")
