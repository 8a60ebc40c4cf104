"""The files under test, parsed: the Dockerfile by its instructions, docker-compose.yml with its variables."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
# `${NAME}`, `${NAME:-default}`, `${NAME:?message}`, as Compose reads them; `$$` is a dollar.
VARIABLE = re.compile(r"\$\$|\$\{(?P<name>\w+)(?::(?P<kind>[-?])(?P<rest>[^}]*))?\}")


@dataclass(frozen=True)
class Instruction:
    name: str
    text: str

    def words(self) -> list[str]:
        """Arguments: JSON where the exec form is used, else as a shell would split them."""
        return json.loads(self.text) if self.text.startswith("[") else shlex.split(self.text)

    def flags(self) -> dict[str, str]:
        found = (word[2:].partition("=") for word in self.text.split() if word.startswith("--"))
        return {name: value for name, _, value in found}


@dataclass
class Stage:
    base: str
    name: str
    instructions: list[Instruction] = field(default_factory=list)

    def all(self, name: str) -> list[Instruction]:
        return [one for one in self.instructions if one.name == name]

    def env(self) -> dict[str, str]:
        pairs = (word.partition("=") for one in self.all("ENV") for word in one.words())
        return {name: value for name, _, value in pairs}


def dockerfile() -> list[Stage]:
    text = (ROOT / "deploy" / "Dockerfile").read_text()
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    stages: list[Stage] = []
    for logical in "\n".join(lines).replace("\\\n", " ").splitlines():
        name, _, rest = logical.strip().partition(" ")
        if name == "FROM":
            base, _, alias = rest.partition(" AS ")
            stages.append(Stage(base.strip(), alias.strip()))
        else:
            stages[-1].instructions.append(Instruction(name, rest.strip()))
    return stages


def compose() -> dict[str, Any]:
    """As written: anchors and merges resolved, variables not."""
    parsed: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    return parsed


def interpolated(value: Any, variables: Mapping[str, str]) -> Any:
    """`value` with its variables filled in. Error: KeyError for a required one that is missing or empty."""
    if isinstance(value, dict):
        return {key: interpolated(inner, variables) for key, inner in value.items()}
    if isinstance(value, list):
        return [interpolated(inner, variables) for inner in value]
    if not isinstance(value, str):
        return value

    def fill(match: re.Match[str]) -> str:
        if match[0] == "$$":
            return "$"
        found = variables.get(match["name"], "")
        if not found and match["kind"] == "?":
            raise KeyError(f"{match['name']}: {match['rest']}")
        return found or (match["rest"] if match["kind"] == "-" else "")

    return VARIABLE.sub(fill, value)


def variables_of(value: Any) -> dict[str, str | None]:
    """Every variable that is named, and how: `?` required, `-` with a default."""
    return {match["name"]: match["kind"] for match in VARIABLE.finditer(json.dumps(value)) if match["name"]}


def example_variables() -> dict[str, str]:
    lines = (ROOT / ".env.example").read_text().splitlines()
    pairs = (line.partition("=") for line in lines if line and not line.startswith("#"))
    return {name: value for name, _, value in pairs}
