"""Whether and when a call is tried again."""

from __future__ import annotations

from services.kit.clock import monotonic
from services.kit.kubernetes.backoff import Backoff
from services.kit.kubernetes.errors import ApiError, Refused, Unavailable
from services.kit.kubernetes.requests import CONFLICT, Request

# How often a call is tried again because somebody else changed the same object.
CONFLICTS = 5
TOO_MANY = 429


class Policy:
    """Of one call, which may be several requests."""

    def __init__(self, timeout: float, *, retries: bool = True) -> None:
        self.retries = retries
        self.deadline = monotonic() + timeout
        self.backoff = Backoff()
        self.conflicts = 0
        self.has_renewed = False
        self.before: ApiError | None = None
        """How the attempt before this one failed."""

    def left(self) -> float:
        """Seconds until the deadline."""
        return max(0.0, self.deadline - monotonic())

    def pause_after(self, error: ApiError, request: Request) -> float:
        """Seconds to wait before `request` is sent again. Error: `error` itself, if it is to be the last word."""
        if isinstance(error, Refused) and error.status == 401 and not self.has_renewed:
            self.has_renewed = True
            return 0.0
        if not self.retries:
            raise error
        if isinstance(error, Unavailable):
            if not request.is_repeatable and error.status != TOO_MANY:
                raise error
            return self._pause(error, error.retry_after)
        if request.is_guarded:
            raise error
        return self.pause_after_conflict(error)

    def pause_after_conflict(self, error: ApiError) -> float:
        """Creations have them too: a quota is an object that several may change at once. Error: `error`."""
        self.conflicts += 1
        if error.status != 409 or error.reason != CONFLICT or self.conflicts > CONFLICTS:
            raise error
        return self._pause(error, None)

    def _pause(self, error: ApiError, retry_after: float | None) -> float:
        pause, before = self.backoff.pause(retry_after), self.before
        self.before = error
        if pause < self.left():
            return pause
        # An attempt that the deadline cut short says less than the one before.
        raise before if before is not None and not self.left() else error
