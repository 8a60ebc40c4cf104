"""The sections of the settings that say how engines are reached and started: those of the runner's runtimes."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Worker(Section):
    """The runner in a KubernetesJob, `aibrix-batch serve --role runner --batch ID`; the Job says all of this."""

    engine_url: str = "http://127.0.0.1:8000"
    """Where the engine beside it listens."""
    engine_health: str = "/health"
    """Path that answers 2xx when the engine is ready."""
    engine_ready_s: float = Field(default=600.0, gt=0)
    """How long the engine may take to be ready, at first or again."""
    last_words_file: str = ""
    """Where it writes why it gives up. Empty: only to the log."""


class External(Section):
    """What the External runtime may reach with a URL that a user gave. Default endpoints are the operator's, not bound."""

    allowed_hosts: str = ""
    """Comma-separated hosts, `host:port` or CIDRs besides public addresses. `*`: anything (for one user on a laptop)."""


class Local(Section):
    """What the Local runtime may start besides the engines it knows."""

    commands: dict[str, list[str]] = Field(default_factory=dict)
    """JSON: name to argument list, with `{port}` and `{model}` filled in; a batch names one in `runtime.options.command`.
    Users never send a command line: that would be a shell for everyone who may create a batch."""
    models_dir: str = ""
    """Folder of the models, tokenizers and chat templates that a template which a batch brings along may name by path. Empty:
    none. `*`: anywhere (for one user on a laptop). Templates of the registry are the operator's, not bound."""


class Ssh(Section):
    """How the runtimes RunPod and LambdaCloud reach their machines; see docs/runtimes-ssh.md."""

    engine_image: str = "vllm/vllm-openai:latest"
    """Image of the engine on LambdaCloud, where neither the batch nor its template names one."""
    engine_port: int = Field(default=8000, ge=1, le=65_535)
    """Port on which the engine listens on its machine."""
    connect_timeout_s: float = Field(default=300.0, gt=0)
    """How long a machine may take until it is reached for the first time, with the host key that is expected."""
    handshake_timeout_s: float = Field(default=30.0, gt=0, le=50)
    """How long one attempt to connect and log in may take."""
    keepalive_s: float = Field(default=5.0, gt=0)
    """Time between two signs of life. A connection that misses three is dead."""
    lost_after_s: float = Field(default=60.0, gt=0)
    """A machine that was reached before, and cannot be reached for this long, is lost."""
    hang_timeout_s: float = Field(default=120.0, gt=0)
    """An engine that was ready and does not answer its health check for this long has hung, and is started anew."""
    stop_grace_s: float = Field(default=10.0, ge=0, le=30)
    """How long an engine may take to end by itself before it is killed."""


class Kubernetes(Section):
    """Engines on Kubernetes, for the targets Kubernetes and KubernetesJob (runner); see docs/runtimes-kubernetes.md."""

    namespace: str = ""
    """Namespace of the engines (planner, too). Empty: the process's own, else that of the kubeconfig. Give engines one without
    other Secrets."""
    allowed_namespaces: str = ""
    """Comma-separated namespaces that a batch may name besides. `*`: any."""
    allowed_images: str = "vllm/vllm-openai,lmsysorg/sglang,ghcr.io/ggml-org/llama.cpp"
    """Comma-separated image repositories that a template which a batch brings along may name, with any tag or digest. `*`: any.
    Templates of the registry are the operator's, not bound."""
    allowed_secrets: str = ""
    """Comma-separated Secrets that such a template may name in `auth_secret_ref`, and a batch as `image_pull_secrets`. `*`: any
    but the worker's own."""
    allowed_service_accounts: str = ""
    """Comma-separated service accounts that a batch may name. `*`: any. No engine gets a token of one mounted."""
    image: str = "aibrix-batch:latest"
    """Our own image: it downloads models for engines that cannot, and is the runner in a KubernetesJob."""
    worker_config: str = "aibrix-worker"
    """ConfigMap in the engines' namespace with the environment of the runner in a KubernetesJob: AIBRIX_METADATA_ADDR and more."""
    worker_secret: str = "aibrix-worker"
    """Secret there with the rest of it, such as the credentials of the object store."""
    cache_claim: str = ""
    """PersistentVolumeClaim in the engines' namespace for downloaded models, shared by all. Empty: a volume of each pod's own."""
    shm_size: str = "16Gi"
    """Largest size of /dev/shm, in memory, where an engine spreads over devices."""
    pending_s: float = Field(default=45.0, gt=0)
    """How long a pod may be in trouble that often passes until its batch fails: unschedulable with no node on its way, an image
    that cannot be pulled, a quota that is used up."""
    start_timeout_s: float = Field(default=3600.0, gt=0)
    """How long it may take until a pod's containers run: nodes that come, images, downloads. `ready_timeout_seconds` of the
    template begins after that."""
    teardown_s: float = Field(default=120.0, gt=0)
    """How long what was deleted may take to be gone until the log says what holds it up."""
    hand_over_s: float = Field(default=30.0, gt=0)
    """How long a KubernetesJob whose engine is ready may take to lease its batch."""
    job_backoff_limit: int = Field(default=3, ge=0)
    """How often the pod of a KubernetesJob may fail, disruptions not counted."""
    job_ttl_s: int = Field(default=600, ge=0)
    """How long a finished Job stays, for people to look at."""
