"""Templates for tests of the adapters, and what the engines' own projects publish about their flags."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from services.kit.spec.template import TemplateSpec

HERE = Path(__file__).parent
REAL = ("vllm", "sglang", "llamacpp")


def document(engine: str, **fields: Any) -> dict[str, Any]:
    """A small template; a field with dots replaces one inside: `document("vllm", **{"engine.serve_args": [...]})`."""
    found: dict[str, Any] = {
        "engine": {"type": engine},
        "model_source": {"type": "local", "uri": "/models/m"},
        "accelerator": {"type": "H100", "count": 1},
        "supported_endpoints": ["/v1/chat/completions"],
    }
    for name, value in fields.items():
        section, dot, key = name.partition(".")
        if dot:
            found.setdefault(section, {})[key] = value
        else:
            found[section] = value
    return found


def template(engine: str, **fields: Any) -> TemplateSpec:
    return TemplateSpec.model_validate(document(engine, **fields))


def published(engine: str) -> list[tuple[list[str], bool]]:
    """Spellings of each flag, and whether a value follows. Where it comes from stands in the file."""
    lines = (HERE / "published" / f"{engine}.txt").read_text().splitlines()
    flags = [line.split() for line in lines if not line.startswith("#")]
    return [([word for word in words if word != "="], words[-1] == "=") for words in flags]


def takes_value(engine: str) -> dict[str, bool]:
    return {name: valued for names, valued in published(engine) for name in names}
