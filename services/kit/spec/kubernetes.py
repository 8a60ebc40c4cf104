"""`runtime.options` of the targets Kubernetes and KubernetesJob, and which templates can be started there."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, ValidationError, model_validator

from services.kit.engines.table import adapter_of
from services.kit.errors import InvalidArgument
from services.kit.spec.block import as_invalid, dotted
from services.kit.spec.client import Strict
from services.kit.spec.template import TemplateSpec

KUBERNETES = "Kubernetes"
KUBERNETES_JOB = "KubernetesJob"
KUBERNETES_TARGETS = (KUBERNETES, KUBERNETES_JOB)
PATH = "aibrix.runtime.options"
SPEC = "aibrix.model_template.spec"
MOST = 32

DNS_LABEL = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?", re.ASCII)
LABEL_VALUE = re.compile(r"(?:[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?)?", re.ASCII)
KEY_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?", re.ASCII)
# Labels that Kubernetes, its controllers and we select by, and that make webhooks act.
RESERVED_DOMAINS = ("kubernetes.io", "k8s.io", "x-k8s.io", "aibrix-batch", "istio.io", "azure.workload.identity")
RESERVED_LABELS = ("app", "controller-uid", "job-name", "k8s-app", "name", "pod-template-hash")
# What keeps pods off machines that are not for them: of the control plane, or broken.
RESERVED_TAINTS = ("node-role.kubernetes.io", "node.kubernetes.io")

Gpu = Literal["nvidia", "amd"]
GPU_RESOURCES: dict[Gpu, str] = {"nvidia": "nvidia.com/gpu", "amd": "amd.com/gpu"}
WORD = re.compile(r"[a-z]+\d*[a-z]?|\d+", re.ASCII)
AMD = re.compile(r"amd|instinct|radeon|mi\d{2,3}[a-z]?", re.ASCII)
OTHER_VENDORS = re.compile(r"intel|gaudi\d?|tpu|ascend|inferentia\d?|trainium\d?", re.ASCII)
# What the engines' projects publish; None in a template's `image` means this one.
IMAGES: dict[tuple[str, Gpu | None], str] = {
    ("vllm", "nvidia"): "vllm/vllm-openai:latest",
    ("vllm", "amd"): "vllm/vllm-openai-rocm:latest",
    ("sglang", "nvidia"): "lmsysorg/sglang:latest",
    ("llamacpp", None): "ghcr.io/ggml-org/llama.cpp:server",
    ("llamacpp", "nvidia"): "ghcr.io/ggml-org/llama.cpp:server-cuda",
    ("llamacpp", "amd"): "ghcr.io/ggml-org/llama.cpp:server-rocm",
}
# The mock engine is in our own image.
OURS = "mock"
SOURCES = ("huggingface", "local", "s3")
# Of a hub, and neither a path nor an address: an engine would load from there with what its machine may read.
NAME = r"[A-Za-z0-9][\w.-]*"
REPOSITORY = re.compile(rf"(?:{NAME}/)?{NAME}(?::{NAME})?", re.ASCII)


def _dns_label(text: str) -> str:
    if not DNS_LABEL.fullmatch(text):
        raise ValueError("it must be a DNS label: lower case letters, digits and '-', 63 at most")
    return text


def _dns_name(text: str) -> str:
    if len(text) > 253 or not all(DNS_LABEL.fullmatch(part) for part in text.split(".")):
        raise ValueError("it must be a name as Kubernetes has them: lower case letters, digits, '-' and '.'")
    return text


def _label_value(text: str) -> str:
    if not LABEL_VALUE.fullmatch(text):
        raise ValueError("it must be a label's value: letters, digits, '-', '_' and '.', 63 at most")
    return text


def _label_key(text: str) -> str:
    prefix, slash, name = text.rpartition("/")
    if not KEY_NAME.fullmatch(name):
        raise ValueError("it must be a label's key, such as 'team' or 'example.com/team'")
    if slash:
        _dns_name(prefix)
    return text


def _free_label(text: str) -> str:
    prefix, slash, _ = _label_key(text).rpartition("/")
    if _is_of(prefix, RESERVED_DOMAINS) or (not slash and text in RESERVED_LABELS):
        raise ValueError("this label is not the batch's to set")
    return text


def _taint_key(text: str) -> str:
    if _is_of(_label_key(text).rpartition("/")[0], RESERVED_TAINTS):
        raise ValueError("this taint is not the batch's to tolerate")
    return text


def _is_of(prefix: str, domains: tuple[str, ...]) -> bool:
    return any(prefix == domain or prefix.endswith("." + domain) for domain in domains)


DnsLabel = Annotated[str, AfterValidator(_dns_label)]
DnsName = Annotated[str, AfterValidator(_dns_name)]
LabelValue = Annotated[str, AfterValidator(_label_value)]
LabelKey = Annotated[str, AfterValidator(_label_key)]
FreeLabel = Annotated[str, AfterValidator(_free_label)]
TaintKey = Annotated[str, AfterValidator(_taint_key)]


class Toleration(Strict):
    """As Kubernetes writes it, so that it can be copied from a manifest."""

    key: TaintKey
    operator: Literal["Equal", "Exists"] = "Equal"
    value: LabelValue | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    """None: any."""
    toleration_seconds: int | None = Field(default=None, alias="tolerationSeconds", ge=0, le=86_400)

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.operator == "Exists" and self.value is not None:
            raise ValueError("with operator Exists there is no value")
        if self.toleration_seconds is not None and self.effect != "NoExecute":
            raise ValueError("tolerationSeconds goes with effect NoExecute")
        return self


class KubernetesOptions(Strict):
    """Where the pods go, and nothing else. What they are is the template's to say."""

    namespace: DnsLabel | None = None
    """None: the operator's (AIBRIX_KUBERNETES__NAMESPACE). Another one must be allowed."""
    service_account: DnsName | None = None
    """Must be allowed. Its token is not mounted."""
    node_selector: dict[LabelKey, LabelValue] = Field(default_factory=dict, max_length=MOST)
    tolerations: list[Toleration] = Field(default_factory=list, max_length=MOST)
    queue_name: DnsLabel | None = None
    """KubernetesJob only: a LocalQueue of Kueue."""
    image_pull_secrets: list[DnsName] = Field(default_factory=list, max_length=8)
    """Must be allowed."""
    labels: dict[FreeLabel, LabelValue] = Field(default_factory=dict, max_length=MOST)
    """More labels, of everything that is made."""


def parse_kubernetes(target: str, options: dict[str, Any]) -> KubernetesOptions:
    """Error: InvalidArgument, param such as `aibrix.runtime.options.namespace`."""
    try:
        given = KubernetesOptions.model_validate(options)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise as_invalid({**first, "loc": ("runtime", "options", *first["loc"])}) from error
    if given.queue_name is not None and target != KUBERNETES_JOB:
        raise _invalid(f"{PATH}.queue_name", f"only the target {KUBERNETES_JOB} waits in a queue")
    return given


def gpu_of(spec: TemplateSpec) -> Gpu | None:
    """Whose devices are asked for; None: none. Error: InvalidArgument, for a vendor whose resource nobody here knows."""
    if not spec.needs_gpu():
        return None
    words = WORD.findall(spec.accelerator.type.lower())
    if any(OTHER_VENDORS.fullmatch(word) for word in words):
        raise _invalid(f"{SPEC}.accelerator.type", f"'{dotted(spec.accelerator.type)}' is neither NVIDIA's nor AMD's")
    return "amd" if any(AMD.fullmatch(word) for word in words) else "nvidia"


def check_kubernetes(spec: TemplateSpec) -> None:
    """Whether pods can be made of a template. Error: InvalidArgument with the field's path."""
    engine, source = spec.engine, spec.model_source
    adapter_of(spec)
    if spec.deployment_mode != "dedicated":
        why = f"'{spec.deployment_mode}' is not supported; on Kubernetes every batch has a dedicated engine"
        raise _invalid(f"{SPEC}.deployment_mode", why)
    gpu = gpu_of(spec)
    if engine.image is None and engine.type != OURS and (engine.type, gpu) not in IMAGES:
        param = f"{SPEC}.engine.image"
        message = f"Missing required parameter: '{param}'. No image of {engine.type} for {gpu or 'cpu'} is known."
        raise InvalidArgument(message, param=param, code="missing_required_parameter")
    if engine.type == OURS:
        return
    if source.type not in SOURCES:
        why = f"on Kubernetes no model is downloaded from {source.type}; these can: {', '.join(SOURCES)}"
        raise _invalid(f"{SPEC}.model_source.type", why)
    if source.type == "huggingface" and not REPOSITORY.fullmatch(source.uri):
        raise _invalid(f"{SPEC}.model_source.uri", "it must be a repository such as 'owner/name'")
    _check_s3(spec)


def _check_s3(spec: TemplateSpec) -> None:
    if spec.model_source.type != "s3":
        return
    param = f"{SPEC}.model_source.uri"
    bucket, _, key = spec.model_source.uri.removeprefix("s3://").partition("/")
    if not spec.model_source.uri.startswith("s3://") or not bucket or not key.strip("/"):
        raise _invalid(param, "it must be s3://BUCKET/FOLDER")
    if spec.engine.type == "llamacpp" and not key.endswith(".gguf"):
        raise _invalid(param, "llama.cpp starts from a file: name the .gguf file itself")


def _invalid(path: str, why: str) -> InvalidArgument:
    return InvalidArgument(f"Invalid value for '{path}': {why}.", param=path, code="invalid_value")
