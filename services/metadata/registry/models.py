"""Under which name an engine serves the model of a template. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from services.kit.engines.table import ADAPTERS
from services.kit.spec.template import TemplateSpec


def served_models(spec: TemplateSpec) -> list[str]:
    """The names that the template itself gives its model, else what it is loaded from. serve_args come last and win."""
    adapter = ADAPTERS.get(spec.engine.type)
    flags = adapter.served_model_flags if adapter else frozenset()
    return _in_words(spec.engine.serve_args, flags) or _in_args(spec, flags) or [spec.model_source.uri]


def _in_args(spec: TemplateSpec, flags: frozenset[str]) -> list[str]:
    for key, value in spec.engine_args.others().items():
        if _is_among(f"--{key}", flags):
            given = value if isinstance(value, list) else [value]
            return [name for name in given if isinstance(name, str)]
    return []


def _in_words(words: Sequence[str], flags: frozenset[str]) -> list[str]:
    """The values of the last such flag: `--flag a b` or `--flag=a`."""
    found: list[str] = []
    is_open = False
    for word in words:
        flag, equals, value = word.partition("=")
        if flag.startswith("-"):
            is_open = _is_among(flag, flags)
            if is_open:
                found = [value] if equals else []
        elif is_open:
            found.append(word)
    return [name for name in found if name]


def _is_among(flag: str, flags: frozenset[str]) -> bool:
    return flag.replace("_", "-").lower() in flags
