"""The tables. Migrations in ../migrations make them; a test compares the two."""

from __future__ import annotations

import sqlalchemy as sa

schema = sa.MetaData()
