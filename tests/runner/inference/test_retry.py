"""Which outcomes are tried again, and when."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.kit.spec.client import ClientPolicy
from services.runner.inference.outcome import Kind, Outcome
from services.runner.inference.retry import MAX_RETRY_AFTER_S, may_retry, parse_retry_after, retry_delay

NOW = datetime(2026, 1, 1, 12, 0, 0, tzinfo=UTC)


def http(status: int, retry_after_s: float | None = None) -> Outcome:
    return Outcome(Kind.HTTP_ERROR, status=status, retry_after_s=retry_after_s)


@pytest.mark.parametrize("status", [408, 409, 425, 429, 500, 501, 502, 503, 504, 529, 599])
def test_these_statuses_are_tried_again(status: int) -> None:
    assert may_retry(http(status))


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 410, 411, 413, 415, 422, 451])
def test_other_client_errors_are_not(status: int) -> None:
    assert not may_retry(http(status))


@pytest.mark.parametrize(
    ("kind", "again"),
    [
        (Kind.TIMEOUT, True),
        (Kind.REFUSED, True),
        (Kind.DISCONNECTED, True),
        (Kind.INVALID, True),
        (Kind.REDIRECT, False),
        (Kind.NO_ENDPOINT, False),
        (Kind.OK, False),
    ],
)
def test_what_came_of_it_decides(kind: Kind, again: bool) -> None:
    assert may_retry(Outcome(kind)) is again


@pytest.mark.parametrize(
    ("attempt", "random", "delay"),
    [(1, 0.0, 0.0), (1, 0.5, 0.25), (2, 0.5, 0.5), (3, 0.5, 1.0), (4, 0.5, 2.0), (5, 0.5, 2.5), (6, 0.5, None)],
)
def test_full_jitter_doubles_up_to_the_limit_and_ends(attempt: int, random: float, delay: float | None) -> None:
    assert retry_delay(attempt, http(500), ClientPolicy(), random) == delay


def test_retry_after_is_honoured_and_spread() -> None:
    policy = ClientPolicy()
    assert retry_delay(1, http(429, 7.0), policy, 0.0) == 7.0
    assert retry_delay(1, http(429, 7.0), policy, 0.5) == 7.25
    assert retry_delay(1, http(429, 0.0), policy, 0.5) == 0.25
    assert retry_delay(1, http(429, 86_400.0), policy, 0.0) == MAX_RETRY_AFTER_S


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        ("5", 5.0),
        ("0.5", 0.5),
        ("-3", 0.0),
        ("inf", None),
        ("nan", None),
        ("soon", None),
        ("", None),
        ("Thu, 01 Jan 2026 12:00:30 GMT", 30.0),
        ("Thu, 01 Jan 2026 11:00:00 GMT", 0.0),
        ("Thu, 01 Jan 2026 12:00:30 -0000", 30.0),
        ("Thu, 99 Jan 2026 12:00:30 GMT", None),
    ],
)
def test_the_header_is_seconds_or_a_date(value: str | None, seconds: float | None) -> None:
    assert parse_retry_after(value, NOW) == seconds


@given(st.text(max_size=60))
def test_no_header_breaks_it(value: str) -> None:
    seconds = parse_retry_after(value, NOW)
    assert seconds is None or seconds >= 0


@given(
    attempt=st.integers(1, 2000),
    retries=st.integers(0, 1000),
    base=st.floats(0, 3600),
    most=st.floats(0, 3600),
    random=st.floats(0, 1, exclude_max=True),
    asked=st.none() | st.floats(0, 1e9),
)
def test_a_delay_is_bounded(
    attempt: int, retries: int, base: float, most: float, random: float, asked: float | None
) -> None:
    policy = ClientPolicy(max_retries=retries, base_delay_seconds=base, max_delay_seconds=most)
    delay = retry_delay(attempt, http(503, asked), policy, random)
    if attempt > retries:
        assert delay is None
    else:
        assert delay is not None
        assert 0 <= delay <= max(most, 1.1 * MAX_RETRY_AFTER_S)
        assert asked is None or delay >= min(asked, MAX_RETRY_AFTER_S)
