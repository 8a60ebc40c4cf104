"""What a call of the Kubernetes API may raise. Messages are for people: of one line, bounded, without secrets."""

from __future__ import annotations

LONGEST_MESSAGE = 1000


class ApiError(Exception):
    """Base of them all. `status` is the HTTP status, 0 if there was no answer; `reason` is the API's own word for it."""

    def __init__(self, message: str, *, status: int = 0, reason: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.reason = reason


class NoCredentials(ApiError):
    """There are credentials of neither a pod nor a kubeconfig."""


class AlreadyThere(ApiError):
    """An object of this name exists. It may be ours, from a call whose answer was lost: look whose it is."""


class Refused(ApiError):
    """The API understood and said no: the same call will be refused again until somebody changes something.

    Quotas and admission (403), invalid objects (400, 422), missing namespaces (404), credentials that are not accepted
    (401), a conflict that stays one (409). The message is the API's own where it gave one.
    """


class Expired(ApiError):
    """The resourceVersion is too old to go on from (410): list again. Only `Api.watch` raises it."""


class Unavailable(ApiError):
    """No answer, or none that can be used, until the deadline. What was asked for may have happened nevertheless."""

    def __init__(self, message: str, *, status: int = 0, reason: str = "", retry_after: float | None = None) -> None:
        super().__init__(message, status=status, reason=reason)
        self.retry_after = retry_after
        """Seconds that the server asked to wait."""
