"""The errors a service may raise, and nothing else.

Domain code raises these; it never names a gRPC code or an HTTP status.
`kit.grpc_errors` maps them to gRPC, `gateway.errors` maps them to OpenAI.

`context` carries what a program may branch on: `param` (the field, dotted), `code` (OpenAI's code), `reason_detail`.
"""

from __future__ import annotations


class ServiceError(Exception):
    """Base of every error that may cross a service boundary."""

    reason = "INTERNAL"

    def __init__(self, message: str, **context: str) -> None:
        super().__init__(message)
        self.message = message
        self.context = context


class InvalidArgument(ServiceError):
    """The request is wrong, and will be wrong every time. `param` names the field, `code` says how."""

    reason = "INVALID_ARGUMENT"


class NotFound(ServiceError):
    """No such thing, or not the caller's."""

    reason = "NOT_FOUND"


class AlreadyExists(ServiceError):
    """The idempotency key was used with another request."""

    reason = "ALREADY_EXISTS"


class IllegalTransition(ServiceError):
    """The thing is not in a state that this call leaves."""

    reason = "ILLEGAL_TRANSITION"


class StaleLease(ServiceError):
    """The fencing token is no longer current: its holder changes nothing any more."""

    reason = "STALE_LEASE"


class GoalChanged(ServiceError):
    """A cancel or the deadline came first: ask for the goal again (RenewLease) and finish with that outcome."""

    reason = "GOAL_CHANGED"


class LinesOverlap(ServiceError):
    """A segment holds lines that are committed already."""

    reason = "LINES_OVERLAP"


class ProtocolMismatch(ServiceError):
    """The caller speaks a version of the protocol that this server does not."""

    reason = "PROTOCOL_MISMATCH"


class ResourceExhausted(ServiceError):
    """No space is left where the bytes must go. Nothing was acknowledged."""

    reason = "RESOURCE_EXHAUSTED"


class Conflict(ServiceError):
    """The thing is not as the caller took it to be: another revision, or something that uses it."""

    reason = "CONFLICT"


class QuotaExceeded(ServiceError):
    """The project has used up what it may use."""

    reason = "QUOTA_EXCEEDED"


class Unavailable(ServiceError):
    """A part that this call needs does not answer. Try again."""

    reason = "UNAVAILABLE"
