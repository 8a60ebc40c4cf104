"""The part of Go's templates that people write behind `--format`: `{{.A.B}}`, `{{json .A}}`, `{{index .A "key"}}`."""

from __future__ import annotations

import json
import re
from typing import Any

from tests.ssh.dockerlike.flags import Failed

PARSED = 64
FIELD = re.compile(r"\.|(?:\.[A-Za-z]\w*)+")
CALL = re.compile(r"""index\s+(?P<map>\S+)\s+["`](?P<key>[^"`]*)["`]|\.Label\s+["`](?P<label>[^"`]*)["`]""")


def render(template: str, value: Any, name: str = "") -> str:
    """Error: Failed, for what Go refuses and for what this does not know."""
    if template == "json":
        return json.dumps(value)
    parts = re.split(r"({{.*?}})", template, flags=re.DOTALL)
    if any("{{" in part and not part.endswith("}}") for part in parts):
        raise Failed(f"template parsing error: template: {name}:1: unclosed action", PARSED)
    shown = [_action(part[2:-2].strip("- \t"), value, name) if part.startswith("{{") else part for part in parts]
    return "".join(shown).replace("\\n", "\n").replace("\\t", "\t")


def _action(text: str, value: Any, name: str) -> str:
    if text.startswith("json "):
        return json.dumps(_found(text[5:].strip(), value, name))
    if call := CALL.fullmatch(text):
        if call["label"] is not None:
            return str(value["Labels"].get(call["label"], ""))
        return str(_found(call["map"], value, name).get(call["key"], ""))
    return _shown(_found(text, value, name))


def _found(text: str, value: Any, name: str) -> Any:
    if not FIELD.fullmatch(text):
        raise Failed(f'template parsing error: template: {name}:1: "{text}" is not covered by this program', PARSED)
    for key in filter(None, text.split(".")):
        if not isinstance(value, dict) or key not in value:
            problem = f"executing {json.dumps(name)} at <{text}>: map has no entry for key {json.dumps(key)}"
            raise Failed(f"template parsing error: template: {name}:1:{len(text)}: {problem}", PARSED)
        value = value[key]
    return value


def _shown(value: Any) -> str:
    """As Go prints it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "map[" + " ".join(f"{key}:{_shown(value[key])}" for key in sorted(value)) + "]"
    if isinstance(value, list):
        return "[" + " ".join(map(_shown, value)) + "]"
    return "<no value>" if value is None else str(value)
