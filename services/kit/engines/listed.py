"""Which flags a template may set that a batch brings along: by name and by type of value, and no others.

Engines have flags that import code, read and write files or open addresses. Those are the operator's to set.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from services.kit.engines.flags import Path, invalid
from services.kit.errors import InvalidArgument

FLAG = re.compile(r"--?[A-Za-z][\w-]{0,63}", re.ASCII)
INTEGER = re.compile(r"[0-9]{1,19}", re.ASCII)
REAL = re.compile(r"[0-9]{1,18}(?:\.[0-9]{1,18})?", re.ASCII)
# A repository on a hub, which is neither a path nor a flag.
REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


class Kind(Protocol):
    """What stands behind a flag. No kind accepts a text that begins with a dash."""

    def accepts(self, text: str) -> bool: ...

    @property
    def shown(self) -> str:
        """For people: `it must be ...`."""
        ...


@dataclass(frozen=True)
class Switch:
    """Nothing stands behind the flag."""

    shown: str = "given without a value"

    def accepts(self, text: str) -> bool:
        return False


@dataclass(frozen=True)
class Integer:
    least: int
    most: int
    words: tuple[str, ...] = ()
    """Accepted beside numbers."""

    def accepts(self, text: str) -> bool:
        return text in self.words or (INTEGER.fullmatch(text) is not None and self.least <= int(text) <= self.most)

    @property
    def shown(self) -> str:
        return " or ".join((f"an integer from {self.least} to {self.most}", *self.words))


@dataclass(frozen=True)
class Real:
    least: float
    most: float

    def accepts(self, text: str) -> bool:
        return REAL.fullmatch(text) is not None and self.least <= float(text) <= self.most

    @property
    def shown(self) -> str:
        return f"a number from {self.least:.12g} to {self.most:.12g}"


@dataclass(frozen=True)
class OneOf:
    words: tuple[str, ...]

    def accepts(self, text: str) -> bool:
        return text in self.words

    @property
    def shown(self) -> str:
        return "one of " + ", ".join(self.words)


@dataclass(frozen=True)
class Word:
    """A plain name, such as that of a parser or a backend: no path, no address, no class to import."""

    most: int = 64
    also: str = ""
    """Characters that are allowed beside letters, digits, `_` and inner `-`."""

    def accepts(self, text: str) -> bool:
        pattern = rf"[A-Za-z0-9][A-Za-z0-9_{re.escape(self.also)}-]{{0,{self.most - 1}}}"
        return re.fullmatch(pattern, text) is not None

    @property
    def shown(self) -> str:
        return "a plain name of letters, digits and " + ", ".join(f"'{sign}'" for sign in "_-" + self.also)


Listed = Mapping[str, Kind]
SWITCH = Switch()
SERVED = Word(512, "./:")
HOST = Word(255, ".:")


def check_words(listed: Listed, words: Sequence[str], path: Path, *, equals: bool) -> None:
    """`equals`: the engine knows `--flag=value`. Error: InvalidArgument that names the first flag that is not listed."""
    rest = iter(enumerate(words))
    for index, word in rest:
        name, sign, value = word.partition("=") if equals else (word, "", "")
        kind = listed.get(name)
        if kind is None:
            raise unlisted(name, index, path)
        if isinstance(kind, Switch):
            right = not sign
        else:
            if not sign:
                _, value = next(rest, (0, ""))
            right = kind.accepts(value)
        if not right:
            raise invalid(path, f"'{name}' must be {kind.shown}")


def check_name(listed: Listed, name: str, path: Path) -> None:
    """Error: InvalidArgument, for a flag that is not listed under this name, whatever stands behind it."""
    if name not in listed and name.lower() not in listed:
        raise unlisted(name, 0, path)


def unlisted(name: str, index: int, path: Path) -> InvalidArgument:
    shown = f"'{name}'" if FLAG.fullmatch(name) else f"argument {index + 1}"
    return invalid(
        path, f"{shown} is not a flag that a batch's own template may set; a template of the operator's registry may"
    )
