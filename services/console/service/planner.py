"""What the console asks the planner, which owns jobs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from brix.planner.v1 import jobs_pb2, jobs_pb2_grpc
from brix.type.v1 import job_pb2
from services.kit.grpc_errors import raising


class Planner:
    """Errors of all calls: what the planner raises; Unavailable if it does not answer."""

    def __init__(self, stub: jobs_pb2_grpc.JobServiceAsyncStub) -> None:
        self.stub = stub

    async def find_live_job(
        self, project_id: str, model_id: str, template: tuple[str, str] | None = None
    ) -> job_pb2.Job | None:
        """A job of this model that has not ended; with `template`, one of this name and version."""
        name, version = template or (None, None)
        request = jobs_pb2.ListJobsRequest(
            project_id=project_id,
            page_size=1,
            model_id=model_id,
            model_template_name=name,
            model_template_version=version,
            live=True,
        )
        page = await self.stub.ListJobs(request)
        return page.jobs[0] if page.jobs else None

    async def enqueue(self, request: jobs_pb2.EnqueueJobRequest) -> job_pb2.Job:
        return await self.stub.EnqueueJob(request)

    async def get(self, project_id: str, id: str) -> job_pb2.Job:
        return await self.stub.GetJob(jobs_pb2.GetJobRequest(project_id=project_id, id=id))

    async def list(self, request: jobs_pb2.ListJobsRequest) -> jobs_pb2.ListJobsResponse:
        return await self.stub.ListJobs(request)

    async def cancel(self, project_id: str, id: str) -> job_pb2.Job:
        return await self.stub.CancelJob(jobs_pb2.CancelJobRequest(project_id=project_id, id=id))

    async def get_usage(self, request: jobs_pb2.GetUsageRequest) -> jobs_pb2.GetUsageResponse:
        return await self.stub.GetUsage(request)

    async def watch(self, project_id: str, id: str, after_revision: int) -> AsyncIterator[job_pb2.Job]:
        """The job now, and whenever it changes. The planner's call ends when nobody listens any more."""
        call: Any = self.stub.WatchJob(
            jobs_pb2.WatchJobRequest(project_id=project_id, id=id, after_revision=after_revision)
        )
        try:
            async for job in raising(call):
                yield job
        finally:
            call.cancel()
