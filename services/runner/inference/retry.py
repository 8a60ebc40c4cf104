"""Whether, and after how long, a request is sent again. Pure: no clock, no randomness of its own.

Full jitter between nothing and a delay that doubles. What the engine asks for with Retry-After is honoured, and spread
a little: lines that were refused together must not come back together.
"""

from __future__ import annotations

import math
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from services.kit.spec.client import ClientPolicy
from services.runner.inference.outcome import Kind, Outcome

RETRYABLE_STATUSES = frozenset({408, 409, 425, 429})
RETRYABLE_KINDS = frozenset({Kind.TIMEOUT, Kind.REFUSED, Kind.DISCONNECTED, Kind.INVALID})
# An engine that asks for an hour is asked again before: the deadline of the batch does not wait.
MAX_RETRY_AFTER_S = 300.0


def may_retry(outcome: Outcome) -> bool:
    """Whether the same request may end otherwise next time."""
    if outcome.kind is Kind.HTTP_ERROR:
        return outcome.status >= 500 or outcome.status in RETRYABLE_STATUSES
    return outcome.kind in RETRYABLE_KINDS


def retry_delay(attempt: int, outcome: Outcome, policy: ClientPolicy, random: float) -> float | None:
    """Seconds until attempt `attempt + 1`, or None: give up. `random` is in [0, 1)."""
    if attempt > policy.max_retries or not may_retry(outcome):
        return None
    delay = random * min(policy.max_delay_seconds, policy.base_delay_seconds * 2.0 ** min(attempt - 1, 60))
    if outcome.retry_after_s is None:
        return delay
    asked = min(outcome.retry_after_s, MAX_RETRY_AFTER_S)
    return max(delay, asked + random * min(policy.base_delay_seconds, 0.1 * asked))


def parse_retry_after(value: str | None, now: datetime) -> float | None:
    """The header as seconds from `now`: a number, or a date. None for what is neither."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        seconds = _seconds_until(value, now)
    return max(seconds, 0.0) if math.isfinite(seconds) else None


def _seconds_until(value: str, now: datetime) -> float:
    try:
        date = parsedate_to_datetime(value)
        return ((date if date.tzinfo else date.replace(tzinfo=UTC)) - now).total_seconds()
    except (ValueError, OverflowError, TypeError, IndexError):  # whatever a header makes of the parser
        return math.nan
