"""What the console knows of access: keys, secrets, quotas. Field names are those of the protos; tests/console/test_access.py
compares them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, kw_only=True)
class ApiKey:
    id: str
    project_id: str
    name: str
    prefix: str
    key: str | None = None
    """The key itself; only when it was just made."""
    create_time: datetime
    last_used_time: datetime | None = None
    expires_time: datetime | None = None
    role: str
    created_by: str = ""


@dataclass(frozen=True, kw_only=True)
class NewApiKey:
    """The proto CreateApiKeyRequest."""

    project_id: str
    name: str
    expires_after_s: int | None = None
    role: str | None = None
    created_by: str = ""


@dataclass(frozen=True, kw_only=True)
class Principal:
    project_id: str
    key_id: str
    name: str
    role: str


@dataclass(frozen=True, kw_only=True)
class Secret:
    id: str
    project_id: str
    name: str
    create_time: datetime
    update_time: datetime


@dataclass(frozen=True, kw_only=True)
class Quota:
    project_id: str
    max_live_jobs: int | None = None
    max_gpus: int | None = None
    max_monthly_cost_usd: float | None = None
    live_jobs: int = 0
    revision: int = 0
    """0: nobody has set it yet, and nothing is limited."""


@dataclass(frozen=True, kw_only=True)
class QuotaChange:
    """The proto UpdateQuotaRequest: None leaves a limit as it is."""

    project_id: str
    max_live_jobs: int | None = None
    max_gpus: int | None = None
    max_monthly_cost_usd: float | None = None
    revision: int = 0


@dataclass(frozen=True)
class Live:
    """What a project's jobs that have not ended take up."""

    jobs: int = 0
    gpus: int = 0
