"""Flags as Docker's command line reads them, and its ways of saying no. Wordings are those of Docker 28."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn


class Failed(Exception):
    """The command ends: `text` goes to standard error."""

    def __init__(self, text: str, status: int) -> None:
        super().__init__(text)
        self.text = text
        self.status = status


@dataclass(frozen=True)
class Flag:
    name: str
    short: str = ""
    kind: type = str
    """bool, str, or list: may be given more than once."""
    wrong: Callable[[str], str | None] | None = None
    """Why a value is not acceptable."""

    @property
    def shown(self) -> str:
        return f"-{self.short}, --{self.name}" if self.short else f"--{self.name}"


@dataclass(frozen=True)
class Command:
    name: str
    usage: str
    flags: tuple[Flag, ...]
    least: int = 0
    most: int | None = None
    """Arguments besides flags; None: any number."""
    mixed: bool = True
    """Whether flags may follow the first argument."""

    def parse(self, words: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
        """Values by flag name, and the arguments. Error: Failed."""
        values: dict[str, Any] = {flag.name: [] if flag.kind is list else None for flag in self.flags}
        rest, left = [], list(words)
        while left:
            word = left.pop(0)
            if word == "--":
                rest += left
                break
            if word.startswith("--"):
                self._long(word[2:], left, values)
            elif word.startswith("-") and word != "-":
                self._short(word[1:], left, values)
            else:
                rest.append(word)
                if not self.mixed:
                    rest += left
                    break
        self._count(rest)
        return values, rest

    def _long(self, text: str, left: list[str], values: dict[str, Any]) -> None:
        name, equals, value = text.partition("=")
        flag = next((flag for flag in self.flags if flag.name == name), None)
        if flag is None:
            self.refuse(f"unknown flag: --{name}")
        if equals:
            self._set(flag, value, values)
        elif flag.kind is bool:
            self._set(flag, "true", values)
        elif left:
            self._set(flag, left.pop(0), values)
        else:
            self.refuse(f"flag needs an argument: --{name}")

    def _short(self, letters: str, left: list[str], values: dict[str, Any]) -> None:
        """`-dit`, `-p8000:8000`, `-p 8000:8000`, `-p=8000:8000`."""
        whole = letters
        while letters:
            letter, letters = letters[0], letters[1:]
            flag = next((flag for flag in self.flags if flag.short == letter), None)
            if flag is None:
                self.refuse(f"unknown shorthand flag: {letter!r} in -{whole}")
            if flag.kind is bool and not letters.startswith("="):
                self._set(flag, "true", values)
                continue
            if letters:
                self._set(flag, letters.removeprefix("="), values)
            elif left:
                self._set(flag, left.pop(0), values)
            else:
                self.refuse(f"flag needs an argument: {letter!r} in -{whole}")
            return

    def _set(self, flag: Flag, value: str, values: dict[str, Any]) -> None:
        if flag.kind is bool:
            if value not in ("true", "false"):
                problem = f'strconv.ParseBool: parsing "{value}": invalid syntax'
                self.refuse(f'invalid argument "{value}" for "{flag.shown}" flag: {problem}')
            values[flag.name] = value == "true"
            return
        if flag.wrong is not None and (why := flag.wrong(value)) is not None:
            self.refuse(f'invalid argument "{value}" for "{flag.shown}" flag: {why}')
        if flag.kind is list:
            values[flag.name].append(value)
        else:
            values[flag.name] = value

    def _count(self, rest: list[str]) -> None:
        exact = self.least == self.most
        if len(rest) < self.least:
            wanted = f"{'' if exact else 'at least '}{self.least} argument{'s' if self.least > 1 else ''}"
        elif self.most is not None and len(rest) > self.most:
            wanted = f"{self.most} argument{'s' if self.most > 1 else ''}" if self.most else "no arguments"
            wanted = wanted if exact or not self.most else f"at most {wanted}"
        else:
            return
        verb = "accepts" if wanted == "no arguments" else "requires"
        text = f"docker: 'docker {self.name}' {verb} {wanted}\n\nUsage:  {self.usage}\n"
        raise Failed(f"{text}\nSee 'docker {self.name} --help' for more information", 1)

    def refuse(self, why: str) -> NoReturn:
        text = f"{why}\n\nUsage:  {self.usage}\n\nRun '{' '.join(['docker', *self.name.split()])} --help' for more information"
        raise Failed(text, 125)


def whole(value: str) -> str | None:
    if value.removeprefix("-").isdecimal():
        return None
    return f'strconv.ParseInt: parsing "{value}": invalid syntax'


def label(value: str) -> str | None:
    return f"invalid label '{value}': empty name" if value.startswith("=") or not value else None


def size(value: str) -> str | None:
    number = value.lower().removesuffix("b").rstrip("kmgt")
    return None if number.replace(".", "", 1).isdecimal() else f"invalid size: '{value}'"


def filtering(value: str) -> str | None:
    return None if "=" in value else "bad format of filter (expected name=value)"
