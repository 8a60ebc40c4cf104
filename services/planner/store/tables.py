"""The tables. Migrations in ../migrations make them; a test compares the two."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from services.kit.sql import UtcTime
from services.planner.states import JobState, ProvisionState

schema = sa.MetaData()

USAGE = ("input_tokens", "cached_tokens", "output_tokens", "reasoning_tokens", "total_tokens")
COUNTS = ("total_count", "completed_count", "failed_count")


def _id(name: str, *, primary_key: bool = False, nullable: bool = False) -> sa.Column[str]:
    return sa.Column(name, sa.String(255), primary_key=primary_key, nullable=nullable)


def _status(states: type[JobState] | type[ProvisionState]) -> sa.Column[str]:
    return sa.Column("status", sa.Enum(states, native_enum=False, length=32), nullable=False)


def _count(name: str) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger, nullable=False, server_default="0")


def _text(name: str) -> sa.Column[str]:
    return sa.Column(name, sa.Text, nullable=False, server_default="")


def _money(name: str) -> sa.Column[float]:
    return sa.Column(name, sa.Double, nullable=False, server_default="0")


def _lease() -> list[sa.Column[Any]]:
    """Who acts on the row now; a token grows by one with every holder. `due_time`: nobody needs to act before it."""
    return [
        _count("lease_token"),
        sa.Column("lease_owner", sa.Text),
        sa.Column("lease_expire_time", UtcTime),
        sa.Column("due_time", UtcTime),
    ]


jobs = sa.Table(
    "jobs",
    schema,
    _id("id", primary_key=True),
    _id("project_id"),
    _status(JobState),
    _text("name"),
    _text("created_by"),
    _text("input_dataset"),
    sa.Column("endpoint", sa.String(64), nullable=False),
    sa.Column("completion_window", sa.String(64), nullable=False),
    sa.Column("model_id", sa.String(255), nullable=False, server_default=""),
    _text("model"),
    sa.Column("model_template_name", sa.String(255), nullable=False, server_default=""),
    sa.Column("model_template_version", sa.String(255), nullable=False, server_default=""),
    sa.Column("model_template_spec_json", sa.Text),
    sa.Column("client_json", sa.Text),
    sa.Column("resource_request_json", sa.Text),
    sa.Column("metadata_json", sa.Text),
    _count("priority"),
    sa.Column("budget_usd", sa.Double),
    _id("batch_id", nullable=True),
    _id("provision_id", nullable=True),
    _id("output_dataset", nullable=True),
    _id("error_dataset", nullable=True),
    *(_count(name) for name in (*COUNTS, *USAGE)),
    sa.Column("error_code", sa.String(64)),
    sa.Column("error_message", sa.Text),
    _id("retry_of", nullable=True),
    # How often compute was asked for: each provision of the job has a key of its own.
    _count("attempt"),
    # Set once the input file was found to be right.
    sa.Column("validated", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("create_time", UtcTime, nullable=False),
    sa.Column("expires_time", UtcTime, nullable=False),
    *(sa.Column(f"{state.lower()}_time", UtcTime) for state in JobState),
    sa.Column("cancel_requested_time", UtcTime),
    # When the requests of the last try began to flow: the model was loaded by then.
    sa.Column("dispatch_time", UtcTime),
    # It was planned, there was no compute, and the policy does not see it before this time.
    sa.Column("rest_until_time", UtcTime),
    _count("revision"),
    *_lease(),
    sa.Index("ix_jobs_list", "project_id", "create_time", "id"),
    sa.Index("ix_jobs_list_status", "project_id", "status", "create_time", "id"),
    sa.Index("ix_jobs_list_model", "project_id", "model_id", "status", "create_time", "id"),
    sa.Index("ix_jobs_list_template", "project_id", "model_template_name", "status", "create_time", "id"),
    # Work: the planner looks only at live ones, so finished jobs cost nothing.
    sa.Index("ix_jobs_due", "status", "due_time"),
    sa.Index("ix_jobs_queue", "status", "priority", "expires_time"),
    sa.Index("ix_jobs_provision", "provision_id"),
)

job_events = sa.Table(
    "job_events",
    schema,
    _id("job_id", primary_key=True),
    sa.Column("id", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("label", sa.String(128), nullable=False),
    sa.Column("status", sa.String(32), nullable=False),
    sa.Column("source", sa.String(32), nullable=False),
    sa.Column("time", UtcTime, nullable=False),
    _text("message"),
)

job_keys = sa.Table(
    "job_keys",
    schema,
    _id("project_id", primary_key=True),
    _id("key", primary_key=True),
    sa.Column("request_hash", sa.String(64), nullable=False),
    _id("job_id"),
    sa.Column("create_time", UtcTime, nullable=False),
    sa.Index("ix_job_keys_create", "create_time"),
)

provisions = sa.Table(
    "provisions",
    schema,
    _id("id", primary_key=True),
    sa.Column("idempotency_key", sa.String(255), nullable=False, unique=True),
    _id("project_id"),
    _status(ProvisionState),
    # What was asked for, as JSON of domain.ProvisionSpec.
    sa.Column("spec_json", sa.Text, nullable=False),
    sa.Column("provider", sa.String(64), nullable=False, server_default=""),
    _text("region"),
    _text("instance_type"),
    _text("accelerator"),
    _count("gpus_per_replica"),
    sa.Column("replicas", sa.BigInteger, nullable=False, server_default="1"),
    _money("hourly_price_usd"),
    # Cost is worked out from running_time and the price when it is read; this is what earlier machines of it cost.
    _money("past_cost_usd"),
    sa.Column("billed_from_time", UtcTime),
    sa.Column("error_code", sa.String(64)),
    sa.Column("error_message", sa.Text),
    sa.Column("retryable", sa.Boolean, nullable=False, server_default=sa.false()),
    # Machines with their names, from before the provider is asked: JSON list of domain.Machine.
    sa.Column("machines", sa.JSON, nullable=False),
    # Offers that were tried and refused, so that the next try takes another: JSON.
    sa.Column("tried", sa.JSON, nullable=False),
    sa.Column("release_requested", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("create_time", UtcTime, nullable=False),
    *(sa.Column(f"{state.lower()}_time", UtcTime) for state in ProvisionState),
    _count("revision"),
    *_lease(),
    sa.Index("ix_provisions_list", "create_time", "id"),
    sa.Index("ix_provisions_due", "status", "due_time"),
    sa.Index("ix_provisions_released", "status", "released_time"),
)

# Who owns the machines: the first characters of every provision's id, so that deployments which share an account at a
# provider leave each other's alone. One row, made at the first start.
installation = sa.Table(
    "planner_installation",
    schema,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("id", sa.String(16), nullable=False),
)
