"""What the planner knows. Field names are those of the protos; tests/test_architecture.py compares them."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from services.planner.states import JobState, ProvisionState


@dataclass(frozen=True, kw_only=True)
class RequestCounts:
    total: int = 0
    completed: int = 0
    failed: int = 0


@dataclass(frozen=True, kw_only=True)
class Usage:
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0
    total_tokens: int = 0


@dataclass(frozen=True, kw_only=True)
class TimelineEntry:
    """The proto JobEvent."""

    id: int
    label: str
    status: str
    source: str
    time: datetime
    message: str = ""


@dataclass(frozen=True, kw_only=True)
class Machine:
    id: str = ""
    name: str = ""
    state: str = ""
    host: str = ""
    ssh_port: int = 0
    ssh_user: str = ""
    http_base_url: str = ""
    host_key: str = ""


@dataclass(frozen=True, kw_only=True)
class Provision:
    id: str
    idempotency_key: str
    project_id: str
    provider: str = ""
    status: ProvisionState
    region: str = ""
    instance_type: str = ""
    accelerator: str = ""
    gpus_per_replica: int = 0
    replicas: int = 1
    hourly_price_usd: float = 0.0
    cost_usd: float = 0.0
    error_code: str | None = None
    error_message: str | None = None
    retryable: bool = False
    machines: list[Machine] = field(default_factory=list)
    create_time: datetime
    running_time: datetime | None = None
    released_time: datetime | None = None
    revision: int = 0


@dataclass(frozen=True, kw_only=True)
class AcceleratorPreference:
    preferred_types: list[str] = field(default_factory=list)
    min_memory_gb: int = 0


@dataclass(frozen=True, kw_only=True)
class Group:
    replicas: int = 1
    gpus_per_replica: int = 0
    accelerator_preference: AcceleratorPreference = field(default_factory=AcceleratorPreference)


@dataclass(frozen=True, kw_only=True)
class ProvisionSpec:
    groups: list[Group] = field(default_factory=list)
    providers: list[str] = field(default_factory=list)
    regions: list[str] = field(default_factory=list)
    max_hourly_price_usd: float | None = None
    spot: bool = False
    labels: dict[str, str] = field(default_factory=dict)
    image: str = ""


@dataclass(frozen=True, kw_only=True)
class Offer:
    """Something that can be had."""

    provider: str
    region: str = ""
    instance_type: str
    accelerator: str = ""
    memory_gb: int = 0
    gpus: int = 0
    hourly_price_usd: float = 0.0
    available: bool = True


@dataclass(frozen=True, kw_only=True)
class Job:
    id: str
    project_id: str
    name: str = ""
    created_by: str = ""
    status: JobState
    input_dataset: str
    endpoint: str
    completion_window: str
    model_id: str = ""
    model: str = ""
    model_template_name: str = ""
    model_template_version: str = ""
    model_template_spec_json: str | None = None
    client_json: str | None = None
    resource_request_json: str | None = None
    metadata_json: str | None = None
    priority: int = 0
    budget_usd: float | None = None
    batch_id: str | None = None
    provision_id: str | None = None
    provision: Provision | None = None
    output_dataset: str | None = None
    error_dataset: str | None = None
    request_counts: RequestCounts = field(default_factory=RequestCounts)
    usage: Usage = field(default_factory=Usage)
    error_code: str | None = None
    error_message: str | None = None
    cost_usd: float = 0.0
    retry_of: str | None = None
    create_time: datetime
    expires_time: datetime
    queued_time: datetime | None = None
    planned_time: datetime | None = None
    resource_preparing_time: datetime | None = None
    submitting_time: datetime | None = None
    validating_time: datetime | None = None
    in_progress_time: datetime | None = None
    finalizing_time: datetime | None = None
    cancelling_time: datetime | None = None
    completed_time: datetime | None = None
    failed_time: datetime | None = None
    expired_time: datetime | None = None
    cancelled_time: datetime | None = None
    resource_failed_time: datetime | None = None
    submit_failed_time: datetime | None = None
    cancel_requested_time: datetime | None = None
    events: list[TimelineEntry] = field(default_factory=list)
    revision: int = 0
