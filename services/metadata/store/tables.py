"""The tables. Migrations in ../migrations make them; a test compares the two."""

from __future__ import annotations

import sqlalchemy as sa

from services.kit.sql import UtcTime
from services.metadata.states import BatchState, UploadState

schema = sa.MetaData()


def _id(name: str, *, primary_key: bool = False, nullable: bool = False) -> sa.Column[str]:
    return sa.Column(name, sa.String(255), primary_key=primary_key, nullable=nullable)


def _state(states: type[BatchState] | type[UploadState]) -> sa.Column[str]:
    return sa.Column("state", sa.Enum(states, native_enum=False, length=16), nullable=False)


def _count(name: str) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger, nullable=False, server_default="0")


USAGE = ("input_tokens", "cached_tokens", "output_tokens", "reasoning_tokens", "total_tokens")

files = sa.Table(
    "files",
    schema,
    _id("id", primary_key=True),
    _id("project_id"),
    sa.Column("purpose", sa.String(64), nullable=False),
    sa.Column("filename", sa.Text, nullable=False),
    sa.Column("bytes", sa.BigInteger, nullable=False),
    sa.Column("create_time", UtcTime, nullable=False),
    sa.Column("expire_time", UtcTime),
    sa.Column("object_key", sa.Text, nullable=False, unique=True),
    # A deleted file stays as a row, so that a cursor that names it keeps its place.
    sa.Column("delete_time", UtcTime),
    sa.Column("object_deleted", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Index("ix_files_list", "project_id", "create_time", "id"),
    sa.Index("ix_files_purpose", "project_id", "purpose", "create_time", "id"),
    sa.Index("ix_files_expire", "expire_time"),
    sa.Index("ix_files_deleted", "object_deleted", "delete_time"),
)

uploads = sa.Table(
    "uploads",
    schema,
    _id("id", primary_key=True),
    _id("project_id"),
    _state(UploadState),
    sa.Column("purpose", sa.String(64), nullable=False),
    sa.Column("filename", sa.Text, nullable=False),
    sa.Column("mime_type", sa.Text, nullable=False),
    sa.Column("bytes", sa.BigInteger, nullable=False),
    sa.Column("create_time", UtcTime, nullable=False),
    sa.Column("expire_time", UtcTime, nullable=False),
    sa.Column("expires_after_s", sa.BigInteger),
    _id("file_id", nullable=True),
    sa.Index("ix_uploads_expire", "state", "expire_time"),
)

upload_parts = sa.Table(
    "upload_parts",
    schema,
    _id("id", primary_key=True),
    _id("upload_id"),
    sa.Column("object_key", sa.Text, nullable=False, unique=True),
    sa.Column("bytes", sa.BigInteger, nullable=False),
    sa.Column("create_time", UtcTime, nullable=False),
    sa.Index("ix_upload_parts_upload", "upload_id"),
)

batches = sa.Table(
    "batches",
    schema,
    _id("id", primary_key=True),
    _id("project_id"),
    _state(BatchState),
    sa.Column("endpoint", sa.String(64), nullable=False),
    sa.Column("input_file_id", sa.Text, nullable=False),
    sa.Column("completion_window", sa.String(64), nullable=False),
    sa.Column("metadata_json", sa.Text),
    sa.Column("aibrix_json", sa.Text),
    sa.Column("model", sa.Text),
    sa.Column("errors", sa.JSON(none_as_null=True)),
    _id("output_file_id", nullable=True),
    _id("error_file_id", nullable=True),
    sa.Column("create_time", UtcTime, nullable=False),
    sa.Column("expire_time", UtcTime, nullable=False),
    sa.Column("in_progress_time", UtcTime),
    sa.Column("finalizing_time", UtcTime),
    sa.Column("completed_time", UtcTime),
    sa.Column("failed_time", UtcTime),
    sa.Column("expired_time", UtcTime),
    sa.Column("cancelling_time", UtcTime),
    sa.Column("cancelled_time", UtcTime),
    _count("total_count"),
    _count("completed_count"),
    _count("failed_count"),
    *(_count(name) for name in USAGE),
    sa.Column("output_expires_after_s", sa.BigInteger),
    # What lease holders share; not part of the batch that a user sees.
    sa.Column("target", sa.String(128), nullable=False),
    _count("priority"),
    _count("lease_token"),
    sa.Column("lease_owner", sa.Text),
    sa.Column("lease_expire_time", UtcTime),
    sa.Column("not_before_time", UtcTime),
    _count("attempt"),
    sa.Column("phase", sa.String(64), nullable=False, server_default=""),
    _count("in_flight"),
    sa.Column("input_key", sa.Text),
    _count("input_bytes"),
    sa.Column("index_key", sa.Text),
    sa.Column("runtime_json", sa.Text),
    sa.Column("resolved_json", sa.Text),
    # The machine that its block names is gone: it rests until it gets another one.
    sa.Column("compute_lost", sa.Text),
    # The batch is terminal, and its segments, index and stale results may still be in the object store.
    sa.Column("cleanup_pending", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Index("ix_batches_list", "project_id", "create_time", "id"),
    sa.Index("ix_batches_state", "state", "expire_time"),
    sa.Index("ix_batches_leases", "project_id", "lease_expire_time"),
    sa.Index("ix_batches_input", "input_file_id", "state"),
    sa.Index("ix_batches_cleanup", "cleanup_pending"),
)

# The union of a batch's committed lines. Its own table: a batch row is read far more often than this.
batch_lines = sa.Table(
    "batch_lines",
    schema,
    _id("batch_id", primary_key=True),
    sa.Column("committed", sa.LargeBinary, nullable=False),
)

segments = sa.Table(
    "segments",
    schema,
    _id("batch_id", primary_key=True),
    sa.Column("token", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("sequence", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("output_key", sa.Text),
    sa.Column("error_key", sa.Text),
    _count("completed_count"),
    _count("failed_count"),
    _count("output_bytes"),
    _count("error_bytes"),
    *(_count(name) for name in USAGE),
    # SHA-256 of what was committed: the same call again is told from another one.
    sa.Column("digest", sa.String(64), nullable=False),
    # Holds every column that the counters are sums of.
    sa.Index("ix_segments_sums", "batch_id", "completed_count", "failed_count", *USAGE),
)

runners = sa.Table(
    "runners",
    schema,
    _id("id", primary_key=True),
    sa.Column("version", sa.Text, nullable=False),
    sa.Column("targets", sa.JSON, nullable=False),
    _count("slot_count"),
    _count("active_count"),
    sa.Column("models", sa.JSON, nullable=False),
    sa.Column("create_time", UtcTime, nullable=False),
    sa.Column("seen_time", UtcTime, nullable=False),
    # Said goodbye: no longer listed, but its targets stay known for a while, so a restart refuses no create.
    sa.Column("leaving", sa.Boolean, nullable=False),
)

idempotency_keys = sa.Table(
    "idempotency_keys",
    schema,
    _id("project_id", primary_key=True),
    _id("key", primary_key=True),
    sa.Column("kind", sa.String(16), primary_key=True),
    sa.Column("request_hash", sa.String(64), nullable=False),
    _id("resource_id"),
    sa.Column("create_time", UtcTime, nullable=False),
    sa.Index("ix_idempotency_keys_create", "create_time"),
)
