"""Pauses between attempts."""

from __future__ import annotations

import random

FIRST_S = 0.2
LONGEST_S = 10.0


class Backoff:
    """Full jitter between nothing and a delay that doubles: many clients that lost one server do not come back at once."""

    def __init__(self) -> None:
        self.failures = 0

    def pause(self, retry_after: float | None = None) -> float:
        """Seconds to wait after one more failure. What the server asks for is honoured, and spread a little."""
        longest = min(LONGEST_S, FIRST_S * 2 ** min(self.failures, 16))
        self.failures += 1
        if retry_after is not None:
            return retry_after + random.uniform(0, min(longest, 1.0))
        return random.uniform(0, longest)

    def reset(self) -> None:
        self.failures = 0
