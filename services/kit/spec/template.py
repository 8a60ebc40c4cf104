"""ModelDeploymentTemplateSpec: what to start for a model, and how. Strict: unknown fields are refused."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from services.kit.spec.client import Strict

Degree = Field(default=1, ge=1, le=65_536)


class Engine(Strict):
    type: Literal["vllm", "sglang", "trtllm", "lmdeploy", "llamacpp", "mock"]
    version: str | None = None
    image: str | None = None
    invocation: Literal["http_server"] = "http_server"
    serve_args: list[str] = Field(default_factory=list)
    """Raw flags, last on the command line, so that an administrator's flag wins."""
    health_endpoint: str = Field(default="/health", pattern=r"^/[!-~]*$")
    ready_timeout_seconds: int = Field(default=600, ge=10)


class ModelSource(Strict):
    model_config = ConfigDict(protected_namespaces=())

    type: Literal["huggingface", "s3", "tos", "local", "hdfs"]
    uri: str = Field(min_length=1)
    revision: str | None = None
    tokenizer_path: str | None = None
    chat_template_path: str | None = None
    auth_secret_ref: str | None = None


class Accelerator(Strict):
    type: str = Field(min_length=1)
    count: int = Field(ge=1)
    interconnect: Literal["nvlink", "pcie", "ib"] | None = None
    vram_gb: int | None = Field(default=None, ge=1)
    sku_hint: str | None = None


class Parallelism(Strict):
    tp: int = Degree
    pp: int = Degree
    dp: int = Degree
    ep: int = Degree
    sp: int = Degree
    cp: int = Degree


class Quantization(Strict):
    weight: Literal["fp8", "awq", "gptq", "int8", "bf16", "fp16"] | None = None
    kv_cache: str | None = None


class TemplateSpec(Strict):
    model_config = ConfigDict(protected_namespaces=())

    engine: Engine
    model_source: ModelSource
    accelerator: Accelerator
    supported_endpoints: list[str] = Field(min_length=1)
    parallelism: Parallelism = Field(default_factory=Parallelism)
    engine_args: dict[str, Any] = Field(default_factory=dict)
    quantization: Quantization = Field(default_factory=Quantization)
    service_id: str | None = None
    deployment_mode: Literal["dedicated", "shared", "external"] = "dedicated"

    @model_validator(mode="after")
    def _degrees_fill_the_accelerators(self) -> Self:
        p = self.parallelism
        if p.tp * p.pp * p.dp * p.ep != self.accelerator.count:
            raise ValueError("parallelism tp * pp * dp * ep must equal accelerator.count")
        return self
