"""What a stopped batch has finished so far, read by the protocol that runners use.

The caller becomes the holder of the lease for a moment: nobody else commits meanwhile, and the list of segments is whole.
It hands the lease back, so that a later run goes on.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from grpc import aio

from brix.metadata.v1 import (
    batches_pb2,
    batches_pb2_grpc,
    files_pb2,
    files_pb2_grpc,
    leases_pb2,
    leases_pb2_grpc,
)
from brix.type.v1 import batch_pb2
from services.kit.objects import ObjectStore
from services.kit.server import channel
from services.kit.spec.block import EXTERNAL

PROJECT = "default"
PAGE = 1000
State = batch_pb2.Batch.State
LEASABLE = (State.IN_PROGRESS, State.FINALIZING, State.CANCELLING)


@dataclass
class Collected:
    """The batch, and the objects that hold its finished lines."""

    batch: batch_pb2.Batch
    outputs: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    @property
    def is_completed(self) -> bool:
        return self.batch.state == State.COMPLETED


async def collect(metadata_addr: str, batch_id: str, wait_s: float) -> Collected:
    """Everything that is committed. `wait_s`: how long to wait for a holder that did not hand its lease back."""
    async with channel(metadata_addr) as to_metadata:
        stub: batches_pb2_grpc.BatchServiceAsyncStub = batches_pb2_grpc.BatchServiceStub(to_metadata)
        found = Collected(await stub.GetBatch(batches_pb2.GetBatchRequest(project_id=PROJECT, id=batch_id)))
        if found.batch.state in LEASABLE:
            await _read_segments(to_metadata, found, wait_s)
        else:
            await _read_files(to_metadata, found)
    return found


async def _read_segments(to_metadata: aio.Channel, found: Collected, wait_s: float) -> None:
    leases: leases_pb2_grpc.LeaseServiceAsyncStub = leases_pb2_grpc.LeaseServiceStub(to_metadata)
    request = leases_pb2.AcquireLeaseRequest(
        runner_id="run-export",
        targets=[EXTERNAL],
        wait_ms=round(wait_s * 1000),
        protocol_version=1,
        batch_id=found.batch.id,
    )
    answer = await leases.AcquireLease(request, timeout=wait_s + 5)
    if not answer.HasField("lease"):
        return
    batch_id, token = found.batch.id, answer.lease.token
    page = leases_pb2.ListSegmentsRequest(batch_id=batch_id, token=token, page_size=PAGE)
    while True:
        listed = await leases.ListSegments(page)
        for segment in listed.segments:
            found.outputs += [segment.output_key] if segment.HasField("output_key") else []
            found.errors += [segment.error_key] if segment.HasField("error_key") else []
        if not listed.has_more:
            break
        last = listed.segments[-1]
        page.after_token, page.after_sequence = last.token, last.sequence
    done = leases_pb2.ReleaseLeaseRequest(batch_id=batch_id, token=token, reason="exported what is done")
    await leases.ReleaseLease(done)


async def _read_files(to_metadata: aio.Channel, found: Collected) -> None:
    files: files_pb2_grpc.FileServiceAsyncStub = files_pb2_grpc.FileServiceStub(to_metadata)
    for file_id, keys in ((found.batch.output_file_id, found.outputs), (found.batch.error_file_id, found.errors)):
        if file_id:
            file = await files.GetFile(files_pb2.GetFileRequest(project_id=PROJECT, id=file_id))
            keys.append(file.object_key)


async def joined(store: ObjectStore, keys: Sequence[str]) -> AsyncIterator[bytes]:
    """The objects one after the other."""
    for key in keys:
        async for chunk in store.stream(key):
            yield chunk


async def write(chunks: AsyncIterator[bytes], target: Path, folder: Path) -> None:
    """Write `target` as a whole: whoever looks sees the old file or all of the new one."""
    draft = folder / f"{target.name}.part"
    with draft.open("wb") as out:
        async for chunk in chunks:
            out.write(chunk)
    draft.replace(target)
