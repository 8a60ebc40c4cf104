"""gRPC in, gRPC out. No logic: convert, call, convert."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC
from typing import Any

from grpc import aio

from brix.planner.v1 import jobs_pb2, jobs_pb2_grpc
from brix.type.v1 import job_pb2
from services.kit.convert import from_proto, to_proto
from services.kit.errors import InvalidArgument
from services.planner.service.jobs import JobService
from services.planner.service.new_jobs import NewJob
from services.planner.service.watch import WatchService
from services.planner.states import JobState
from services.planner.store.jobs import Filter

Context = aio.ServicerContext[Any, Any]


class JobServicer(jobs_pb2_grpc.JobServiceServicer):
    def __init__(self, service: JobService, watch: WatchService) -> None:
        self.service = service
        self.watch = watch

    async def EnqueueJob(self, request: jobs_pb2.EnqueueJobRequest, context: Context) -> job_pb2.Job:
        key = request.idempotency_key if request.HasField("idempotency_key") else None
        job = await self.service.enqueue_job(from_proto(NewJob, request.job), key, request.request_hash)
        return to_proto(job_pb2.Job, job)

    async def GetJob(self, request: jobs_pb2.GetJobRequest, context: Context) -> job_pb2.Job:
        return to_proto(job_pb2.Job, await self.service.get_job(request.project_id, request.id))

    async def ListJobs(self, request: jobs_pb2.ListJobsRequest, context: Context) -> jobs_pb2.ListJobsResponse:
        after = request.after if request.HasField("after") else None
        page, has_more = await self.service.list_jobs(wanted(request), request.page_size, after)
        return jobs_pb2.ListJobsResponse(jobs=[to_proto(job_pb2.Job, job) for job in page], has_more=has_more)

    async def CancelJob(self, request: jobs_pb2.CancelJobRequest, context: Context) -> job_pb2.Job:
        return to_proto(job_pb2.Job, await self.service.cancel_job(request.project_id, request.id))

    async def WatchJob(self, request: jobs_pb2.WatchJobRequest, context: Context) -> AsyncIterator[job_pb2.Job]:
        async for job in self.watch.watch(request.project_id, request.id, request.after_revision):
            yield to_proto(job_pb2.Job, job)

    async def GetUsage(self, request: jobs_pb2.GetUsageRequest, context: Context) -> jobs_pb2.GetUsageResponse:
        since = request.since.ToDatetime(UTC) if request.HasField("since") else None
        return to_proto(
            jobs_pb2.GetUsageResponse,
            await self.service.get_usage(request.project_id, with_gpus=request.gpus, since=since),
        )


def wanted(request: jobs_pb2.ListJobsRequest) -> Filter:
    return Filter(
        project_id=request.project_id,
        statuses=frozenset(known(number) for number in request.statuses),
        model_id=request.model_id if request.HasField("model_id") else None,
        model_template_name=request.model_template_name if request.HasField("model_template_name") else None,
        model_template_version=request.model_template_version if request.HasField("model_template_version") else None,
        live=request.live,
    )


def known(number: int) -> JobState:
    for name, value in job_pb2.Job.State.items():
        if value == number and name in JobState.__members__:
            return JobState[name]
    raise InvalidArgument("a status is not known here", param="statuses", code="invalid_value")
