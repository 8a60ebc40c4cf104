"""What a runner knows about its work. Field names are those of the protos."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import auto

from services.kit.lines import LineSet
from services.kit.spec.client import ClientPolicy
from services.kit.states import NamedState


class Goal(NamedState):
    """What the holder of a lease should bring about."""

    RUN = auto()
    CANCEL = auto()
    EXPIRE = auto()


class End(NamedState):
    """How a batch ends: the terminal states."""

    COMPLETED = auto()
    CANCELLED = auto()
    EXPIRED = auto()
    FAILED = auto()


@dataclass(frozen=True, kw_only=True)
class Lease:
    """A batch, for a while."""

    batch_id: str
    token: int
    ttl_s: float
    goal: Goal
    deadline_s: float
    endpoint: str
    total_count: int
    input_key: str
    index_key: str
    committed: LineSet
    next_sequence: int
    runtime_json: str | None
    default_endpoints: tuple[str, ...]
    attempt: int
    client: ClientPolicy
    aibrix_json: str | None
    resolved_json: str | None
    model: str | None
    committed_bytes: int
    max_output_bytes: int | None


@dataclass(frozen=True, kw_only=True)
class LeaseStatus:
    ttl_ms: int
    goal: Goal
    deadline_ms: int


@dataclass(frozen=True, kw_only=True)
class Usage:
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0
    total_tokens: int = 0


@dataclass(frozen=True, kw_only=True)
class Segment:
    """The results of some lines, in at most one object of output lines and one of error lines."""

    token: int
    sequence: int
    output_key: str | None = None
    error_key: str | None = None
    completed_count: int = 0
    failed_count: int = 0
    output_bytes: int = 0
    error_bytes: int = 0


@dataclass(frozen=True, kw_only=True)
class ResultFile:
    object_key: str
    bytes: int
    line_count: int


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Why a batch fails. The code stands in the batch's errors and in the error lines of what was not run."""

    code: str
    message: str


@dataclass(frozen=True, kw_only=True)
class EndpointStatus:
    """The proto Endpoint."""

    url: str
    healthy: bool
    in_flight: int


@dataclass(frozen=True, kw_only=True)
class ExecutionStatus:
    """The proto Execution."""

    batch_id: str
    token: int
    target: str
    phase: str
    client: ClientPolicy
    in_flight: int = 0
    limit: int = 0
    done_count: int = 0
    committed_count: int = 0
    retry_count: int = 0
    rate: float = 0.0
    endpoints: list[EndpointStatus] = field(default_factory=list)
    template: str = ""
    profile: str = ""


@dataclass(frozen=True, kw_only=True)
class RunnerStatus:
    id: str
    version: str
    targets: list[str]
    slot_count: int
    draining: bool
    executions: list[ExecutionStatus]
