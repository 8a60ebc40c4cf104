"""What people make in the console. Field names are those of the protos; tests/console/test_domain.py compares them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

# How long a request under an idempotency key is remembered. The planner's own memory must not be shorter.
KEY_LIFE = timedelta(days=1)


@dataclass(frozen=True, kw_only=True)
class Model:
    id: str
    project_id: str
    name: str
    serving_name: str | None = None
    description: str = ""
    category: str = ""
    create_time: datetime
    update_time: datetime
    revision: int = 1


@dataclass(frozen=True, kw_only=True)
class NewModel:
    """The proto CreateModelRequest."""

    project_id: str
    id: str | None = None
    name: str
    serving_name: str | None = None
    description: str = ""
    category: str = ""


@dataclass(frozen=True, kw_only=True)
class ModelChange:
    """The proto UpdateModelRequest: None leaves a field as it is; an empty serving_name takes it away."""

    project_id: str
    id: str
    serving_name: str | None = None
    description: str | None = None
    category: str | None = None
    revision: int


@dataclass(frozen=True, kw_only=True)
class DeploymentTemplate:
    id: str
    model_id: str
    name: str
    version: str
    status: str
    spec_json: str
    create_time: datetime
    update_time: datetime
    revision: int = 1

    @property
    def label(self) -> str:
        return f"{self.name}@{self.version}"


@dataclass(frozen=True, kw_only=True)
class NewDeploymentTemplate:
    """The proto CreateDeploymentTemplateRequest."""

    project_id: str
    model_id: str
    name: str
    version: str | None = None
    status: str | None = None
    spec_json: str


@dataclass(frozen=True, kw_only=True)
class DeploymentTemplateChange:
    """The proto UpdateDeploymentTemplateRequest: None leaves a field as it is."""

    project_id: str
    model_id: str
    id: str
    status: str | None = None
    spec_json: str | None = None
    revision: int


@dataclass(frozen=True, kw_only=True)
class Template:
    """One line of the list that metadata reads."""

    name: str
    version: str
    status: str
    spec_json: str


@dataclass(frozen=True, kw_only=True)
class NewJob:
    """The proto CreateJobRequest."""

    project_id: str
    created_by: str = ""
    name: str = ""
    input_dataset: str
    endpoint: str
    completion_window: str | None = None
    model_id: str = ""
    model_template_name: str | None = None
    model_template_version: str | None = None
    client_json: str | None = None
    resource_request_json: str | None = None
    metadata_json: str | None = None
    priority: str | None = None
    budget_usd: float | None = None
    idempotency_key: str | None = None
    request_hash: str = ""
    call_id: str | None = None
