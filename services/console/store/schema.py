"""The one MetaData that all tables of the console are in."""

from __future__ import annotations

import sqlalchemy as sa

schema = sa.MetaData()
