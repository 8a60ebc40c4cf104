"""`aibrix-batch template`: the JSON Schema of templates and profiles, and what is wrong with a file of them."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema
from rich.console import Console
from rich.text import Text

from cli import exits
from services.kit.engines.table import check_renderable
from services.kit.errors import InvalidArgument
from services.kit.spec.catalog import Templates
from services.kit.spec.documents import Read, read_profiles, read_templates
from services.kit.spec.profile import Profile, ProfileList
from services.kit.spec.template import Template

STDIN: Final = Path("-")
PURPOSE: Final = "For editors. `aibrix-batch template validate` also checks what a JSON Schema cannot say."
WHERE_IN_A_BATCH: Final = "aibrix.model_template."


def schema(*, profile: bool) -> str:
    """The JSON Schema (draft 2020-12) of a list of templates, or of a document of profiles."""
    title, model = ("Batch profiles", ProfileList) if profile else ("Model deployment templates", list[Template])
    made = _tidy(TypeAdapter[Any](model).json_schema(schema_generator=GenerateJsonSchema)) | {"description": PURPOSE}
    head = {"$schema": GenerateJsonSchema.schema_dialect, "title": title, "description": PURPOSE}
    return json.dumps(head | made, indent=2, ensure_ascii=False) + "\n"


def _tidy(node: Any) -> Any:
    """Without titles that repeat the names of fields, and with `null` as one of the types: editors show that better."""
    if isinstance(node, list):
        return [_tidy(item) for item in node]
    if not isinstance(node, dict):
        return node
    names = ("properties", "$defs")  # the keys in these are names of fields and types
    found: dict[str, Any] = {
        key: {name: _tidy(inner) for name, inner in value.items()} if key in names else _tidy(value)
        for key, value in node.items()
        if key != "title"
    }
    if "description" in found:
        found["description"] = " ".join(found["description"].split())
    if found.get("default", ...) is None:
        del found["default"]
    return _one_type(found)


def _one_type(node: dict[str, Any]) -> dict[str, Any]:
    choices = node.get("anyOf", [])
    if len(choices) != 2 or choices[1] != {"type": "null"} or "type" not in choices[0]:
        return node
    value = choices[0]
    rest = {key: rule for key, rule in node.items() if key != "anyOf"}
    values = {"enum": [*value["enum"], None]} if "enum" in value else {}
    return {**rest, **value, "type": [value["type"], "null"], **values}


def validate(files: Sequence[Path], *, profile: bool) -> int:
    """Print what is wrong with the files, and what is in those that are right. The exit code."""
    out = Console(highlight=False, soft_wrap=True)
    codes = [exits.OK]
    seen: dict[str, str] = {}
    for path in files:
        name = "<stdin>" if path == STDIN else str(path)
        try:
            text = _text(path)
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
            print(f"error: {name} cannot be read: {why}", file=sys.stderr)
            codes.append(exits.REFUSED)
            continue
        read: Read[Any] = read_profiles(text, name) if profile else read_templates(text, name)
        _print(out, name, read, "profile" if profile else "template", seen)
        codes.append(exits.FAILED if read.problems else exits.OK)
    return max(codes)


def _text(path: Path) -> str:
    data = sys.stdin.buffer.read() if path == STDIN else path.read_bytes()
    return data.decode("utf-8-sig")


def _print(out: Console, name: str, read: Read[Any], kind: str, seen: dict[str, str]) -> None:
    for problem in sorted(read.problems, key=lambda one: (one.line or 0, one.column or 0)):
        place = name if problem.line is None else f"{name}:{problem.line}"
        _say(out, place, "error", ": ".join(part for part in (problem.path, problem.message) if part))
    for item in read.items:
        for warning in _warnings(item):
            _say(out, name, "warning", f"{_label(item)}: {warning}")
        if isinstance(item, Template) and (other := seen.setdefault(item.label, name)) != name:
            _say(out, name, "warning", f"{_label(item)}: {other} has it too; one folder may not hold both")
    if not read.items and not read.problems:
        _say(out, name, "warning", f"there is no {kind} in it")
    _summary(out, name, read, kind)


def _say(out: Console, place: str, level: str, text: str) -> None:
    style = "bold red" if level == "error" else "bold yellow"
    out.print(Text.assemble(f"{place}: ", (level, style), f": {text}"))


def _summary(out: Console, name: str, read: Read[Any], kind: str) -> None:
    if read.problems:
        out.print(Text(f"{name}: {_count(len(read.problems), 'error')}, {_count(len(read.items), 'good ' + kind)}"))
        return
    out.print(Text(f"{name}: {_count(len(read.items), kind)}" + (":" if read.items else "")))
    rows = list(_rows(read))
    width = max((len(label) for label, _ in rows), default=0)
    for label, note in rows:
        out.print(Text(f"  {label:{width}}  {note}".rstrip()))


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _label(item: Template | Profile) -> str:
    return item.label if isinstance(item, Template) else item.name


def _rows(read: Read[Any]) -> Iterator[tuple[str, str]]:
    """Templates by name, the latest version first, with the one that a batch gets which names no version."""
    if read.items and isinstance(read.items[0], Profile):
        for profile in read.items:
            yield profile.name, "default" if profile.name == read.default else ""
        return
    templates = Templates.of(read.items)
    first = {template.label for template in templates.active()}
    for versions in templates.by_name.values():
        for template in versions:
            has_rivals = len(versions) > 1 and template.label in first
            yield template.label, template.status + (", used where no version is named" if has_rivals else "")


def _warnings(item: Template | Profile) -> Iterator[str]:
    if ignored := item.spec.ignored_fields():
        verb = "is" if len(ignored) == 1 else "are"
        yield f"{', '.join(f'spec.{field}' for field in ignored)} {verb} accepted and not honoured"
    if isinstance(item, Template):
        try:
            check_renderable(item.spec)
        except InvalidArgument as error:
            path = error.context["param"]
            why = error.message.removeprefix(f"Invalid value for '{path}': ")
            yield f"it cannot be started: {path.removeprefix(WHERE_IN_A_BATCH)}: {why}"
