"""gRPC in, gRPC out. No logic: convert, call, convert."""

from __future__ import annotations

from typing import Any

from google.protobuf import empty_pb2
from grpc import aio

from brix.metadata.v1 import (
    batches_pb2,
    batches_pb2_grpc,
    files_pb2,
    files_pb2_grpc,
    leases_pb2,
    leases_pb2_grpc,
    runners_pb2,
    runners_pb2_grpc,
    uploads_pb2,
    uploads_pb2_grpc,
)
from brix.type.v1 import batch_pb2, file_pb2
from services.kit.convert import from_proto, to_proto
from services.metadata.domain import Commit, Finish, NewBatch, NewFile, NewUpload, RunnerInfo
from services.metadata.service.batches import BatchService
from services.metadata.service.commits import CommitService
from services.metadata.service.files import FileService
from services.metadata.service.inspection import InspectionService
from services.metadata.service.leases import LeaseService
from services.metadata.service.runners import RunnerRegistryService
from services.metadata.service.uploads import UploadService

Context = aio.ServicerContext[Any, Any]


class FileServicer(files_pb2_grpc.FileServiceServicer):
    def __init__(self, service: FileService) -> None:
        self.service = service

    async def CreateFile(self, request: files_pb2.CreateFileRequest, context: Context) -> files_pb2.CreateFileResponse:
        file, replayed = await self.service.create_file(from_proto(NewFile, request))
        return files_pb2.CreateFileResponse(file=to_proto(file_pb2.File, file), replayed=replayed)

    async def GetFile(self, request: files_pb2.GetFileRequest, context: Context) -> file_pb2.File:
        return to_proto(file_pb2.File, await self.service.get_file(request.project_id, request.id))

    async def ListFiles(self, request: files_pb2.ListFilesRequest, context: Context) -> files_pb2.ListFilesResponse:
        files, has_more = await self.service.list_files(
            request.project_id,
            request.purpose if request.HasField("purpose") else None,
            request.page_size,
            request.after if request.HasField("after") else None,
            ascending=request.ascending,
        )
        return files_pb2.ListFilesResponse(files=[to_proto(file_pb2.File, file) for file in files], has_more=has_more)

    async def DeleteFile(self, request: files_pb2.DeleteFileRequest, context: Context) -> empty_pb2.Empty:
        await self.service.delete_file(request.project_id, request.id)
        return empty_pb2.Empty()


class UploadServicer(uploads_pb2_grpc.UploadServiceServicer):
    def __init__(self, service: UploadService) -> None:
        self.service = service

    async def CreateUpload(self, request: uploads_pb2.CreateUploadRequest, context: Context) -> file_pb2.Upload:
        return to_proto(file_pb2.Upload, await self.service.create_upload(from_proto(NewUpload, request)))

    async def GetUpload(self, request: uploads_pb2.GetUploadRequest, context: Context) -> file_pb2.Upload:
        return to_proto(file_pb2.Upload, await self.service.get_upload(request.project_id, request.id))

    async def AddPart(self, request: uploads_pb2.AddPartRequest, context: Context) -> file_pb2.UploadPart:
        part = await self.service.add_part(request.project_id, request.upload_id, request.object_key, request.bytes)
        return to_proto(file_pb2.UploadPart, part)

    async def ListParts(self, request: uploads_pb2.ListPartsRequest, context: Context) -> uploads_pb2.ListPartsResponse:
        upload, parts = await self.service.list_parts(request.project_id, request.upload_id, list(request.part_ids))
        return uploads_pb2.ListPartsResponse(
            upload=to_proto(file_pb2.Upload, upload), parts=[to_proto(file_pb2.UploadPart, part) for part in parts]
        )

    async def CompleteUpload(
        self, request: uploads_pb2.CompleteUploadRequest, context: Context
    ) -> uploads_pb2.CompleteUploadResponse:
        upload, file = await self.service.complete_upload(request.project_id, request.upload_id, request.object_key)
        return uploads_pb2.CompleteUploadResponse(
            upload=to_proto(file_pb2.Upload, upload), file=to_proto(file_pb2.File, file)
        )

    async def CancelUpload(self, request: uploads_pb2.CancelUploadRequest, context: Context) -> file_pb2.Upload:
        return to_proto(file_pb2.Upload, await self.service.cancel_upload(request.project_id, request.upload_id))


class BatchServicer(batches_pb2_grpc.BatchServiceServicer):
    def __init__(self, service: BatchService, inspection: InspectionService) -> None:
        self.service = service
        self.inspection = inspection

    async def ValidateBatch(
        self, request: batches_pb2.CreateBatchRequest, context: Context
    ) -> batches_pb2.ValidateBatchResponse:
        order = self.service.check(from_proto(NewBatch, request))
        await self.service.check_target(order)
        return to_proto(batches_pb2.ValidateBatchResponse, await self.inspection.validate(order))

    async def CreateBatch(self, request: batches_pb2.CreateBatchRequest, context: Context) -> batch_pb2.Batch:
        return to_proto(batch_pb2.Batch, await self.service.create_batch(from_proto(NewBatch, request)))

    async def GetBatch(self, request: batches_pb2.GetBatchRequest, context: Context) -> batch_pb2.Batch:
        return to_proto(batch_pb2.Batch, await self.service.get_batch(request.project_id, request.id))

    async def FindBatch(self, request: batches_pb2.FindBatchRequest, context: Context) -> batch_pb2.Batch:
        batch = await self.service.find_batch(request.project_id, request.idempotency_key)
        return to_proto(batch_pb2.Batch, batch)

    async def ListBatches(
        self, request: batches_pb2.ListBatchesRequest, context: Context
    ) -> batches_pb2.ListBatchesResponse:
        after = request.after if request.HasField("after") else None
        page, has_more = await self.service.list_batches(request.project_id, request.page_size, after)
        return batches_pb2.ListBatchesResponse(
            batches=[to_proto(batch_pb2.Batch, batch) for batch in page], has_more=has_more
        )

    async def CancelBatch(self, request: batches_pb2.CancelBatchRequest, context: Context) -> batch_pb2.Batch:
        return to_proto(batch_pb2.Batch, await self.service.cancel_batch(request.project_id, request.id))

    async def ReplaceCompute(self, request: batches_pb2.ReplaceComputeRequest, context: Context) -> batch_pb2.Batch:
        batch = await self.service.replace_compute(request.project_id, request.id, request.aibrix_json)
        return to_proto(batch_pb2.Batch, batch)


class LeaseServicer(leases_pb2_grpc.LeaseServiceServicer):
    def __init__(self, leases: LeaseService, commits: CommitService) -> None:
        self.leases = leases
        self.commits = commits

    async def AcquireLease(
        self, request: leases_pb2.AcquireLeaseRequest, context: Context
    ) -> leases_pb2.AcquireLeaseResponse:
        lease = await self.leases.acquire_lease(
            request.runner_id,
            list(request.targets),
            wait_ms=request.wait_ms,
            protocol_version=request.protocol_version,
            batch_id=request.batch_id,
        )
        return leases_pb2.AcquireLeaseResponse(lease=to_proto(leases_pb2.Lease, lease) if lease else None)

    async def RenewLease(self, request: leases_pb2.RenewLeaseRequest, context: Context) -> leases_pb2.LeaseStatus:
        status = await self.leases.renew_lease(
            request.batch_id, request.token, phase=request.phase, in_flight=request.in_flight
        )
        return to_proto(leases_pb2.LeaseStatus, status)

    async def SaveRuntimeState(self, request: leases_pb2.SaveRuntimeStateRequest, context: Context) -> empty_pb2.Empty:
        state = request.runtime_json if request.HasField("runtime_json") else None
        await self.leases.save_runtime_state(request.batch_id, request.token, state)
        return empty_pb2.Empty()

    async def CommitSegment(
        self, request: leases_pb2.CommitSegmentRequest, context: Context
    ) -> leases_pb2.CommitSegmentResponse:
        committed = await self.commits.commit_segment(from_proto(Commit, request))
        return to_proto(leases_pb2.CommitSegmentResponse, committed)

    async def ListSegments(
        self, request: leases_pb2.ListSegmentsRequest, context: Context
    ) -> leases_pb2.ListSegmentsResponse:
        segments, has_more = await self.commits.list_segments(
            request.batch_id,
            request.token,
            page_size=request.page_size,
            after=(request.after_token, request.after_sequence),
        )
        return leases_pb2.ListSegmentsResponse(
            segments=[to_proto(leases_pb2.Segment, segment) for segment in segments], has_more=has_more
        )

    async def BeginFinalize(self, request: leases_pb2.BeginFinalizeRequest, context: Context) -> leases_pb2.LeaseStatus:
        status = await self.commits.begin_finalize(request.batch_id, request.token)
        return to_proto(leases_pb2.LeaseStatus, status)

    async def FinishBatch(self, request: leases_pb2.FinishBatchRequest, context: Context) -> batch_pb2.Batch:
        return to_proto(batch_pb2.Batch, await self.commits.finish_batch(from_proto(Finish, request)))

    async def LoseCompute(self, request: leases_pb2.LoseComputeRequest, context: Context) -> empty_pb2.Empty:
        await self.leases.lose_compute(request.batch_id, request.token, reason=request.reason)
        return empty_pb2.Empty()

    async def ReleaseLease(self, request: leases_pb2.ReleaseLeaseRequest, context: Context) -> empty_pb2.Empty:
        await self.leases.release_lease(
            request.batch_id,
            request.token,
            reason=request.reason,
            retry_after_ms=request.retry_after_ms,
            handed_over=request.handed_over,
        )
        return empty_pb2.Empty()

    async def ListEnded(self, request: leases_pb2.ListEndedRequest, context: Context) -> leases_pb2.ListEndedResponse:
        return leases_pb2.ListEndedResponse(batch_ids=await self.leases.list_ended(list(request.batch_ids)))


class RunnerRegistryServicer(runners_pb2_grpc.RunnerRegistryServiceServicer):
    def __init__(self, service: RunnerRegistryService) -> None:
        self.service = service

    async def ReportRunner(
        self, request: runners_pb2.ReportRunnerRequest, context: Context
    ) -> runners_pb2.ReportRunnerResponse:
        runner = from_proto(RunnerInfo, request.runner)
        endpoints, shared = await self.service.report_runner(runner, leaving=request.leaving)
        return runners_pb2.ReportRunnerResponse(default_endpoints=endpoints, shared_targets=shared)

    async def ListRunners(
        self, request: runners_pb2.ListRunnersRequest, context: Context
    ) -> runners_pb2.ListRunnersResponse:
        found = await self.service.list_runners()
        return runners_pb2.ListRunnersResponse(runners=[to_proto(runners_pb2.RunnerInfo, info) for info in found])

    async def ListModels(
        self, request: runners_pb2.ListModelsRequest, context: Context
    ) -> runners_pb2.ListModelsResponse:
        found = await self.service.list_models()
        return runners_pb2.ListModelsResponse(models=[to_proto(runners_pb2.Model, model) for model in found])
