"""A batch whose compute is gone says so, and rests until it has other."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("batches", sa.Column("compute_lost", sa.Text(), nullable=True))
