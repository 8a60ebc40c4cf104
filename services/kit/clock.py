"""Time for processes: wall clock for what people read, monotonic clock for what must not jump."""

from __future__ import annotations

import time
from datetime import UTC, datetime


def now() -> datetime:
    return datetime.now(UTC)


def monotonic() -> float:
    """Seconds that only grow; comparable within one process."""
    return time.monotonic()
