"""A block that is right, and many that are not: one change each, with the `param` and `code` of the answer."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

MISSING = object()
UNKNOWN, ABSENT, TYPE, VALUE = "unknown_parameter", "missing_required_parameter", "invalid_type", "invalid_value"
HUGE = 10**30
LONG = "x" * 100_000

RIGHT: dict[str, Any] = {
    "job_id": "job_123",
    "model": "meta-llama/Llama-3.1-8B-Instruct",
    "runtime": {"target": "Local", "options": {}},
    "resource_allocation": {"provision_id": "p-1", "anything": [1, {"x": None}]},
    "model_template": {
        "name": "llama3-8b-a10",
        "version": "v1",
        "spec": {
            "engine": {
                "type": "vllm",
                "version": "0.6.3",
                "image": "vllm/vllm-openai:latest",
                "invocation": "http_server",
                "serve_args": ["--gpu-memory-utilization", "0.90"],
                "health_endpoint": "/health",
                "metrics_endpoint": "/metrics",
                "ready_timeout_seconds": 600,
            },
            "model_source": {
                "type": "huggingface",
                "uri": "meta-llama/Llama-3.1-8B-Instruct",
                "revision": "main",
                "tokenizer_path": "meta-llama/Llama-3.1-8B-Instruct",
                "auth_secret_ref": "hf-token",
            },
            "accelerator": {
                "type": "A10",
                "count": 2,
                "interconnect": "pcie",
                "vram_gb": 24,
                "sku_hint": "g5.12xlarge",
            },
            "parallelism": {"tp": 2, "pp": 1, "dp": 1, "ep": 1, "sp": 1, "cp": 1},
            "engine_args": {
                "max_num_seqs": 64,
                "max_num_batched_tokens": 8192,
                "max_model_len": 4096,
                "gpu_memory_utilization": 0.9,
                "enable_prefix_caching": True,
                "enable_chunked_prefill": True,
                "seed": 7,
            },
            "quantization": {"weight": "fp8", "kv_cache": "fp8_e4m3"},
            "supported_endpoints": ["/v1/chat/completions"],
            "service_id": "llama3-8b",
            "deployment_mode": "dedicated",
        },
        "overrides": {"engine_args": {"max_num_seqs": 32}},
    },
    "profile": {
        "name": "nightly",
        "spec": {
            "scheduling": {
                "max_concurrency": 128,
                "request_timeout_seconds": 600,
                "priority": "low",
                "completion_window": "4h",
                "provider_preference": ["aws"],
                "allow_preempt": False,
                "allow_spot": False,
                "retry_policy": {"max_retries": 2, "backoff_seconds": [5, 30], "retryable_errors": [429]},
            },
            "quota": {"max_requests_per_batch": 1000, "max_input_size_mb": 10, "max_output_size_gb": 1},
        },
        "overrides": {"scheduling": {"priority": "normal"}},
    },
    "client": {
        "max_concurrency": 256,
        "adaptive_concurrency": True,
        "adaptive_max_factor": 16,
        "retry_policy": {
            "max_retries": 5,
            "base_delay_seconds": 2,
            "max_delay_seconds": 10,
            "no_endpoint_max_retries": 5,
        },
    },
}


@dataclass(frozen=True)
class Wrong:
    """One change of RIGHT. `at` names the field, `param` what the answer names (without it: the same field)."""

    at: str
    value: Any
    code: str = VALUE
    param: str = ""

    @property
    def id(self) -> str:
        shown = "missing" if self.value is MISSING else repr(self.value)
        return f"{self.at}={shown[:30]}"

    def named(self) -> str:
        return self.param or f"aibrix.{self.at}" if self.at else self.param or "aibrix"

    def block(self) -> Any:
        return changed(RIGHT, self.at.split("."), self.value) if self.at else self.value


def changed(document: Any, path: Sequence[str], value: Any) -> Any:
    whole = copy.deepcopy(document)
    inner = whole
    for part in path[:-1]:
        inner = inner[int(part)] if isinstance(inner, list) else inner.setdefault(part, {})
    last: Any = int(path[-1]) if isinstance(inner, list) else path[-1]
    if value is MISSING:
        del inner[last]
    else:
        inner[last] = value
    return whole


T = "model_template"
S = f"{T}.spec"
E, M, A, P, G, Q = (
    f"{S}.{name}" for name in ("engine", "model_source", "accelerator", "parallelism", "engine_args", "quantization")
)
F = "profile.spec"
C, R = "client", "client.retry_policy"

WRONG = [
    # The block itself.
    Wrong("", [], TYPE),
    Wrong("", "text", TYPE),
    Wrong("", 7, TYPE),
    Wrong("", True, TYPE),
    Wrong("jobid", "x", UNKNOWN),
    Wrong("extra_body", {}, UNKNOWN),
    Wrong("deployment", {}, UNKNOWN),
    Wrong("x" * 5000, 1, UNKNOWN, param="aibrix." + "x" * 64),
    Wrong("job_id", 7, TYPE),
    Wrong("job_id", ""),
    Wrong("job_id", LONG),
    Wrong("job_id", ["j"], TYPE),
    Wrong("model", 7, TYPE),
    Wrong("model", ""),
    Wrong("model", LONG),
    Wrong("model", {}, TYPE),
    Wrong("resource_allocation", [], TYPE),
    Wrong("resource_allocation", "p-1", TYPE),
    # Runtime.
    Wrong("runtime", [], TYPE),
    Wrong("runtime", "Local", TYPE),
    Wrong("runtime.target", MISSING, ABSENT),
    Wrong("runtime.target", None, TYPE),
    Wrong("runtime.target", 1, TYPE),
    Wrong("runtime.target", ""),
    Wrong("runtime.target", "local"),
    Wrong("runtime.target", "Nowhere"),
    Wrong("runtime.target", LONG),
    Wrong("runtime.options", None, TYPE),
    Wrong("runtime.options", [], TYPE),
    Wrong("runtime.options", "{}", TYPE),
    Wrong("runtime.options", {"command": "rm -rf /"}, param="aibrix.runtime.options.command"),
    Wrong("runtime.options", {"base_url": "http://x"}, UNKNOWN, param="aibrix.runtime.options.base_url"),
    Wrong("runtime.kind", "Local", UNKNOWN),
    # The reference to a template.
    Wrong(T, [], TYPE),
    Wrong(T, "llama3", TYPE),
    Wrong(T, {}, ABSENT, param="aibrix.model_template.name"),
    Wrong(T, {"name": "llama3"}, ABSENT, param="aibrix.model_template.spec"),
    Wrong(T, MISSING, ABSENT),
    Wrong(f"{T}.name", MISSING, ABSENT),
    Wrong(f"{T}.name", None, TYPE),
    Wrong(f"{T}.name", 7, TYPE),
    Wrong(f"{T}.name", ""),
    Wrong(f"{T}.name", "x" * 129),
    Wrong(f"{T}.name", " llama"),
    Wrong(f"{T}.name", "llama\n"),
    Wrong(f"{T}.name", LONG),
    Wrong(f"{T}.version", 1, TYPE, param="aibrix.model_template.version"),
    Wrong(f"{T}.version", "x" * 129),
    Wrong(f"{T}.version", "v 1"),
    Wrong(f"{T}.version", ["v1"], TYPE),
    Wrong(f"{T}.status", "active", UNKNOWN),
    Wrong(f"{T}.provider_config", {}, UNKNOWN),
    Wrong(S, [], TYPE),
    Wrong(S, "spec", TYPE),
    Wrong(S, {}, ABSENT),
    Wrong(S, None, ABSENT),
    Wrong(f"{T}.overrides", [], TYPE),
    Wrong(f"{T}.overrides", {"engine": {}}, UNKNOWN, param="aibrix.model_template.overrides.engine"),
    Wrong(f"{T}.overrides.accelerator", {}, UNKNOWN),
    Wrong(f"{T}.overrides.engine_args", [], TYPE),
    Wrong(f"{T}.overrides.engine_args", None, TYPE),
    Wrong(f"{T}.overrides.engine_args.max_num_seqs", 0),
    Wrong(f"{T}.overrides.engine_args.max_num_seqs", "8", TYPE),
    Wrong(f"{T}.overrides.engine_args.middleware", "os.system"),
    Wrong(f"{T}.overrides.engine_args.max-num-seqs", 8),
    # The spec.
    Wrong(f"{S}.provider_config", {}, UNKNOWN),
    Wrong(f"{S}.replicas", 2, UNKNOWN),
    *(Wrong(f"{S}.{name}", MISSING, ABSENT) for name in ("engine", "model_source", "accelerator")),
    Wrong(f"{S}.supported_endpoints", MISSING, ABSENT),
    *(Wrong(f"{S}.{name}", None, TYPE) for name in ("engine", "model_source", "accelerator", "supported_endpoints")),
    *(Wrong(f"{S}.{name}", None, TYPE) for name in ("parallelism", "engine_args", "quantization")),
    *(Wrong(f"{S}.{name}", "x", TYPE) for name in ("engine", "model_source", "accelerator", "supported_endpoints")),
    *(Wrong(f"{S}.{name}", 1, TYPE) for name in ("parallelism", "engine_args", "quantization")),
    Wrong(f"{S}.supported_endpoints", []),
    Wrong(f"{S}.supported_endpoints", ["/v1/embeddings"]),
    Wrong(f"{S}.supported_endpoints", ["/v1/chat/completions"] * 2),
    Wrong(f"{S}.supported_endpoints.0", "/v1/images", param=f"aibrix.{S}.supported_endpoints.0"),
    Wrong(f"{S}.supported_endpoints.0", 7, VALUE),
    Wrong(f"{S}.supported_endpoints.0", None, VALUE),
    Wrong(f"{S}.service_id", 7, TYPE),
    Wrong(f"{S}.service_id", "no spaces"),
    Wrong(f"{S}.service_id", "x" * 64),
    Wrong(f"{S}.deployment_mode", "serverless"),
    Wrong(f"{S}.deployment_mode", None),
    Wrong(f"{S}.deployment_mode", 1),
    # Engine.
    Wrong(f"{E}.type", MISSING, ABSENT),
    Wrong(f"{E}.type", None),
    Wrong(f"{E}.type", "vLLM"),
    Wrong(f"{E}.type", ["vllm"]),
    Wrong(f"{E}.type", "trtllm"),
    Wrong(f"{E}.type", "lmdeploy"),
    Wrong(f"{E}.flavour", "x", UNKNOWN),
    Wrong(f"{E}.version", 0.6, TYPE),
    Wrong(f"{E}.version", "x" * 129),
    Wrong(f"{E}.image", 7, TYPE),
    Wrong(f"{E}.image", "--privileged"),
    Wrong(f"{E}.image", "a b"),
    Wrong(f"{E}.image", ""),
    Wrong(f"{E}.invocation", "exec"),
    Wrong(f"{E}.invocation", None),
    Wrong(f"{E}.serve_args", None, TYPE),
    Wrong(f"{E}.serve_args", "--x 1", TYPE),
    Wrong(f"{E}.serve_args", {"--x": 1}, TYPE),
    Wrong(f"{E}.serve_args", [0.9], TYPE, param=f"aibrix.{E}.serve_args.0"),
    Wrong(f"{E}.serve_args", [None], TYPE, param=f"aibrix.{E}.serve_args.0"),
    Wrong(f"{E}.serve_args", ["a\nb"], param=f"aibrix.{E}.serve_args.0"),
    Wrong(f"{E}.serve_args", ["--seed", "1"] * 300),
    Wrong(f"{E}.serve_args", ["--middleware", "os.system"]),
    Wrong(f"{E}.serve_args", ["--trust-remote-code"]),
    Wrong(f"{E}.serve_args", ["--config=/etc/passwd"]),
    Wrong(f"{E}.health_endpoint", "health"),
    Wrong(f"{E}.health_endpoint", ""),
    Wrong(f"{E}.health_endpoint", None, TYPE),
    Wrong(f"{E}.health_endpoint", "/a b"),
    Wrong(f"{E}.metrics_endpoint", "metrics"),
    Wrong(f"{E}.ready_timeout_seconds", 9),
    Wrong(f"{E}.ready_timeout_seconds", HUGE),
    Wrong(f"{E}.ready_timeout_seconds", "600", TYPE),
    Wrong(f"{E}.ready_timeout_seconds", None, TYPE),
    Wrong(f"{E}.ready_timeout_seconds", True, TYPE),
    # Model source.
    Wrong(f"{M}.type", MISSING, ABSENT),
    Wrong(f"{M}.type", "gcs"),
    Wrong(f"{M}.type", None),
    Wrong(f"{M}.uri", MISSING, ABSENT),
    Wrong(f"{M}.uri", None, TYPE),
    Wrong(f"{M}.uri", ""),
    Wrong(f"{M}.uri", "--trust-remote-code"),
    Wrong(f"{M}.uri", "a\nb"),
    Wrong(f"{M}.uri", LONG),
    Wrong(f"{M}.uri", 7, TYPE),
    Wrong(f"{M}.revision", "-x"),
    Wrong(f"{M}.revision", 7, TYPE),
    Wrong(f"{M}.tokenizer_path", "-x"),
    Wrong(f"{M}.chat_template_path", "-x"),
    Wrong(f"{M}.chat_template_path", "/etc/passwd"),
    Wrong(f"{M}.tokenizer_path", "/etc/passwd"),
    Wrong(f"{M}.auth_secret_ref", "Not A Name"),
    Wrong(f"{M}.auth_secret_ref", {"name": "x"}, TYPE),
    Wrong(f"{M}.token", "hf_x", UNKNOWN),
    # Accelerator and parallelism.
    Wrong(f"{A}.type", MISSING, ABSENT),
    Wrong(f"{A}.type", None, TYPE),
    Wrong(f"{A}.type", ""),
    Wrong(f"{A}.type", "x" * 129),
    Wrong(f"{A}.count", MISSING, ABSENT),
    Wrong(f"{A}.count", 0),
    Wrong(f"{A}.count", -1),
    Wrong(f"{A}.count", HUGE),
    Wrong(f"{A}.count", "1", TYPE),
    Wrong(f"{A}.count", 1.5, TYPE),
    Wrong(f"{A}.count", None, TYPE),
    Wrong(f"{A}.count", 4, param=f"aibrix.{P}"),
    Wrong(f"{A}.interconnect", "ethernet"),
    Wrong(f"{A}.vram_gb", 0),
    Wrong(f"{A}.vram_gb", "24", TYPE),
    Wrong(f"{A}.sku_hint", ""),
    Wrong(f"{A}.memory", 1, UNKNOWN),
    *(Wrong(f"{P}.{degree}", 0) for degree in ("tp", "pp", "dp", "ep", "sp", "cp")),
    *(Wrong(f"{P}.{degree}", "1", TYPE) for degree in ("tp", "pp", "dp", "ep", "sp", "cp")),
    *(Wrong(f"{P}.{degree}", None, TYPE) for degree in ("tp", "pp", "dp", "ep", "sp", "cp")),
    *(Wrong(f"{P}.{degree}", 3, param=f"aibrix.{P}") for degree in ("tp", "pp", "dp", "ep")),
    Wrong(f"{P}.tp", HUGE),
    Wrong(f"{P}.tensor", 2, UNKNOWN),
    Wrong(P, MISSING, VALUE),
    # Engine arguments and quantization.
    Wrong(f"{G}.max_num_seqs", 0),
    Wrong(f"{G}.max_num_seqs", "64", TYPE),
    Wrong(f"{G}.max_num_seqs", HUGE),
    Wrong(f"{G}.max_num_batched_tokens", 0),
    Wrong(f"{G}.max_num_batched_tokens", 1.5, TYPE),
    Wrong(f"{G}.max_model_len", -1),
    Wrong(f"{G}.max_model_len", [], TYPE),
    Wrong(f"{G}.gpu_memory_utilization", 0),
    Wrong(f"{G}.gpu_memory_utilization", 1.1),
    Wrong(f"{G}.gpu_memory_utilization", "0.9", TYPE),
    Wrong(f"{G}.enable_prefix_caching", "true", TYPE),
    Wrong(f"{G}.enable_prefix_caching", 1, TYPE),
    Wrong(f"{G}.enable_chunked_prefill", "no", TYPE),
    Wrong(f"{G}.num_speculative_tokens", 0),
    Wrong(f"{G}.speculative_model", "--x"),
    Wrong(f"{G}.speculative_method", "a b"),
    Wrong(f"{G}.--seed", 1),
    Wrong(f"{G}.max-num-seqs", 1),
    Wrong(f"{G}.trust_remote_code", True),
    Wrong(f"{G}.seed", ""),
    Wrong(f"{G}.seed", "a\0b"),
    Wrong(f"{G}.seed", [[1]]),
    Wrong(f"{Q}.weight", "fp4"),
    Wrong(f"{Q}.weight", 8),
    Wrong(f"{Q}.kv_cache", "fp8 e4m3"),
    Wrong(f"{Q}.kv_cache", 8, TYPE),
    Wrong(f"{Q}.bits", 4, UNKNOWN),
    # Profile.
    Wrong("profile", [], TYPE),
    Wrong("profile", "nightly", TYPE),
    Wrong("profile", {}, ABSENT, param="aibrix.profile.name"),
    Wrong("profile", {"name": "nightly"}, ABSENT, param="aibrix.profile.spec"),
    Wrong("profile.name", MISSING, ABSENT),
    Wrong("profile.name", ""),
    Wrong("profile.name", LONG),
    Wrong("profile.version", "v1", UNKNOWN),
    Wrong("profile.overrides", [], TYPE),
    Wrong("profile.overrides.quota", {}, UNKNOWN),
    Wrong("profile.overrides.scheduling", None, TYPE),
    Wrong("profile.overrides.scheduling.priority", "urgent"),
    Wrong("profile.overrides.scheduling.max_concurrency", 257),
    Wrong("profile.overrides.scheduling.deadline", "1h", UNKNOWN),
    Wrong(F, [], TYPE),
    Wrong(f"{F}.limits", {}, UNKNOWN),
    Wrong(f"{F}.scheduling", None, TYPE),
    Wrong(f"{F}.scheduling.max_concurrency", 257),
    Wrong(f"{F}.scheduling.max_concurrency", 0),
    Wrong(f"{F}.scheduling.max_concurrency", "8", TYPE),
    Wrong(f"{F}.scheduling.request_timeout_seconds", 0.5),
    Wrong(f"{F}.scheduling.request_timeout_seconds", "600", TYPE),
    Wrong(f"{F}.scheduling.priority", "urgent"),
    Wrong(f"{F}.scheduling.priority", 1),
    Wrong(f"{F}.scheduling.completion_window", "4 hours"),
    Wrong(f"{F}.scheduling.completion_window", 4, TYPE),
    Wrong(f"{F}.scheduling.completion_window", "0h"),
    Wrong(f"{F}.scheduling.provider_preference", "aws", TYPE),
    Wrong(f"{F}.scheduling.allow_spot", "yes", TYPE),
    Wrong(f"{F}.scheduling.retry_policy", 3, TYPE),
    Wrong(f"{F}.scheduling.retry_policy.max_retries", -1),
    Wrong(f"{F}.scheduling.qps", 1, UNKNOWN),
    Wrong(f"{F}.quota", None, TYPE),
    Wrong(f"{F}.quota.max_requests_per_batch", 0),
    Wrong(f"{F}.quota.max_requests_per_batch", 1.5, TYPE),
    Wrong(f"{F}.quota.max_requests_per_batch", HUGE),
    Wrong(f"{F}.quota.max_input_size_mb", 0),
    Wrong(f"{F}.quota.max_input_size_mb", "200", TYPE),
    Wrong(f"{F}.quota.max_output_size_gb", -1),
    Wrong(f"{F}.quota.max_tokens", 1, UNKNOWN),
    # Client.
    Wrong(C, [], TYPE),
    Wrong(C, 8, TYPE),
    Wrong(f"{C}.qps", 1, UNKNOWN),
    Wrong(f"{C}.request_timeout_seconds", 600, UNKNOWN),
    Wrong(f"{C}.adaptive_healthy_window", 8, UNKNOWN),
    Wrong(f"{C}.max_concurrency", 257),
    Wrong(f"{C}.max_concurrency", 1024),
    Wrong(f"{C}.max_concurrency", 0),
    Wrong(f"{C}.max_concurrency", -1),
    Wrong(f"{C}.max_concurrency", HUGE),
    Wrong(f"{C}.max_concurrency", "8", TYPE),
    Wrong(f"{C}.max_concurrency", 8.5, TYPE),
    Wrong(f"{C}.max_concurrency", True, TYPE),
    Wrong(f"{C}.adaptive_concurrency", "true", TYPE),
    Wrong(f"{C}.adaptive_concurrency", 1, TYPE),
    Wrong(f"{C}.adaptive_max_factor", 0.5),
    Wrong(f"{C}.adaptive_max_factor", "8", TYPE),
    Wrong(R, [], TYPE),
    Wrong(f"{R}.jitter", True, UNKNOWN),
    Wrong(f"{R}.max_retries", -1),
    Wrong(f"{R}.max_retries", 1.5, TYPE),
    Wrong(f"{R}.max_retries", HUGE),
    Wrong(f"{R}.base_delay_seconds", -0.1),
    Wrong(f"{R}.base_delay_seconds", "2", TYPE),
    Wrong(f"{R}.max_delay_seconds", -1),
    Wrong(f"{R}.max_delay_seconds", 10**9),
    Wrong(f"{R}.no_endpoint_max_retries", -1),
    Wrong(f"{R}.no_endpoint_max_retries", "5", TYPE),
]
