"""Entries of registries as texts, and what a registry made of them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import yaml
from prometheus_client import REGISTRY

from services.metadata.registry.registry import Registry
from tests.metadata.conftest import CHAT

SPEC: dict[str, Any] = {
    "engine": {"type": "vllm"},
    "model_source": {"type": "huggingface", "uri": "owner/model"},
    "accelerator": {"type": "A10", "count": 1},
    "supported_endpoints": [CHAT],
}


def a_spec(**fields: Any) -> dict[str, Any]:
    return {**SPEC, **fields}


def entry(name: str, version: str = "v1", accelerator: str = "A10", **fields: Any) -> dict[str, Any]:
    return {"name": name, "version": version, "spec": a_spec(accelerator={"type": accelerator, "count": 1})} | fields


def text(*entries: Any) -> str:
    return yaml.safe_dump(list(entries), sort_keys=False)


def profiles(*items: Any, default: Any = None) -> str:
    return yaml.safe_dump({"default": default, "items": list(items)})


def labels(registry: Registry) -> list[str]:
    held = registry.catalog.templates
    assert held is not None
    return [template.label for versions in held.by_name.values() for template in versions]


def accelerator(registry: Registry, name: str, version: str | None = "v1") -> str:
    assert registry.catalog.templates is not None
    return registry.catalog.templates.resolve(name, version).spec.accelerator.type


def problems(kind: str = "templates") -> float | None:
    return REGISTRY.get_sample_value("aibrix_registry_problems", {"kind": kind})


def told(logs: Iterable[Any]) -> list[str]:
    return [entry["problem"] for entry in logs if entry["event"] == "registry problem"]
