"""API keys have roles, and templates say that they are being deleted.

Keys that are there become members: those of the operator's file can do all that these could, and make admins.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("api_keys", sa.Column("role", sa.String(length=16), server_default="member", nullable=False))
    op.add_column("api_keys", sa.Column("created_by", sa.String(length=255), server_default="", nullable=False))
    op.add_column("deployment_templates", sa.Column("deletion_id", sa.String(length=64), nullable=True))
