"""The first schema."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "job_events",
        sa.Column("job_id", sa.String(length=255), nullable=False),
        sa.Column("id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("label", sa.String(length=128), nullable=False),
        sa.Column("status", sa.String(length=32), nullable=False),
        sa.Column("source", sa.String(length=32), nullable=False),
        sa.Column("time", sa.BigInteger(), nullable=False),
        sa.Column("message", sa.Text(), server_default="", nullable=False),
        sa.PrimaryKeyConstraint("job_id", "id"),
    )
    op.create_table(
        "job_keys",
        sa.Column("project_id", sa.String(length=255), nullable=False),
        sa.Column("key", sa.String(length=255), nullable=False),
        sa.Column("request_hash", sa.String(length=64), nullable=False),
        sa.Column("job_id", sa.String(length=255), nullable=False),
        sa.Column("create_time", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("project_id", "key"),
    )
    op.create_index("ix_job_keys_create", "job_keys", ["create_time"], unique=False)
    op.create_table(
        "jobs",
        sa.Column("id", sa.String(length=255), nullable=False),
        sa.Column("project_id", sa.String(length=255), nullable=False),
        sa.Column("status", sa.String(length=32), nullable=False),
        sa.Column("name", sa.Text(), server_default="", nullable=False),
        sa.Column("created_by", sa.Text(), server_default="", nullable=False),
        sa.Column("input_dataset", sa.Text(), server_default="", nullable=False),
        sa.Column("endpoint", sa.String(length=64), nullable=False),
        sa.Column("completion_window", sa.String(length=64), nullable=False),
        sa.Column("model_id", sa.String(length=255), server_default="", nullable=False),
        sa.Column("model", sa.Text(), server_default="", nullable=False),
        sa.Column("model_template_name", sa.String(length=255), server_default="", nullable=False),
        sa.Column("model_template_version", sa.String(length=255), server_default="", nullable=False),
        sa.Column("model_template_spec_json", sa.Text(), nullable=True),
        sa.Column("client_json", sa.Text(), nullable=True),
        sa.Column("resource_request_json", sa.Text(), nullable=True),
        sa.Column("metadata_json", sa.Text(), nullable=True),
        sa.Column("priority", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("budget_usd", sa.Double(), nullable=True),
        sa.Column("batch_id", sa.String(length=255), nullable=True),
        sa.Column("provision_id", sa.String(length=255), nullable=True),
        sa.Column("output_dataset", sa.String(length=255), nullable=True),
        sa.Column("error_dataset", sa.String(length=255), nullable=True),
        sa.Column("total_count", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("completed_count", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("failed_count", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("input_tokens", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("cached_tokens", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("output_tokens", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("reasoning_tokens", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("total_tokens", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("error_code", sa.String(length=64), nullable=True),
        sa.Column("error_message", sa.Text(), nullable=True),
        sa.Column("retry_of", sa.String(length=255), nullable=True),
        sa.Column("attempt", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("validated", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("create_time", sa.BigInteger(), nullable=False),
        sa.Column("expires_time", sa.BigInteger(), nullable=False),
        sa.Column("queued_time", sa.BigInteger(), nullable=True),
        sa.Column("planned_time", sa.BigInteger(), nullable=True),
        sa.Column("resource_preparing_time", sa.BigInteger(), nullable=True),
        sa.Column("submitting_time", sa.BigInteger(), nullable=True),
        sa.Column("validating_time", sa.BigInteger(), nullable=True),
        sa.Column("in_progress_time", sa.BigInteger(), nullable=True),
        sa.Column("finalizing_time", sa.BigInteger(), nullable=True),
        sa.Column("cancelling_time", sa.BigInteger(), nullable=True),
        sa.Column("completed_time", sa.BigInteger(), nullable=True),
        sa.Column("failed_time", sa.BigInteger(), nullable=True),
        sa.Column("expired_time", sa.BigInteger(), nullable=True),
        sa.Column("cancelled_time", sa.BigInteger(), nullable=True),
        sa.Column("resource_failed_time", sa.BigInteger(), nullable=True),
        sa.Column("submit_failed_time", sa.BigInteger(), nullable=True),
        sa.Column("cancel_requested_time", sa.BigInteger(), nullable=True),
        sa.Column("dispatch_time", sa.BigInteger(), nullable=True),
        sa.Column("rest_until_time", sa.BigInteger(), nullable=True),
        sa.Column("revision", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("lease_token", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("lease_owner", sa.Text(), nullable=True),
        sa.Column("lease_expire_time", sa.BigInteger(), nullable=True),
        sa.Column("due_time", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_jobs_due", "jobs", ["status", "due_time"], unique=False)
    op.create_index("ix_jobs_list", "jobs", ["project_id", "create_time", "id"], unique=False)
    op.create_index(
        "ix_jobs_list_model", "jobs", ["project_id", "model_id", "status", "create_time", "id"], unique=False
    )
    op.create_index("ix_jobs_list_status", "jobs", ["project_id", "status", "create_time", "id"], unique=False)
    op.create_index(
        "ix_jobs_list_template",
        "jobs",
        ["project_id", "model_template_name", "status", "create_time", "id"],
        unique=False,
    )
    op.create_index("ix_jobs_provision", "jobs", ["provision_id"], unique=False)
    op.create_index("ix_jobs_queue", "jobs", ["status", "priority", "expires_time"], unique=False)
    op.create_table(
        "planner_installation",
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("id", sa.String(length=16), nullable=False),
        sa.PrimaryKeyConstraint("number"),
    )
    op.create_table(
        "provisions",
        sa.Column("id", sa.String(length=255), nullable=False),
        sa.Column("idempotency_key", sa.String(length=255), nullable=False),
        sa.Column("project_id", sa.String(length=255), nullable=False),
        sa.Column("status", sa.String(length=32), nullable=False),
        sa.Column("spec_json", sa.Text(), nullable=False),
        sa.Column("provider", sa.String(length=64), server_default="", nullable=False),
        sa.Column("region", sa.Text(), server_default="", nullable=False),
        sa.Column("instance_type", sa.Text(), server_default="", nullable=False),
        sa.Column("accelerator", sa.Text(), server_default="", nullable=False),
        sa.Column("gpus_per_replica", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("replicas", sa.BigInteger(), server_default="1", nullable=False),
        sa.Column("hourly_price_usd", sa.Double(), server_default="0", nullable=False),
        sa.Column("past_cost_usd", sa.Double(), server_default="0", nullable=False),
        sa.Column("billed_from_time", sa.BigInteger(), nullable=True),
        sa.Column("error_code", sa.String(length=64), nullable=True),
        sa.Column("error_message", sa.Text(), nullable=True),
        sa.Column("retryable", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("machines", sa.JSON(), nullable=False),
        sa.Column("tried", sa.JSON(), nullable=False),
        sa.Column("release_requested", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("create_time", sa.BigInteger(), nullable=False),
        sa.Column("pending_time", sa.BigInteger(), nullable=True),
        sa.Column("provisioning_time", sa.BigInteger(), nullable=True),
        sa.Column("running_time", sa.BigInteger(), nullable=True),
        sa.Column("failed_time", sa.BigInteger(), nullable=True),
        sa.Column("releasing_time", sa.BigInteger(), nullable=True),
        sa.Column("released_time", sa.BigInteger(), nullable=True),
        sa.Column("revision", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("lease_token", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("lease_owner", sa.Text(), nullable=True),
        sa.Column("lease_expire_time", sa.BigInteger(), nullable=True),
        sa.Column("due_time", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("idempotency_key"),
    )
    op.create_index("ix_provisions_due", "provisions", ["status", "due_time"], unique=False)
    op.create_index("ix_provisions_released", "provisions", ["status", "released_time"], unique=False)
    op.create_index("ix_provisions_list", "provisions", ["create_time", "id"], unique=False)
