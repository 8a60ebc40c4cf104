"""`completion_window`: any positive d/h/min combination, such as `24h`, `90min`, `1d12h`."""

from __future__ import annotations

import re
from datetime import timedelta

from services.kit.errors import InvalidArgument

FORM = re.compile(r"(?:(\d{1,9})d)?(?:(\d{1,9})h)?(?:(\d{1,9})min)?", re.ASCII)
LONGEST = timedelta(days=365)
MINUTE = timedelta(minutes=1)


def parse_window(text: str) -> timedelta:
    """Error: InvalidArgument, param `completion_window`."""
    match = FORM.fullmatch(text)
    days, hours, minutes = (int(group or 0) for group in match.groups()) if match else (0, 0, 0)
    # As an integer: the largest numbers that fit the form are more than a timedelta holds.
    total = (days * 24 + hours) * 60 + minutes
    if not 0 < total <= LONGEST // MINUTE:
        raise InvalidArgument(
            f"Invalid value: '{text[:64]}'. Supported values of completion_window are positive combinations of days, "
            "hours and minutes up to 365d, such as '24h', '90min' and '1d12h'.",
            param="completion_window",
            code="invalid_value",
        )
    return total * MINUTE
