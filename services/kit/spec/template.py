"""ModelDeploymentTemplate: what to start for a model, and how. Strict: unknown fields are refused."""

from __future__ import annotations

import json
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
MOST_FLAGS = 128
MOST_VALUES = 256
# All words of a list of arguments together: an engine's command line is one argument of the process that guards it.
MOST_CHARACTERS = 8192
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
    """What serves the model, and how it is started."""

    type: Literal["vllm", "sglang", "trtllm", "lmdeploy", "llamacpp", "mock"]
    """Which engine. One without an adapter (trtllm, lmdeploy) is refused when it is to be started."""
    version: Annotated[str, Field(max_length=128), Plain] | None = None
    """Version of the engine, for people: nothing is chosen by it."""
    image: Annotated[str, Field(pattern=r"^[A-Za-z0-9][!-~]{0,511}$")] | None = None
    """Container image, for runtimes that start containers. The target Local starts what is installed on its machine."""
    invocation: Literal["http_server"] = "http_server"
    """How requests reach the engine."""
    serve_args: list[Argument] = Field(default_factory=list, max_length=512)
    """Raw flags, one word each, last on the command line, so that an administrator's flag wins."""
    health_endpoint: Path = "/health"
    """Path that answers 200 when the engine is ready."""
    metrics_endpoint: Path | None = None
    """Path of the engine's metrics."""
    ready_timeout_seconds: int = Field(default=600, ge=10, le=604_800)
    """How long it may take until the health endpoint answers 200."""

    @field_validator("serve_args")
    @classmethod
    def _not_too_long(cls, words: list[str]) -> list[str]:
        if sum(map(len, words)) > MOST_CHARACTERS:
            raise ValueError(f"all words together may be {MOST_CHARACTERS} characters long")
        return words


class ModelSource(Strict):
    """Where the model's files are."""

    model_config = ConfigDict(protected_namespaces=())

    type: Literal["huggingface", "s3", "tos", "local", "hdfs"]
    """Kind of place that `uri` names."""
    uri: Value
    """A repository (`org/model`), an object's URL, or a path, by `type`."""
    revision: Value | None = None
    """Branch, tag or commit of the repository."""
    tokenizer_path: Value | None = None
    """Tokenizer, if it is not the model's own."""
    chat_template_path: Value | None = None
    """Chat template (Jinja), if it is not the model's own."""
    auth_secret_ref: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.-]{0,251}[a-z0-9]$|^[a-z0-9]$")] | None = None
    """Name of a Kubernetes Secret with the credentials for `uri`."""


class Accelerator(Strict):
    """The devices that one copy of the engine needs."""

    type: Annotated[Value, Field(max_length=128)]
    """As the provider calls it, such as `A10`; `cpu`, in any case, asks for no GPU."""
    count: int = Field(ge=1, le=MOST_DEVICES)
    """Number of devices: the product of parallelism.tp, pp, dp and ep."""
    interconnect: Literal["nvlink", "pcie", "ib"] | None = None
    """How the devices are connected."""
    vram_gb: int | None = Field(default=None, ge=1, le=1_000_000)
    """Memory of one device, in GB."""
    sku_hint: Annotated[Value, Field(max_length=128)] | None = None
    """The provider's name of a machine that fits."""


class Parallelism(Strict):
    """How the model is spread over devices: tp * pp * dp * ep must equal accelerator.count."""

    tp: int = Degree
    """Tensor parallel."""
    pp: int = Degree
    """Pipeline parallel."""
    dp: int = Degree
    """Data parallel."""
    ep: int = Degree
    """Expert parallel."""
    sp: int = Degree
    """Sequence parallel: advice, not counted in the product."""
    cp: int = Degree
    """Context parallel: advice, not counted in the product."""

    def device_count(self) -> int:
        return self.tp * self.pp * self.dp * self.ep


class EngineArgs(Strict):
    """Flags that engines share, and any other flag by its name without dashes: docs/engines.md has how each engine spells them."""

    model_config = ConfigDict(extra="allow")

    max_num_seqs: int | None = Field(default=None, ge=1, le=1_000_000)
    """Most sequences worked on at once."""
    max_num_batched_tokens: int | None = Field(default=None, ge=1, le=1_000_000_000)
    """Most tokens in one step."""
    max_model_len: int | None = Field(default=None, ge=1, le=1_000_000_000)
    """Longest context, prompt and answer together, in tokens."""
    gpu_memory_utilization: float | None = Field(default=None, gt=0, le=1)
    """Share of a device's memory; which share of what is the engine's own business."""
    enable_prefix_caching: bool | None = None
    """Keep the work done for equal beginnings of prompts."""
    enable_chunked_prefill: bool | None = None
    """Split long prompts over several steps."""
    speculative_method: Annotated[str, Field(pattern=r"^[A-Za-z0-9_]{1,64}$")] | None = None
    """Speculative decoding, in the engine's own words, such as `eagle3` or `ngram`."""
    speculative_model: Value | None = None
    """The draft model of speculative decoding."""
    num_speculative_tokens: int | None = Field(default=None, ge=1, le=1000)
    """Tokens that are guessed in one step."""

    @model_validator(mode="before")
    @classmethod
    def _other_flags(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        seen: set[str] = set()
        wrong: list[InitErrorDetails] = []
        if len(given) > MOST_FLAGS:
            raise ValueError(f"at most {MOST_FLAGS} flags may be given")
        for key, value in given.items():
            plain = flag_name(str(key))
            why = None if key in cls.model_fields else _why_no_value(value)
            if not isinstance(key, str) or len(key) > 128 or not FLAG_KEY.fullmatch(key):
                why = "a key must be the name of a flag without its dashes"
            elif plain in seen or (plain in cls.model_fields and plain != key):
                why = "this flag is given twice, or in another spelling than its own"
            seen.add(plain)
            if why is not None:
                fault = PydanticCustomError("flag", "{why}", {"why": why})
                wrong.append(InitErrorDetails(type=fault, loc=(str(key),), input=None))
        if wrong:
            raise ValidationError.from_exception_data(cls.__name__, wrong)
        return given

    def others(self) -> dict[str, Any]:
        """Flags without a type of their own; None means that the flag is not given."""
        return {key: value for key, value in sorted((self.model_extra or {}).items()) if value is not None}


def _why_no_value(value: Any) -> str | None:
    items = value if isinstance(value, list) else [value]
    if len(items) > MOST_VALUES:
        return f"a flag has at most {MOST_VALUES} values"
    if not all(isinstance(item, (str, int, float, dict)) for item in items) and value is not None:
        return "the value of a flag is a text, a number, a boolean, an object, or a list of these"
    if any(isinstance(item, str) and (CONTROL.search(item) or not item) for item in items):
        return "the value of a flag may not be empty or hold control characters"
    try:
        if len(json.dumps(value, allow_nan=False)) > MOST_CHARACTERS:
            return f"the value of a flag may be {MOST_CHARACTERS} characters long"
    except ValueError:
        return "a number is too large"
    except RecursionError:
        return "it is nested too deeply"
    return None


def flag_name(key: str) -> str:
    """One spelling for all of `max-len`, `max_len` and `MAX_LEN`."""
    return key.replace("-", "_").lower()


class Quantization(Strict):
    """In what precision the engine keeps weights and cache. Absent: as the model's files say."""

    weight: Literal["fp8", "awq", "gptq", "int8", "bf16", "fp16"] | None = None
    """Of the weights; `bf16` and `fp16` are plain data types."""
    kv_cache: Annotated[str, Field(pattern=r"^[a-z0-9_]{1,64}$")] | None = None
    """Of the key-value cache, in the engine's own words, such as `fp8_e4m3`; `auto` leaves it to the engine."""
    weights_artifact_uri: Value | None = None
    """Where weights lie that were quantized before."""


class TemplateSpec(Strict):
    """What is started. A batch may bring the same along, as `aibrix.model_template.spec`."""

    model_config = ConfigDict(protected_namespaces=())

    engine: Engine
    model_source: ModelSource
    accelerator: Accelerator
    supported_endpoints: list[EndpointPath] = Field(min_length=1, max_length=16)
    """The OpenAI paths that the model serves, each once. A batch for another one is refused."""
    parallelism: Parallelism = Field(default_factory=Parallelism, validate_default=True)
    engine_args: EngineArgs = Field(default_factory=EngineArgs)
    quantization: Quantization = Field(default_factory=Quantization)
    service_id: Annotated[str, Field(pattern=r"^[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$")] | None = None
    """For labels and discovery on Kubernetes."""
    deployment_mode: Literal["dedicated", "shared", "external"] = "dedicated"
    """Only `dedicated`, an engine of its own for every batch, is honoured."""

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
            "accelerator.sku_hint": self.accelerator.sku_hint is not None,
            "engine.metrics_endpoint": self.engine.metrics_endpoint is not None,
            "quantization.weights_artifact_uri": self.quantization.weights_artifact_uri is not None,
        }
        return [name for name, is_set in set_fields.items() if is_set]


class Template(Strict):
    """One version of a template, as a registry holds it."""

    name: Name
    """1 to 128 printable ASCII characters, the first a letter or a digit. (name, version) is unique."""
    version: Version = DEFAULT_VERSION
    """1 to 128 printable ASCII characters without spaces, the first a letter or a digit. In YAML a number is put in quotes."""
    status: Literal["active", "deprecated", "draft"] = "active"
    """`deprecated` and `draft` are used only by batches that name their version; `deprecated` warns."""
    spec: TemplateSpec

    @property
    def label(self) -> str:
        return f"{self.name}@{self.version}"

    def with_engine_args(self, overrides: dict[str, Any]) -> Self:
        """The template with these engine_args over its own; null takes one away. Error: ValidationError."""
        given = self.spec.model_dump(exclude_unset=True)
        own: dict[str, Any] = given.get("engine_args", {})
        changed = {flag_name(key) for key in overrides}
        merged = {key: value for key, value in own.items() if flag_name(key) not in changed} | overrides
        args = EngineArgs.model_validate({key: value for key, value in merged.items() if value is not None})
        return self.model_copy(update={"spec": self.spec.model_copy(update={"engine_args": args})})
