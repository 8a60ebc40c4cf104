"""Metadata's lease service in the runner's own words: the only file of the runner that builds its messages."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

from brix.metadata.v1 import leases_pb2 as pb
from brix.metadata.v1 import leases_pb2_grpc as pb_grpc
from brix.type.v1 import batch_pb2
from services.kit.convert import from_proto, to_proto
from services.kit.lines import LineSet
from services.kit.spec.client import ClientPolicy
from services.runner.domain import End, Failure, Goal, Lease, LeaseStatus, ResultFile, Segment, Usage

PROTOCOL_VERSION = 1
PAGE = 1000
# A call that waits for work may take this much longer than its wait.
MARGIN_S = 10.0
# Ending a batch moves its segments' objects out of the way.
FINISH_TIMEOUT_S = 60.0


class Leases:
    """Raises the errors of kit.errors: StaleLease, LinesOverlap, GoalChanged, Unavailable, ..."""

    def __init__(self, stub: pb_grpc.LeaseServiceAsyncStub, runner_id: str) -> None:
        self._stub = stub
        self._runner_id = runner_id

    async def acquire(self, targets: Sequence[str], wait_s: float, batch_id: str = "") -> Lease | None:
        """`batch_id`: this one only, also while it rests. Error: NotFound, if there is none of this id."""
        request = pb.AcquireLeaseRequest(
            runner_id=self._runner_id,
            targets=targets,
            wait_ms=int(wait_s * 1000),
            protocol_version=PROTOCOL_VERSION,
            batch_id=batch_id,
        )
        response = await self._stub.AcquireLease(request, timeout=wait_s + MARGIN_S)
        return _lease(response.lease) if response.HasField("lease") else None

    async def renew(self, batch_id: str, token: int, phase: str, in_flight: int, timeout_s: float) -> LeaseStatus:
        request = pb.RenewLeaseRequest(batch_id=batch_id, token=token, phase=phase, in_flight=in_flight)
        return from_proto(LeaseStatus, await self._stub.RenewLease(request, timeout=timeout_s))

    async def save_runtime(self, batch_id: str, token: int, runtime_json: str | None) -> None:
        request = pb.SaveRuntimeStateRequest(batch_id=batch_id, token=token, runtime_json=runtime_json)
        await self._stub.SaveRuntimeState(request)

    async def commit(self, batch_id: str, segment: Segment, lines: LineSet, usage: Usage) -> LeaseStatus:
        first = lines.min()
        request = pb.CommitSegmentRequest(
            batch_id=batch_id,
            segment=to_proto(pb.Segment, segment),
            lines=pb.LineSet(first=first, bits=lines.to_bytes(first)),
            usage=to_proto(batch_pb2.Usage, usage),
        )
        return from_proto(LeaseStatus, (await self._stub.CommitSegment(request)).status)

    async def segments(self, batch_id: str, token: int) -> AsyncIterator[Segment]:
        """All segments of the batch, of all its holders."""
        request = pb.ListSegmentsRequest(batch_id=batch_id, token=token, page_size=PAGE)
        while True:
            page = await self._stub.ListSegments(request)
            for message in page.segments:
                yield from_proto(Segment, message)
            if not page.has_more:
                return
            last = page.segments[-1]
            request.after_token, request.after_sequence = last.token, last.sequence

    async def begin_finalize(self, batch_id: str, token: int) -> LeaseStatus:
        request = pb.BeginFinalizeRequest(batch_id=batch_id, token=token)
        return from_proto(LeaseStatus, await self._stub.BeginFinalize(request))

    async def finish(
        self,
        batch_id: str,
        token: int,
        end: End,
        output: ResultFile | None,
        error: ResultFile | None,
        failure: Failure | None,
    ) -> None:
        request = pb.FinishBatchRequest(
            batch_id=batch_id,
            token=token,
            outcome=batch_pb2.Batch.State.Value(end.value),
            output=to_proto(pb.ResultFile, output) if output else None,
            error=to_proto(pb.ResultFile, error) if error else None,
            errors=[to_proto(batch_pb2.BatchError, failure)] if failure else [],
        )
        await self._stub.FinishBatch(request, timeout=FINISH_TIMEOUT_S)

    async def release(
        self, batch_id: str, token: int, reason: str, retry_after_s: float, *, handed_over: bool = False
    ) -> None:
        request = pb.ReleaseLeaseRequest(
            batch_id=batch_id,
            token=token,
            reason=reason,
            retry_after_ms=int(retry_after_s * 1000),
            handed_over=handed_over,
        )
        await self._stub.ReleaseLease(request)

    async def ended(self, batch_ids: Sequence[str]) -> set[str]:
        """Those of these batches that have ended."""
        found: set[str] = set()
        for start in range(0, len(batch_ids), PAGE):
            response = await self._stub.ListEnded(pb.ListEndedRequest(batch_ids=batch_ids[start : start + PAGE]))
            found.update(response.batch_ids)
        return found

    async def lose_compute(self, batch_id: str, token: int, reason: str) -> None:
        """Hand the batch back until it has other compute."""
        await self._stub.LoseCompute(pb.LoseComputeRequest(batch_id=batch_id, token=token, reason=reason))


def _lease(message: pb.Lease) -> Lease:
    batch = message.batch
    return Lease(
        batch_id=batch.id,
        token=message.token,
        ttl_s=message.ttl_ms / 1000,
        goal=Goal(pb.Goal.Name(message.goal)),
        deadline_s=message.deadline_ms / 1000,
        endpoint=batch.endpoint,
        total_count=batch.total_count,
        input_key=message.input_key,
        index_key=message.index_key,
        committed=LineSet.from_bytes(message.committed.bits, message.committed.first),
        next_sequence=message.next_sequence,
        runtime_json=message.runtime_json if message.HasField("runtime_json") else None,
        default_endpoints=tuple(message.default_endpoints),
        attempt=message.attempt,
        client=from_proto(ClientPolicy, message.client),
        aibrix_json=batch.aibrix_json if batch.HasField("aibrix_json") else None,
        resolved_json=message.resolved_json if message.HasField("resolved_json") else None,
        model=batch.model if batch.HasField("model") else None,
        committed_bytes=message.committed_bytes,
        max_output_bytes=message.max_output_bytes if message.HasField("max_output_bytes") else None,
    )
