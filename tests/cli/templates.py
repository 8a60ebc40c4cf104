"""Templates and profiles to try things on: the example of docs/templates.md, and one in which every field is set."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
EXAMPLE = re.search(r"```yaml\n(- name: .*?)```", (ROOT / "docs" / "templates.md").read_text(), re.DOTALL)
assert EXAMPLE is not None
(TEMPLATE,) = yaml.safe_load(EXAMPLE[1])
PROFILES: dict[str, Any] = {
    "default": "nightly",
    "items": [
        {
            "name": "nightly",
            "spec": {
                "scheduling": {"priority": "low", "completion_window": "best_effort", "max_concurrency": 64},
                "quota": {"max_requests_per_batch": 1000, "max_input_size_mb": 0.5},
            },
        },
        {"name": "plain"},
    ],
}
# Every field of a template.
FULL: dict[str, Any] = {
    "name": "full",
    "version": "v2",
    "status": "draft",
    "spec": {
        "engine": {
            "type": "sglang",
            "version": "0.5",
            "image": "registry.example/engine:1",
            "invocation": "http_server",
            "serve_args": ["--x"],
            "health_endpoint": "/healthz",
            "metrics_endpoint": "/metrics",
            "ready_timeout_seconds": 10,
        },
        "model_source": {
            "type": "s3",
            "uri": "s3://bucket/model",
            "revision": "main",
            "tokenizer_path": "t",
            "chat_template_path": "c.jinja",
            "auth_secret_ref": "secret",
        },
        "accelerator": {"type": "cpu", "count": 1, "interconnect": "pcie", "vram_gb": 1, "sku_hint": "s"},
        "supported_endpoints": ["/v1/embeddings"],
        "parallelism": {"tp": 1, "pp": 1, "dp": 1, "ep": 1, "sp": 1, "cp": 1},
        "engine_args": {
            "max_num_seqs": 1,
            "max_num_batched_tokens": 1,
            "max_model_len": 1,
            "gpu_memory_utilization": 1,
            "enable_prefix_caching": False,
            "enable_chunked_prefill": False,
            "speculative_method": "ngram",
            "speculative_model": "m",
            "num_speculative_tokens": 1,
            "other": None,
        },
        "quantization": {"weight": "fp8", "kv_cache": "auto", "weights_artifact_uri": "w"},
        "service_id": "a",
        "deployment_mode": "external",
    },
}


def changed(path: str, value: Any, given: Any = None) -> Any:
    """A copy of the example with one field set, or taken away (`...`)."""
    made = copy.deepcopy(TEMPLATE if given is None else given)
    *parents, last = path.split(".")
    place = made
    for part in parents:
        place = place[int(part) if part.isdigit() else part]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return made


def write(path: Path, *templates: Any) -> Path:
    path.write_text(yaml.safe_dump(list(templates), sort_keys=False))
    return path
