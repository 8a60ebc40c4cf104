"""What the metadata service knows. Field names are those of the protos; tests/test_architecture.py compares them."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta

from services.kit.spec.client import ClientPolicy
from services.metadata.states import BatchState, Goal, UploadState

DAY = timedelta(days=1)
MILLISECOND = timedelta(milliseconds=1)
# How long result files and input files of purpose `batch` live if nobody says otherwise.
DEFAULT_FILE_LIFE = 30 * DAY
UPLOAD_LIFE = timedelta(hours=1)
# How long an idempotency key is remembered.
KEY_LIFE = DAY


@dataclass(frozen=True, kw_only=True)
class File:
    id: str
    project_id: str
    purpose: str
    filename: str
    bytes: int
    create_time: datetime
    expire_time: datetime | None = None
    object_key: str


@dataclass(frozen=True, kw_only=True)
class NewFile:
    """What CreateFile asks for."""

    project_id: str
    object_key: str
    filename: str
    purpose: str
    bytes: int
    expires_after_s: int | None = None
    idempotency_key: str | None = None
    request_hash: str = ""


@dataclass(frozen=True, kw_only=True)
class Upload:
    id: str
    project_id: str
    state: UploadState
    purpose: str
    filename: str
    mime_type: str
    bytes: int
    create_time: datetime
    expire_time: datetime
    expires_after_s: int | None = None
    file_id: str | None = None


@dataclass(frozen=True, kw_only=True)
class NewUpload:
    """What CreateUpload asks for."""

    project_id: str
    filename: str
    purpose: str
    mime_type: str
    bytes: int
    expires_after_s: int | None = None
    idempotency_key: str | None = None
    request_hash: str = ""


@dataclass(frozen=True, kw_only=True)
class UploadPart:
    id: str
    upload_id: str
    object_key: str
    bytes: int
    create_time: datetime


@dataclass(frozen=True, kw_only=True)
class Usage:
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0
    total_tokens: int = 0


@dataclass(frozen=True, kw_only=True)
class BatchError:
    code: str
    message: str
    param: str | None = None
    line: int | None = None


@dataclass(frozen=True, kw_only=True)
class Batch:
    id: str
    project_id: str
    state: BatchState
    endpoint: str
    input_file_id: str
    completion_window: str
    metadata_json: str | None = None
    aibrix_json: str | None = None
    model: str | None = None
    errors: list[BatchError] = field(default_factory=list)
    output_file_id: str | None = None
    error_file_id: str | None = None
    create_time: datetime
    expire_time: datetime
    in_progress_time: datetime | None = None
    finalizing_time: datetime | None = None
    completed_time: datetime | None = None
    failed_time: datetime | None = None
    expired_time: datetime | None = None
    cancelling_time: datetime | None = None
    cancelled_time: datetime | None = None
    total_count: int = 0
    completed_count: int = 0
    failed_count: int = 0
    usage: Usage = field(default_factory=Usage)
    output_expires_after_s: int | None = None
    phase: str = ""
    """What its runner is doing."""
    compute_lost: str | None = None
    """Why its compute is gone, if it waits for other."""

    @property
    def committed_count(self) -> int:
        return self.completed_count + self.failed_count

    def goal(self, now: datetime) -> Goal:
        """A cancel wins over the deadline; a batch whose lines are all done is not expired any more."""
        if self.state is BatchState.CANCELLING:
            return Goal.CANCEL
        late = self.expire_time <= now and self.committed_count < self.total_count
        return Goal.EXPIRE if late else Goal.RUN


@dataclass(frozen=True, kw_only=True)
class NewBatch:
    """What CreateBatch asks for."""

    project_id: str
    input_file_id: str
    endpoint: str
    completion_window: str
    metadata_json: str | None = None
    aibrix_json: str | None = None
    output_expires_after_s: int | None = None
    idempotency_key: str | None = None
    request_hash: str = ""


@dataclass(frozen=True, kw_only=True)
class Validated:
    """The proto ValidateBatchResponse."""

    errors: list[BatchError] = field(default_factory=list)
    total_count: int = 0
    model: str | None = None


@dataclass(frozen=True, kw_only=True)
class Work:
    """A batch with what its lease holders share."""

    batch: Batch
    lease_owner: str | None
    lease_token: int
    attempt: int
    input_key: str | None
    input_bytes: int
    index_key: str | None
    runtime_json: str | None
    resolved_json: str | None
    """What the block's template and profile came to: services/kit/spec/resolved.py."""

    def held_with(self, token: int) -> bool:
        """Whether `token` is the current one. A lease whose time is over is still its holder's until somebody takes it."""
        return self.lease_owner is not None and self.lease_token == token


@dataclass(frozen=True, kw_only=True)
class Lines:
    """The proto LineSet."""

    first: int = 0
    bits: bytes = b""


@dataclass(frozen=True, kw_only=True)
class LeaseStatus:
    ttl_ms: int
    goal: Goal
    deadline_ms: int
    state: BatchState


@dataclass(frozen=True, kw_only=True)
class Lease:
    batch: Batch
    token: int
    ttl_ms: int
    goal: Goal
    input_key: str
    input_bytes: int
    index_key: str
    committed: Lines
    next_sequence: int
    runtime_json: str | None
    deadline_ms: int
    default_endpoints: list[str]
    attempt: int
    client: ClientPolicy
    resolved_json: str | None
    committed_bytes: int
    max_output_bytes: int | None


@dataclass(frozen=True, kw_only=True)
class Segment:
    token: int
    sequence: int
    output_key: str | None = None
    error_key: str | None = None
    completed_count: int = 0
    failed_count: int = 0
    output_bytes: int = 0
    error_bytes: int = 0


@dataclass(frozen=True, kw_only=True)
class Commit:
    """What CommitSegment asks for."""

    batch_id: str
    segment: Segment
    lines: Lines
    usage: Usage


@dataclass(frozen=True, kw_only=True)
class Committed:
    status: LeaseStatus
    committed_count: int


@dataclass(frozen=True, kw_only=True)
class ResultFile:
    object_key: str
    bytes: int
    line_count: int


@dataclass(frozen=True, kw_only=True)
class Finish:
    """What FinishBatch asks for."""

    batch_id: str
    token: int
    outcome: BatchState
    output: ResultFile | None = None
    error: ResultFile | None = None
    errors: list[BatchError] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class RunnerInfo:
    id: str
    version: str
    targets: list[str] = field(default_factory=list)
    slot_count: int
    active_count: int
    seen_time: datetime
    models: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Model:
    id: str
    create_time: datetime
    owned_by: str


def milliseconds(span: timedelta) -> int:
    return span // MILLISECOND


def lease_status(batch: Batch, now: datetime, ttl: timedelta) -> LeaseStatus:
    return LeaseStatus(
        ttl_ms=milliseconds(ttl),
        goal=batch.goal(now),
        deadline_ms=milliseconds(batch.expire_time - now),
        state=batch.state,
    )
