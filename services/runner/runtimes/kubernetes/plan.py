"""What a batch wants on Kubernetes, and whether the operator lets it. Nothing here knows the API."""

from __future__ import annotations

import hashlib
import math
import posixpath
import re
from dataclasses import dataclass, field
from typing import Any

from services.kit.engines import table as engines
from services.kit.errors import InvalidArgument
from services.kit.settings import Settings
from services.kit.spec.kubernetes import (
    GPU_RESOURCES,
    IMAGES,
    KUBERNETES_JOB,
    OURS,
    KubernetesOptions,
    check_kubernetes,
    gpu_of,
    parse_kubernetes,
)
from services.kit.spec.template import TemplateSpec
from services.runner.runtimes.base import RuntimeFailed, Spec
from services.runner.runtimes.kubernetes.names import dns_label, label_value

PORT = 8000
LOOPBACK = "127.0.0.1"
NAME = "aibrix-batch-engine"
MANAGED_BY = "aibrix-batch"
# Labels that select, and annotations with what no label can hold.
BATCH_LABEL = "aibrix-batch/batch"
TEMPLATE_LABEL = "aibrix-batch/template"
VERSION_LABEL = "aibrix-batch/template-version"
SERVICE_LABEL = "aibrix-batch/service-id"
BATCH_ANNOTATION = "aibrix-batch/batch-id"
TEMPLATE_ANNOTATION = "aibrix-batch/template"
VERSION_ANNOTATION = "aibrix-batch/template-version"
JOB_ANNOTATION = "aibrix-batch/job-id"
MARK_ANNOTATION = "aibrix-batch/mark"
# A pod of a Deployment is called `NAME-<10>-<5>`, and its name is its host's name, a DNS label.
POD_SUFFIX = 17
# The volume of models, and what is downloaded from object stores in it.
CACHE = "/cache"
MODELS = f"{CACHE}/models"
# Programs of images where they are not found by the adapter's words.
PROGRAMS = {"sglang": ("python3", "-m", "sglang.launch_server"), "llamacpp": ("/app/llama-server",)}
SHORTEST_WINDOW_S = 60
MOST_REPLICAS = 64
# A runner that drains ends requests for `drain_s`, commits, and hands the lease back.
COMMIT_S = 15
MARGIN_S = 15
ENGINE_GRACE_S = 30
ANY = "*"
SHARD = re.compile(r"-\d{5}-of-\d{5}\.gguf$", re.ASCII)
COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
IMAGE = re.compile(
    rf"(?P<repository>(?:[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?(?::\d{{1,5}})?/)?{COMPONENT}(?:/{COMPONENT})*)"
    r"(?::[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?(?:@[a-z0-9]+(?:[.+_-][a-z0-9]+)*:[0-9a-fA-F]{32,512})?",
    re.ASCII,
)


@dataclass(frozen=True, kw_only=True)
class Download:
    """What our own image brings into the volume of models before the engine starts."""

    uri: str
    folder: str


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that the manifests of one batch say."""

    target: str
    key: str
    """The batch id."""
    mark: str
    """Of this launch."""
    name: str
    """Of the Deployment and its Service, or of the Job."""
    namespace: str
    options: KubernetesOptions
    labels: dict[str, str]
    """Of everything, without `app.kubernetes.io/component`."""
    annotations: dict[str, str]

    engine: str
    """`engine.type`."""
    image: str
    command: tuple[str, ...]
    arguments: tuple[str, ...]
    """With host and port behind everything."""
    loopback: bool
    """The engine listens for its own pod only."""
    health_path: str
    ready_timeout_s: int
    replicas: int
    devices: dict[str, str]
    """Resource to quantity; empty: no GPU."""
    shares_memory: bool
    """The engine spreads over devices, and its processes talk through /dev/shm."""
    shm_size: str

    download: Download | None
    secret: str | None
    """Name of the Secret for the model's source."""
    cache_claim: str | None

    own_image: str
    worker_config: str
    worker_secret: str
    window_s: int | None
    """How long the batch has; None: as long as it takes."""
    backoff_limit: int
    ttl_s: int
    grace_s: int
    """How long a pod may take to end by itself."""
    drain_s: float
    """How long the requests in flight of a worker may take to end. It fits into `grace_s`."""
    selector: dict[str, str] = field(default_factory=dict)
    """Labels by which the pods of the batch, and no others, are found."""


def plan(spec: Spec, target: str, settings: Settings, own_namespace: str, *, mark: str, now: float) -> Plan:
    """`own_namespace`: where engines go if nobody says. `now`: Unix seconds. Error: RuntimeFailed, for ever."""
    template = spec.template
    if template is None:
        raise _hopeless("nothing to start: give model_template")
    try:
        options = parse_kubernetes(target, spec.block.options())
        check_kubernetes(template)
        gpu = gpu_of(template)
        download, model = _model(template, settings)
        words = engines.arguments(template, model=model, served_model=spec.model)
    except InvalidArgument as error:
        raise _hopeless(error.message) from error
    image = template.engine.image or _default_image(template, gpu, settings)
    allowed = Allowed(settings, own_namespace)
    allowed.check_options(options)
    if spec.template_source != "registry":
        # Whatever is not said to be the operator's is an ordinary user's.
        allowed.check_template(template)
    is_job = target == KUBERNETES_JOB
    host = LOOPBACK if is_job else "0.0.0.0"
    chosen = settings.kubernetes
    degrees = template.parallelism
    return Plan(
        target=target,
        key=spec.key,
        mark=mark,
        name=dns_label(f"aibrix-{spec.key}", suffix_length=POD_SUFFIX),
        namespace=options.namespace or allowed.namespace,
        options=options,
        labels=_labels(spec, options),
        annotations=_annotations(spec, mark),
        selector={"app.kubernetes.io/name": NAME, BATCH_LABEL: label_value(spec.key)},
        engine=template.engine.type,
        loopback=is_job,
        image=_checked_image(image),
        command=PROGRAMS.get(template.engine.type) or engines.adapter_of(template).program,
        arguments=(*words, "--host", host, "--port", str(PORT)),
        health_path=template.engine.health_endpoint,
        ready_timeout_s=template.engine.ready_timeout_seconds,
        replicas=1 if is_job else _replicas(spec.block.resource_allocation),
        devices={GPU_RESOURCES[gpu]: str(template.accelerator.count)} if gpu else {},
        shares_memory=max(degrees.tp, degrees.pp, degrees.dp, degrees.ep) > 1,
        shm_size=chosen.shm_size,
        download=download,
        secret=template.model_source.auth_secret_ref,
        cache_claim=chosen.cache_claim or None,
        own_image=chosen.image,
        worker_config=chosen.worker_config,
        worker_secret=chosen.worker_secret,
        window_s=None if spec.expire_time is None else max(SHORTEST_WINDOW_S, math.ceil(spec.expire_time - now)),
        backoff_limit=chosen.job_backoff_limit,
        ttl_s=chosen.job_ttl_s,
        drain_s=settings.runner.drain_s,
        grace_s=math.ceil(settings.runner.drain_s) + COMMIT_S + MARGIN_S if is_job else ENGINE_GRACE_S,
    )


class Allowed:
    """The settings `kubernetes.allowed_*`. Errors: RuntimeFailed, which names the setting and not what it holds."""

    def __init__(self, settings: Settings, own_namespace: str) -> None:
        self._settings = settings.kubernetes
        self.namespace = self._settings.namespace or own_namespace

    def check_options(self, options: KubernetesOptions) -> None:
        chosen = self._settings
        if options.namespace not in (None, self.namespace):
            _check("namespace", options.namespace, chosen.allowed_namespaces, "allowed_namespaces")
        _check("service account", options.service_account, chosen.allowed_service_accounts, "allowed_service_accounts")
        for name in options.image_pull_secrets:
            self._check_secret("image pull secret", name)

    def check_template(self, template: TemplateSpec) -> None:
        """One that a batch brought along."""
        image, secret = template.engine.image, template.model_source.auth_secret_ref
        if image is not None and not self._allows(image):
            raise _refused("image", repository(image) or image, "allowed_images")
        self._check_secret("secret", secret)

    def _check_secret(self, what: str, name: str | None) -> None:
        """The worker's own has the platform's credentials, so `*` does not mean it: an engine would get all its keys."""
        if name == self._settings.worker_secret:
            raise _hopeless(f"the {what} {name} is the platform's own (AIBRIX_KUBERNETES__WORKER_SECRET)")
        _check(what, name, self._settings.allowed_secrets, "allowed_secrets")

    def _allows(self, image: str) -> bool:
        listed = _listed(self._settings.allowed_images)
        return ANY in listed or repository(image) in {repository(one) or one for one in listed}


def repository(image: str) -> str | None:
    """The image without tag and digest, and without the name of the registry that is meant if none is said.

    None: it is no image's name.
    """
    match = IMAGE.fullmatch(image)
    if match is None:
        return None
    name = match["repository"]
    first, slash, rest = name.partition("/")
    if not slash:
        return f"library/{name}"
    if first in ("docker.io", "index.docker.io"):
        return rest if "/" in rest else f"library/{rest}"
    return name


def _check(what: str, name: str | None, listed: str, setting: str) -> None:
    if name is not None and not _listed(listed) & {name, ANY}:
        raise _refused(what, name, setting)


def _listed(text: str) -> set[str]:
    return {part.strip() for part in text.split(",")} - {""}


def _refused(what: str, name: str, setting: str) -> RuntimeFailed:
    return _hopeless(f"the {what} {name} is not one that the operator allows (AIBRIX_KUBERNETES__{setting.upper()})")


def _default_image(template: TemplateSpec, gpu: Any, settings: Settings) -> str:
    if template.engine.type == OURS:
        return settings.kubernetes.image
    return IMAGES[template.engine.type, gpu]


def _checked_image(image: str) -> str:
    if repository(image) is None:
        raise _hopeless(f"the image {image[:128]} is not named as images are")
    return image


def _model(template: TemplateSpec, settings: Settings) -> tuple[Download | None, str | None]:
    """What is to be downloaded, and what the engine loads instead of the template's uri."""
    source = template.model_source
    if template.engine.type == OURS or source.type == "huggingface":
        return None, None
    if source.type == "local":
        return None, _local(source.uri, settings)
    return _from_s3(source.uri)


def _local(uri: str, settings: Settings) -> str:
    """Error: RuntimeFailed, unless it is in the volume that all engines have."""
    if not settings.kubernetes.cache_claim:
        raise _hopeless(
            "a model of type local lies in the volume of models, and the operator has set none (AIBRIX_KUBERNETES__CACHE_CLAIM)"
        )
    path = posixpath.normpath(posixpath.join(CACHE, uri))
    if not path.startswith(f"{CACHE}/"):
        raise _hopeless(f"a model of type local must lie in {CACHE}, the volume of models")
    return path


def _from_s3(uri: str) -> tuple[Download, str]:
    """One object, if it is a .gguf file, else a folder. A file in parts comes with the folder that the parts are in."""
    uri = uri.rstrip("/")
    folder, _, last = uri.rpartition("/")
    fetched = folder if SHARD.search(last) else uri
    if fetched.count("/") < 3:
        raise _hopeless("the parts of a model must lie in a folder of their own, not at the top of a bucket")
    where = f"{MODELS}/{hashlib.sha256(fetched.encode()).hexdigest()[:32]}"
    model = f"{where}/{last}" if last.endswith(".gguf") else where
    return Download(uri=fetched, folder=where), model


def _replicas(allocation: dict[str, Any] | None) -> int:
    """`resource_details[0].replica`, as a resource manager writes it. Error: RuntimeFailed."""
    details = (allocation or {}).get("resource_details")
    first = details[0] if isinstance(details, list) and details else details
    # The seed's word, and our planner's.
    given = first.get("replica", first.get("replicas")) if isinstance(first, dict) else None
    if given is None:
        return 1
    if not isinstance(given, int) or isinstance(given, bool) or not 1 <= given <= MOST_REPLICAS:
        raise _hopeless(f"resource_allocation.resource_details.0.replica must be an integer from 1 to {MOST_REPLICAS}")
    return given


def _labels(spec: Spec, options: KubernetesOptions) -> dict[str, str]:
    reference, template = spec.block.model_template, spec.template
    ours = {
        "app.kubernetes.io/name": NAME,
        "app.kubernetes.io/managed-by": MANAGED_BY,
        BATCH_LABEL: label_value(spec.key),
    }
    if reference is not None:
        ours[TEMPLATE_LABEL] = label_value(reference.name)
        if reference.version:
            ours[VERSION_LABEL] = label_value(reference.version)
    if template is not None and template.service_id is not None:
        ours[SERVICE_LABEL] = label_value(template.service_id)
    return {**options.labels, **ours}


def _annotations(spec: Spec, mark: str) -> dict[str, str]:
    reference = spec.block.model_template
    found = {
        BATCH_ANNOTATION: spec.key,
        MARK_ANNOTATION: mark,
        TEMPLATE_ANNOTATION: reference.name if reference else None,
        VERSION_ANNOTATION: reference.version if reference else None,
        JOB_ANNOTATION: spec.block.job_id,
    }
    return {name: text for name, text in found.items() if text}


def _hopeless(why: str) -> RuntimeFailed:
    return RuntimeFailed(why, retryable=False)
