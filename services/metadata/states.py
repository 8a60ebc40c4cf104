"""The lifecycles of a batch and of an upload, and what the holder of a lease should bring about.

A state is written by one statement, `UPDATE ... WHERE state IN sources RETURNING` (store/batches.py, store/uploads.py),
which also sets the time the state was entered.
"""

from __future__ import annotations

from enum import StrEnum, auto

from services.kit.states import Machine, NamedState


class BatchState(NamedState):
    VALIDATING = auto()
    """A validator of this role reads the input file. If its process dies, its lease ends and another starts anew."""
    IN_PROGRESS = auto()
    """A runner sends requests and commits segments. If it dies, its lease ends and another runs what is not committed."""
    FINALIZING = auto()
    """The lease holder puts the segments together. If it dies, another does it again under a new key."""
    CANCELLING = auto()
    """The lease holder lets requests end and writes `batch_cancelled` lines; likewise taken over. A batch that was never
    validated is confirmed by the sweeper of this role."""
    COMPLETED = auto()
    """Terminal. The janitor deletes segments, index and stale results; if it dies, the next round does."""
    FAILED = auto()
    """Terminal, as COMPLETED."""
    CANCELLED = auto()
    """Terminal, as COMPLETED."""
    EXPIRED = auto()
    """Terminal, as COMPLETED."""


class BatchEvent(StrEnum):
    START = "start"
    FINALIZE = "finalize"
    COMPLETE = "complete"
    FAIL = "fail"
    CANCEL = "cancel"
    CONFIRM_CANCEL = "confirm_cancel"
    EXPIRE = "expire"


S = BatchState
E = BatchEvent
TERMINAL = frozenset({S.COMPLETED, S.FAILED, S.CANCELLED, S.EXPIRED})
LIVE = frozenset(S) - TERMINAL

#         event              from                                              to
LIFECYCLE = Machine({
    E.START:          ({S.VALIDATING},                                  S.IN_PROGRESS),
    E.FINALIZE:       ({S.IN_PROGRESS},                                 S.FINALIZING),
    E.COMPLETE:       ({S.FINALIZING},                                  S.COMPLETED),
    E.FAIL:           ({S.VALIDATING, S.IN_PROGRESS, S.FINALIZING, S.CANCELLING}, S.FAILED),
    E.CANCEL:         ({S.VALIDATING, S.IN_PROGRESS, S.FINALIZING},     S.CANCELLING),
    E.CONFIRM_CANCEL: ({S.CANCELLING},                                  S.CANCELLED),
    E.EXPIRE:         ({S.VALIDATING, S.IN_PROGRESS, S.FINALIZING},     S.EXPIRED),
})  # fmt: skip

# The event that a runner's FinishBatch stands for.
OUTCOMES = {S.COMPLETED: E.COMPLETE, S.FAILED: E.FAIL, S.CANCELLED: E.CONFIRM_CANCEL, S.EXPIRED: E.EXPIRE}


class UploadState(NamedState):
    PENDING = auto()
    """Parts arrive. The user completes or cancels it; one that is forgotten is expired after an hour by whoever looks."""
    COMPLETED = auto()
    """Terminal. The janitor deletes the parts; if it dies, the next round does."""
    CANCELLED = auto()
    """Terminal, as COMPLETED."""
    EXPIRED = auto()
    """Terminal, as COMPLETED."""


class UploadEvent(StrEnum):
    COMPLETE = "complete"
    CANCEL = "cancel"
    EXPIRE = "expire"


UPLOAD_LIFECYCLE = Machine({
    UploadEvent.COMPLETE: ({UploadState.PENDING}, UploadState.COMPLETED),
    UploadEvent.CANCEL:   ({UploadState.PENDING}, UploadState.CANCELLED),
    UploadEvent.EXPIRE:   ({UploadState.PENDING}, UploadState.EXPIRED),
})  # fmt: skip


class Goal(NamedState):
    """What the holder of a lease should bring about. See leases.proto."""

    RUN = auto()
    CANCEL = auto()
    EXPIRE = auto()
