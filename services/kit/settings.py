"""Every knob, in one tree. Read once, when a process starts; passed down, never imported as a value.

Names: the seed's own variables stay as they are (`AIBRIX_DEFAULT_ENDPOINT`, `AIBRIX_BATCH_...`); the rest are
`AIBRIX_<SECTION>__<NAME>`. A name that starts with `AIBRIX_` and is none of these stops the start.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from services.kit.runtime_settings import External, Kubernetes, Local, Section, Ssh, Worker

MIB = 1024 * 1024
# Credentials for endpoints live under this prefix; see services/runner/runtimes/external.py.
ENDPOINT_KEY_PREFIX = "AIBRIX_ENDPOINT_KEY_"


def plain(name: str, default: Any, **rules: Any) -> Any:
    """A setting whose variable is called `name`, without a prefix: the names that the seed and its users know."""
    return Field(default=default, validation_alias=name, **rules)


class Gateway(Section):
    listen: str = "127.0.0.1:8080"
    """Address of the HTTP server."""
    allow_anonymous: bool = False
    """Serve without API keys on an address that is not loopback."""
    max_file_bytes: int = 512 * MIB
    """Largest upload."""
    max_batch_file_bytes: int = 209_715_200
    """Largest upload of purpose `batch`: OpenAI's 200 MB."""
    max_upload_bytes: int = 8 * 1024 * MIB
    """Largest file that may be put together from parts."""
    max_part_bytes: int = 64 * MIB
    """Largest part of an upload."""
    max_json_bytes: int = 4 * MIB
    """Largest JSON body."""
    idle_timeout_s: float = 60.0
    """An upload from which nothing arrives for this long is given up."""


class Metadata(Section):
    listen: str = "127.0.0.1:50051"
    """Address of the gRPC server."""
    metrics_listen: str = ""
    """Address of an HTTP server for /metrics, for a role that runs by itself. Empty: none."""
    database_url: str = ""
    """`sqlite+aiosqlite:///...` or `postgresql+asyncpg://...`. Empty: SQLite in the data folder."""
    lease_ttl_s: float = 10.0
    """A runner that is not heard of for this long has lost its batches."""
    max_lines: int = 50_000
    """Most requests in a batch that has no profile."""
    max_line_bytes: int = 10 * MIB
    """Longest line of an input file."""
    janitor_interval_s: float = 60.0
    """Time between two rounds of the janitor."""
    orphan_age_s: float = 86_400.0
    """An object that no row names is deleted when it is this old."""
    validator_count: int = 1
    """Input files validated at once, each in a thread."""
    runner_memory_s: float = 60.0
    """A runner that has not reported for this long is no longer listed."""


class Runner(Section):
    listen: str = "127.0.0.1:50054"
    """Address of the gRPC server (status and health)."""
    metrics_listen: str = ""
    """Address of an HTTP server for /metrics, for a role that runs by itself. Empty: none."""
    slots: int = Field(default=4, ge=1)
    """Batches run at once."""
    segment_lines: int = Field(default=2000, ge=1)
    """A segment is committed when it holds this many lines ..."""
    segment_seconds: float = Field(default=1.0, gt=0)
    """... or is this old ..."""
    segment_bytes: int = 8 * MIB
    """... or holds this many bytes of results."""
    request_timeout_s: float = Field(default=600.0, gt=0)
    """Longest time for one attempt of one request."""
    drain_s: float = 30.0
    """How long requests in flight may take to end after a cancel, an expiry or SIGTERM."""
    in_flight_bytes: int = 128 * MIB
    """Most bytes of request bodies held in memory per batch."""
    max_answer_bytes: int = 64 * MIB
    """Longest answer of an engine."""
    launch_attempts: int = Field(default=3, ge=1)
    """How often a runtime may fail to come up before its batch fails."""
    work_dir: str = ""
    """Where local engines keep their records and logs. Empty: in the data folder."""


class Templates(Section):
    """Where metadata finds ModelDeploymentTemplates."""

    source: str = ""
    """A YAML file or a folder of them, `configmap:NAMESPACE/NAME` (key `templates.yaml`; another: `configmap:NAMESPACE/NAME/KEY`),
    or `console`. Empty: none, and a batch brings its template along. What comes from the console is written by users, and bound
    like a template that a batch brings along."""
    reload_s: float = Field(default=5.0, gt=0)
    """How often the source, also that of profiles, is looked at for changes."""
    inline_flags: Literal["listed", "any"] = "listed"
    """Engine flags in a template that a batch brings along, and in its overrides. `listed`: those of docs/engines.md, which
    neither read files nor load code. `any`: all (for one user on a laptop). Templates of the registry are not bound."""

    inline_ready_timeout_s: int = Field(default=3600, ge=10)
    """The largest `engine.ready_timeout_seconds` of a template that a batch brings along: an engine that never becomes ready
    holds a slot of its runner for so long. Not where `inline_flags` is `any`."""


class Profiles(Section):
    """Where metadata finds BatchProfiles."""

    source: str = ""
    """A YAML file, or `configmap:NAMESPACE/NAME` (key `profiles.yaml`; another: `configmap:NAMESPACE/NAME/KEY`). Empty: none."""


class Planner(Section):
    listen: str = "127.0.0.1:50052"
    """Address of the gRPC server."""
    metrics_listen: str = ""
    """Address of an HTTP server for /metrics, for a role that runs by itself. Empty: none."""
    database_url: str = ""
    """As metadata's; roles may share a PostgreSQL database. Empty: SQLite in the data folder."""
    lease_ttl_s: float = Field(default=15.0, gt=0)
    """A planner that is not heard of for this long has lost its jobs to another."""
    poll_s: float = Field(default=1.0, gt=0)
    """How often a job's batch, or a machine in the making, is looked at."""
    max_provisions: int = Field(default=8, ge=1)
    """Provisions that may exist at once."""
    provision_timeout_s: float = Field(default=3600.0, gt=0)
    """How long a provider may take until its machines run."""
    reconcile_s: float = Field(default=120.0, gt=0)
    """How often the providers' own lists are compared with the store."""
    job_budget_usd: float = Field(default=0.0, ge=0)
    """The most that the compute of one job may cost, where the job does not say. 0: no limit."""
    cold_start_s: float = Field(default=900.0, ge=0)
    """What the policy `deadline` reckons for machines and models to come up."""
    keep_engine_s: int = Field(default=60, ge=0, le=600)
    """How long an engine stays up for the next job on the same machine, where the policy lets jobs share machines."""


class Console(Section):
    listen: str = "127.0.0.1:50053"
    """Address of the gRPC server."""
    metrics_listen: str = ""
    """Address of an HTTP server for /metrics, for a role that runs by itself. Empty: none."""
    database_url: str = ""
    """As metadata's, also read from STORE_URI. Empty: SQLite in the data folder."""


class Static(Section):
    """Endpoints that exist, for the provider `static`."""

    endpoints: list[dict[str, Any]] = Field(default_factory=list)
    """JSON: `[{"name": ..., "base_url": ..., "capacity": 2, "labels": {...}, "api_key_env": ..., "hourly_price_usd": 0}]`."""


class Objects(Section):
    url: str = ""
    """`s3://bucket/prefix`, `gs://`, `az://`, or a folder. Empty: a folder in the data folder."""
    endpoint: str = ""
    """URL of an S3-compatible server. Empty: the provider's own."""
    access_key_id: str = ""
    """Of the S3-compatible server. Empty: the provider's own chain of credentials."""
    secret_access_key: SecretStr = SecretStr("")
    """Its secret."""
    region: str = "us-east-1"
    """Region of the bucket."""


class Log(Section):
    level: Literal["debug", "info", "warning", "error"] = "info"
    """`debug`, `info`, `warning` or `error`."""
    format: Literal["auto", "json", "console"] = "auto"
    """`auto`: console on a terminal, JSON elsewhere."""


class Settings(BaseSettings):
    model_config = SettingsConfigDict(
        env_prefix="AIBRIX_",
        env_nested_delimiter="__",
        extra="forbid",
        frozen=True,
        populate_by_name=True,
        use_attribute_docstrings=True,
    )

    data_dir: Path = Path("aibrix-batch-data")
    """Folder for SQLite and local objects, when these are used."""
    metadata_addr: str = "127.0.0.1:50051"
    """Where the other roles find metadata."""
    planner_addr: str = "127.0.0.1:50052"
    """Where the other roles find the planner."""
    console_addr: str = "127.0.0.1:50053"
    """Where the gateway finds the console."""
    api_keys_file: str = ""
    """Hashed API keys, one a line; see gateway/auth.py. Empty: no keys, and loopback only."""
    default_endpoint: str = ""
    """Comma-separated base URLs for batches that name no endpoint (read by metadata)."""
    mds_http_body_log: bool = False
    """Log the exact `extra_body.aibrix` payload of every create (metadata)."""

    provisioner: str = plain("PROVISIONER", "local")
    """Comma-separated providers of compute: `local`, `static`, `kubernetes`, `runpod`, `lambdaCloud` (planner)."""
    planning_policy: str = plain("PLANNING_POLICY", "simple")
    """`simple`, `deadline`, or the name of a package's policy (planner)."""
    planner_worker_count: int = plain("PLANNER_WORKER_COUNT", 10, ge=1)
    """Jobs that a planner acts on at once."""
    cloud_render_engine_args: bool = plain("CLOUD_RENDER_ENGINE_ARGS", False)
    """Put a template's `engine_args` before its `serve_args` for cloud machines (planner)."""
    default_template: str = plain("DEFAULT_BATCH_MODEL_DEPLOYMENT_TEMPLATE", "")
    """Template of jobs that name none: `name` or `name@version` (console)."""
    store_uri: str = plain("STORE_URI", "")
    """The console's database, where AIBRIX_CONSOLE__DATABASE_URL is empty."""
    secrets_encryption_key: SecretStr = plain("SECRETS_ENCRYPTION_KEY", SecretStr(""))
    """Comma-separated keys of 64 hex characters: the first encrypts, all decrypt (console). Empty: no secrets."""
    allowed_origins: str = plain("ALLOWED_ORIGINS", "")
    """Comma-separated origins whose pages may call /api/v1 (gateway)."""
    runpod_api_key: SecretStr = plain("RUNPOD_API_KEY", SecretStr(""))
    """Key of the RunPod account (planner)."""
    runpod_ssh_public_key: str = plain("RUNPOD_SSH_PUBLIC_KEY", "")
    """Public key that may log into pods."""
    runpod_base_url: str = plain("RUNPOD_BASE_URL", "https://api.runpod.io/v2")
    """RunPod's API."""
    runpod_data_centers: str = plain("RUNPOD_DATA_CENTERS", "")
    """Comma-separated data centers, in order of preference. Empty: any."""
    runpod_image: str = plain("RUNPOD_IMAGE", "vllm/vllm-openai:latest")
    """Image of pods."""
    runpod_cloud_type: Literal["SECURE", "COMMUNITY"] = plain("RUNPOD_CLOUD_TYPE", "SECURE")
    """`SECURE` or `COMMUNITY`."""
    lambda_cloud_api_key: SecretStr = plain("LAMBDA_CLOUD_API_KEY", SecretStr(""))
    """Key of the Lambda Cloud account (planner)."""
    lambda_cloud_ssh_keys: str = plain("LAMBDA_CLOUD_SSH_KEYS", "")
    """Comma-separated names of SSH keys in the account; the first is used."""
    lambda_cloud_base_url: str = plain("LAMBDA_CLOUD_BASE_URL", "https://cloud.lambda.ai/api/v1")
    """Lambda Cloud's API."""
    lambda_cloud_region: str = plain("LAMBDA_CLOUD_REGION", "")
    """The only region to use. Empty: any."""

    batch_max_concurrency: int = Field(default=256, ge=1, le=256)
    """`aibrix.client.max_concurrency` where a batch does not say (metadata)."""
    batch_adaptive_concurrency: bool = True
    """`aibrix.client.adaptive_concurrency`, likewise."""
    batch_adaptive_max_factor: float = Field(default=8.0, ge=1)
    """`aibrix.client.adaptive_max_factor`, likewise."""
    batch_inference_max_retries: int = Field(default=5, ge=0)
    """`aibrix.client.retry_policy.max_retries`, likewise."""
    batch_retry_base_delay_seconds: float = Field(default=0.5, ge=0)
    """`aibrix.client.retry_policy.base_delay_seconds`, likewise."""
    batch_retry_max_delay_seconds: float = Field(default=5.0, ge=0)
    """`aibrix.client.retry_policy.max_delay_seconds`, likewise."""
    batch_no_endpoint_max_retries: int = Field(default=120, ge=0)
    """`aibrix.client.retry_policy.no_endpoint_max_retries`, likewise."""

    batch_ssh_key_file: str = ""
    """File with the private key, without a passphrase, that logs into machines of RunPod and LambdaCloud. Checked at the start;
    empty: no batch can run there (runner), and no machine of Lambda Cloud is asked whether CUDA starts (planner)."""

    gateway: Gateway = Field(default_factory=Gateway)
    metadata: Metadata = Field(default_factory=Metadata)
    planner: Planner = Field(default_factory=Planner)
    console: Console = Field(default_factory=Console)
    runner: Runner = Field(default_factory=Runner)
    external: External = Field(default_factory=External)
    local: Local = Field(default_factory=Local)
    ssh: Ssh = Field(default_factory=Ssh)
    kubernetes: Kubernetes = Field(default_factory=Kubernetes)
    worker: Worker = Field(default_factory=Worker)
    static: Static = Field(default_factory=Static)
    templates: Templates = Field(default_factory=Templates)
    profiles: Profiles = Field(default_factory=Profiles)
    objects: Objects = Field(default_factory=Objects)
    log: Log = Field(default_factory=Log)

    def database_url(self) -> str:
        return self.metadata.database_url or f"sqlite+aiosqlite:///{self.data_dir.absolute() / 'metadata.db'}"

    def planner_database_url(self) -> str:
        return self.planner.database_url or f"sqlite+aiosqlite:///{self.data_dir.absolute() / 'planner.db'}"

    def console_database_url(self) -> str:
        given = self.console.database_url or self.store_uri
        return given or f"sqlite+aiosqlite:///{self.data_dir.absolute() / 'console.db'}"

    def objects_url(self) -> str:
        return self.objects.url or str(self.data_dir.absolute() / "objects")

    def runner_dir(self) -> Path:
        return Path(self.runner.work_dir) if self.runner.work_dir else self.data_dir.absolute() / "runner"


def load() -> Settings:
    """Settings from the environment. A name that nobody reads is a ValueError: a typo must not pass for a default."""
    known = environment_names()
    for name in os.environ:  # noqa: TID251 - this file is the reader
        if name.startswith("AIBRIX_") and name not in known and not name.startswith(ENDPOINT_KEY_PREFIX):
            raise ValueError(f"unknown setting {name}: see docs/settings.md for the names that exist")
    return Settings()


def environment_names() -> dict[str, str]:
    """Every environment variable that `Settings` reads, with its description."""
    names: dict[str, str] = {}
    for name, field in Settings.model_fields.items():
        section = field.annotation
        if isinstance(section, type) and issubclass(section, Section):
            for inner, detail in section.model_fields.items():
                names[f"AIBRIX_{name}__{inner}".upper()] = detail.description or ""
        else:
            names[str(field.validation_alias or f"AIBRIX_{name}".upper())] = field.description or ""
    return names


def variable(name: str) -> str | None:
    """A variable that a document names (`api_key_env`). The caller has checked that the name may be read."""
    return os.environ.get(name)  # noqa: TID251


def variable_names(prefix: str) -> list[str]:
    """Variables whose names begin with `prefix`, in order."""
    return sorted(name for name in os.environ if name.startswith(prefix))  # noqa: TID251


def child_environment(**more: str) -> dict[str, str]:
    """What a child process gets: our environment without our own settings (they may hold credentials), and `more`."""
    ours = environment_names()
    given = os.environ.items()  # noqa: TID251
    return {name: value for name, value in given if not name.startswith("AIBRIX_") and name not in ours} | more
