"""ModelDeploymentTemplate: what to start for a model, and how. Strict: unknown fields are refused."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from services.kit.spec.client import Strict
from services.kit.spec.endpoints import EndpointPath

DEFAULT_VERSION = "v1.0.0"
# Far above any machine; it keeps the products of degrees small.
MOST_DEVICES = 65_536
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
FLAG_KEY = re.compile(r"[A-Za-z][A-Za-z0-9]*(?:[-_][A-Za-z0-9]+)*", re.ASCII)
Degree = Field(default=1, ge=1, le=MOST_DEVICES)


def _plain(text: str) -> str:
    if CONTROL.search(text):
        raise ValueError("control characters are not allowed")
    return text


def _no_flag(text: str) -> str:
    """It stands on a command line, where a leading dash would make a flag of it."""
    if text.startswith("-") or text != text.strip():
        raise ValueError("it may not begin with a dash, nor begin or end with a space")
    return _plain(text)


Plain = AfterValidator(_plain)
Value = Annotated[str, Field(min_length=1, max_length=2048), AfterValidator(_no_flag)]
Argument = Annotated[str, Field(max_length=65_536), Plain]
Path = Annotated[str, Field(pattern=r"^/[!-~]*$", max_length=256)]
# Both stand in labels, logs and lists.
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9](?:[ -~]{0,126}[!-~])?$")]
Version = Annotated[str, Field(pattern=r"^[A-Za-z0-9][!-~]{0,127}$")]


class Engine(Strict):
    type: Literal["vllm", "sglang", "trtllm", "lmdeploy", "llamacpp", "mock"]
    """An engine without an adapter (trtllm, lmdeploy) is refused when it is to be started."""
    version: Annotated[str, Field(max_length=128), Plain] | None = None
    """For people; `image` says what is started."""
    image: Annotated[str, Field(pattern=r"^[A-Za-z0-9][!-~]{0,511}$")] | None = None
    invocation: Literal["http_server"] = "http_server"
    serve_args: list[Argument] = Field(default_factory=list, max_length=512)
    """Raw flags, last on the command line, so that an administrator's flag wins."""
    health_endpoint: Path = "/health"
    metrics_endpoint: Path | None = None
    ready_timeout_seconds: int = Field(default=600, ge=10, le=604_800)
    """How long it may take until the health endpoint answers 200."""


class ModelSource(Strict):
    model_config = ConfigDict(protected_namespaces=())

    type: Literal["huggingface", "s3", "tos", "local", "hdfs"]
    uri: Value
    """A repository, an object's URL, or a path, by `type`."""
    revision: Value | None = None
    tokenizer_path: Value | None = None
    chat_template_path: Value | None = None
    auth_secret_ref: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.-]{0,251}[a-z0-9]$|^[a-z0-9]$")] | None = None
    """Name of a Kubernetes Secret."""


class Accelerator(Strict):
    type: Annotated[Value, Field(max_length=128)]
    """As the provider calls it; `cpu`, in any case, asks for no GPU."""
    count: int = Field(ge=1, le=MOST_DEVICES)
    interconnect: Literal["nvlink", "pcie", "ib"] | None = None
    vram_gb: int | None = Field(default=None, ge=1, le=1_000_000)
    sku_hint: Annotated[Value, Field(max_length=128)] | None = None


class Parallelism(Strict):
    tp: int = Degree
    pp: int = Degree
    dp: int = Degree
    ep: int = Degree
    sp: int = Degree
    """Advice, not counted in the product."""
    cp: int = Degree
    """Likewise."""

    def device_count(self) -> int:
        return self.tp * self.pp * self.dp * self.ep


class EngineArgs(Strict):
    """Typed flags that engines share, and any other flag by its name: see docs/templates.md for how each engine spells them."""

    model_config = ConfigDict(extra="allow")

    max_num_seqs: int | None = Field(default=None, ge=1, le=1_000_000)
    max_num_batched_tokens: int | None = Field(default=None, ge=1, le=1_000_000_000)
    max_model_len: int | None = Field(default=None, ge=1, le=1_000_000_000)
    gpu_memory_utilization: float | None = Field(default=None, gt=0, le=1)
    enable_prefix_caching: bool | None = None
    enable_chunked_prefill: bool | None = None
    speculative_method: Annotated[str, Field(pattern=r"^[A-Za-z0-9_]{1,64}$")] | None = None
    speculative_model: Value | None = None
    num_speculative_tokens: int | None = Field(default=None, ge=1, le=1000)

    @model_validator(mode="before")
    @classmethod
    def _other_flags(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        seen: set[str] = set()
        for key, value in given.items():
            plain = str(key).replace("-", "_").lower()
            if not isinstance(key, str) or len(key) > 128 or not FLAG_KEY.fullmatch(key):
                raise _wrong_flag(key, "a key must be the name of a flag without its dashes")
            if plain in seen or (plain in cls.model_fields and plain != key):
                raise _wrong_flag(key, "this flag is given twice, or in another spelling than its own")
            seen.add(plain)
            if key not in cls.model_fields and (why := _why_no_value(value)):
                raise _wrong_flag(key, why)
        return given

    def others(self) -> dict[str, Any]:
        """Flags without a type of their own; None means that the flag is not given."""
        return {key: value for key, value in sorted((self.model_extra or {}).items()) if value is not None}


def _why_no_value(value: Any) -> str | None:
    items = value if isinstance(value, list) else [value]
    if not all(isinstance(item, (str, int, float, dict)) for item in items) and value is not None:
        return "the value of a flag is a text, a number, a boolean, an object, or a list of these"
    if any(isinstance(item, str) and (CONTROL.search(item) or not item or len(item) > 65_536) for item in items):
        return "the value of a flag may not be empty, hold control characters or be very long"
    return None


def _wrong_flag(key: object, why: str) -> ValidationError:
    """A complaint that names the key."""
    detail = InitErrorDetails(type=PydanticCustomError("flag", "{why}", {"why": why}), loc=(str(key),), input=None)
    return ValidationError.from_exception_data("EngineArgs", [detail])


class Quantization(Strict):
    weight: Literal["fp8", "awq", "gptq", "int8", "bf16", "fp16"] | None = None
    kv_cache: Annotated[str, Field(pattern=r"^[a-z0-9_]{1,64}$")] | None = None
    """In the engine's own words, such as `fp8_e4m3`; `auto` leaves it to the engine."""
    weights_artifact_uri: Value | None = None


class TemplateSpec(Strict):
    model_config = ConfigDict(protected_namespaces=())

    engine: Engine
    model_source: ModelSource
    accelerator: Accelerator
    supported_endpoints: list[EndpointPath] = Field(min_length=1)
    parallelism: Parallelism = Field(default_factory=Parallelism, validate_default=True)
    """tp * pp * dp * ep must equal accelerator.count."""
    engine_args: EngineArgs = Field(default_factory=EngineArgs)
    quantization: Quantization = Field(default_factory=Quantization)
    service_id: Annotated[str, Field(pattern=r"^[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$")] | None = None
    """For labels and discovery on Kubernetes."""
    deployment_mode: Literal["dedicated", "shared", "external"] = "dedicated"

    @field_validator("parallelism")
    @classmethod
    def _fills_the_accelerators(cls, parallelism: Parallelism, info: ValidationInfo) -> Parallelism:
        accelerator = info.data.get("accelerator")
        if accelerator is not None and parallelism.device_count() != accelerator.count:
            raise ValueError("tp * pp * dp * ep must equal accelerator.count")
        return parallelism

    @field_validator("supported_endpoints")
    @classmethod
    def _each_once(cls, endpoints: list[EndpointPath]) -> list[EndpointPath]:
        if len(set(endpoints)) < len(endpoints):
            raise ValueError("an endpoint stands there twice")
        return endpoints

    def needs_gpu(self) -> bool:
        return self.accelerator.type.lower() != "cpu"

    def ignored_fields(self) -> list[str]:
        """Fields that are set, accepted, and not honoured by anything here."""
        set_fields = {
            "deployment_mode": self.deployment_mode != "dedicated",
            "parallelism.sp": self.parallelism.sp > 1,
            "parallelism.cp": self.parallelism.cp > 1,
            "accelerator.interconnect": self.accelerator.interconnect is not None,
            "accelerator.vram_gb": self.accelerator.vram_gb is not None,
            "accelerator.sku_hint": self.accelerator.sku_hint is not None,
            "engine.metrics_endpoint": self.engine.metrics_endpoint is not None,
            "model_source.auth_secret_ref": self.model_source.auth_secret_ref is not None,
            "quantization.weights_artifact_uri": self.quantization.weights_artifact_uri is not None,
            "service_id": self.service_id is not None,
        }
        return [name for name, is_set in set_fields.items() if is_set]


class Template(Strict):
    """One version of a template, as a registry holds it."""

    name: Name
    version: Version = DEFAULT_VERSION
    status: Literal["active", "deprecated", "draft"] = "active"
    """`deprecated` and `draft` are used only by batches that name their version."""
    spec: TemplateSpec

    @property
    def label(self) -> str:
        return f"{self.name}@{self.version}"

    def with_engine_args(self, overrides: dict[str, Any]) -> Self:
        """The template with these engine_args over its own; null takes one away. Error: ValidationError."""
        given = self.spec.model_dump(exclude_unset=True)
        merged = {**given.get("engine_args", {}), **overrides}
        args = EngineArgs.model_validate({key: value for key, value in merged.items() if value is not None})
        return self.model_copy(update={"spec": self.spec.model_copy(update={"engine_args": args})})
