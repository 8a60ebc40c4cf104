"""The tables of API keys, secrets and quotas."""

from __future__ import annotations

import sqlalchemy as sa

from services.console.store.schema import schema
from services.kit.sql import UtcTime

LIVE = sa.text("delete_time IS NULL")


def _id(name: str, *, primary_key: bool = False) -> sa.Column[str]:
    return sa.Column(name, sa.String(255), primary_key=primary_key, nullable=False)


api_keys = sa.Table(
    "api_keys",
    schema,
    _id("id", primary_key=True),
    _id("project_id"),
    _id("name"),
    sa.Column("prefix", sa.String(16), nullable=False),
    # SHA-256 in hex: keys are random, so a fast hash is right.
    sa.Column("key_hash", sa.String(64), nullable=False, unique=True),
    sa.Column("create_time", UtcTime, nullable=False),
    sa.Column("last_used_time", UtcTime),
    sa.Column("expires_time", UtcTime),
    # A revoked key stays as a row, so that a cursor that names it keeps its place.
    sa.Column("delete_time", UtcTime),
    sa.Column("role", sa.String(16), nullable=False, server_default="member"),
    sa.Column("created_by", sa.String(255), nullable=False, server_default=""),
    sa.Index("ix_api_keys_list", "project_id", "create_time", "id", sqlite_where=LIVE, postgresql_where=LIVE),
)

secrets = sa.Table(
    "secrets",
    schema,
    _id("id", primary_key=True),
    _id("project_id"),
    _id("name"),
    # Nonce and AES-256-GCM; NULL once the secret is deleted.
    sa.Column("ciphertext", sa.LargeBinary),
    # Which of the server's keys it was.
    sa.Column("key_version", sa.String(16), nullable=False),
    sa.Column("create_time", UtcTime, nullable=False),
    sa.Column("update_time", UtcTime, nullable=False),
    sa.Column("delete_time", UtcTime),
    sa.Index("ix_secrets_name", "project_id", "name", unique=True, sqlite_where=LIVE, postgresql_where=LIVE),
    sa.Index("ix_secrets_list", "project_id", "create_time", "id", sqlite_where=LIVE, postgresql_where=LIVE),
)

quotas = sa.Table(
    "quotas",
    schema,
    _id("project_id", primary_key=True),
    sa.Column("max_live_jobs", sa.Integer),
    sa.Column("max_gpus", sa.Integer),
    sa.Column("max_monthly_cost_usd", sa.Double),
    sa.Column("revision", sa.BigInteger, nullable=False),
)
