"""Metadata's batch service in the planner's own words: the only file of the planner that builds its messages."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from hashlib import sha256
from typing import Any

from brix.metadata.v1 import batches_pb2 as pb
from brix.type.v1 import batch_pb2
from services.kit.convert import from_proto
from services.kit.errors import NotFound
from services.planner.domain import Job, Usage

# Reading a large input file to its end.
VALIDATE_TIMEOUT_S = 600.0
CALL_TIMEOUT_S = 15.0
MINUTE_S = 60
ENDED = frozenset({"COMPLETED", "FAILED", "CANCELLED", "EXPIRED"})


@dataclass(frozen=True, kw_only=True)
class BatchError:
    code: str
    message: str
    param: str | None = None
    line: int | None = None

    def said(self) -> str:
        return self.message if self.line is None else f"Line {self.line}: {self.message}"


@dataclass(frozen=True, kw_only=True)
class Findings:
    """The proto ValidateBatchResponse."""

    errors: list[BatchError] = field(default_factory=list)
    total_count: int = 0
    model: str | None = None


@dataclass(frozen=True, kw_only=True)
class Batch:
    id: str
    state: str
    """A name of the proto's enum."""
    errors: list[BatchError] = field(default_factory=list)
    output_file_id: str | None = None
    error_file_id: str | None = None
    total_count: int = 0
    completed_count: int = 0
    failed_count: int = 0
    usage: Usage = field(default_factory=Usage)
    has_run: bool = False
    """Whether it ever was IN_PROGRESS."""
    phase: str = ""
    """What its runner is doing, such as `launching: loading`."""
    compute_lost: str | None = None
    """Why its machine is gone, if it waits for another one."""

    @property
    def has_ended(self) -> bool:
        return self.state in ENDED

    @property
    def has_results(self) -> bool:
        return self.completed_count + self.failed_count > 0

    @property
    def needs_compute(self) -> bool:
        """Whether lines may be left to run. To end a batch, or to put its results together, takes no machine."""
        is_done = self.has_results and self.completed_count + self.failed_count >= self.total_count
        return self.state in ("VALIDATING", "IN_PROGRESS") and not is_done


class Batches:
    """Raises the errors of kit.errors: InvalidArgument, NotFound, Unavailable, ..."""

    def __init__(self, stub: Any) -> None:
        self._stub = stub

    async def validate(self, job: Job, block: str, now: datetime) -> Findings:
        """What is wrong with the job's input, and with the block. Reads the whole file, and makes nothing."""
        return from_proto(
            Findings, await self._stub.ValidateBatch(_request(job, block, now), timeout=VALIDATE_TIMEOUT_S)
        )

    async def create(self, job: Job, block: str, key: str, now: datetime) -> Batch:
        """The batch of this key: a new one, or the one that was made before."""
        request = _request(job, block, now)
        # The window shrinks with every try, and it is still the same batch: its key is its identity.
        request.idempotency_key, request.request_hash = key, sha256(key.encode()).hexdigest()
        return _batch(await self._stub.CreateBatch(request, timeout=CALL_TIMEOUT_S))

    async def find(self, job: Job, key: str) -> Batch | None:
        """The batch of this key, if there is one."""
        request = pb.FindBatchRequest(project_id=job.project_id, idempotency_key=key)
        try:
            return _batch(await self._stub.FindBatch(request, timeout=CALL_TIMEOUT_S))
        except NotFound:
            return None

    async def replace_compute(self, project_id: str, id: str, block: str) -> Batch:
        """Let a batch go on elsewhere, from what is committed. Error: IllegalTransition, if it is ending or has ended."""
        request = pb.ReplaceComputeRequest(project_id=project_id, id=id, aibrix_json=block)
        return _batch(await self._stub.ReplaceCompute(request, timeout=CALL_TIMEOUT_S))

    async def get(self, project_id: str, id: str) -> Batch:
        request = pb.GetBatchRequest(project_id=project_id, id=id)
        return _batch(await self._stub.GetBatch(request, timeout=CALL_TIMEOUT_S))

    async def cancel(self, project_id: str, id: str) -> Batch:
        """Error: IllegalTransition, if it has ended otherwise."""
        request = pb.CancelBatchRequest(project_id=project_id, id=id)
        return _batch(await self._stub.CancelBatch(request, timeout=CALL_TIMEOUT_S))


def _request(job: Job, block: str, now: datetime) -> pb.CreateBatchRequest:
    return pb.CreateBatchRequest(
        project_id=job.project_id,
        input_file_id=job.input_dataset,
        endpoint=job.endpoint,
        completion_window=window_left(job, now),
        metadata_json=job.metadata_json,
        aibrix_json=block,
    )


def window_left(job: Job, now: datetime) -> str:
    """What is left until the job's deadline in whole minutes, at least one: the batch ends before the job has to."""
    return f"{max(1, int((job.expires_time - now).total_seconds()) // MINUTE_S)}min"


def _batch(message: batch_pb2.Batch) -> Batch:
    return Batch(
        id=message.id,
        state=batch_pb2.Batch.State.Name(message.state),
        errors=[from_proto(BatchError, error) for error in message.errors],
        output_file_id=message.output_file_id if message.HasField("output_file_id") else None,
        error_file_id=message.error_file_id if message.HasField("error_file_id") else None,
        total_count=message.total_count,
        completed_count=message.completed_count,
        failed_count=message.failed_count,
        usage=from_proto(Usage, message.usage),
        has_run=message.HasField("in_progress_time"),
        phase=message.phase,
        compute_lost=message.compute_lost if message.HasField("compute_lost") else None,
    )
