"""A planner of the tests: what the contract says, over jobs that the test moves, on a real gRPC server."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from brix.planner.v1 import jobs_pb2, jobs_pb2_grpc
from brix.type.v1 import job_pb2
from services.console.service.jobs import gpu_count
from services.kit.errors import AlreadyExists, IllegalTransition, NotFound, Unavailable
from services.kit.server import serving

Job = job_pb2.Job
ENDED = {Job.COMPLETED, Job.FAILED, Job.EXPIRED, Job.CANCELLED, Job.RESOURCE_FAILED, Job.SUBMIT_FAILED}
SERVICE = jobs_pb2.DESCRIPTOR.services_by_name["JobService"].full_name


async def at_once(what: str) -> None:
    """No pause."""


class ScriptedPlanner(jobs_pb2_grpc.JobServiceServicer):
    def __init__(self) -> None:
        self.jobs: dict[str, Job] = {}
        self.keys: dict[tuple[str, str], tuple[str, str]] = {}
        self.enqueued: list[jobs_pb2.EnqueueJobRequest] = []
        self.listed: list[jobs_pb2.ListJobsRequest] = []
        self.usages: list[jobs_pb2.GetUsageRequest] = []
        self.watching = 0
        self.is_down = False
        self.changed = asyncio.Condition()
        self.before_each: Callable[[], None] = lambda: None
        """Called at each EnqueueJob, before and after it is done; may raise."""
        self.pause: Callable[[str], Awaitable[None]] = at_once
        """Awaited before and after EnqueueJob and ListJobs, with what it is: `before ListJobs`."""
        self._numbers = itertools.count(1)

    async def move(self, id: str, status: Any, **fields: Any) -> None:
        job = self.jobs[id]
        job.MergeFrom(Job(status=status, revision=job.revision + 1, **fields))
        async with self.changed:
            self.changed.notify_all()

    def find(self, request: Any) -> Job:
        job = self.jobs.get(request.id)
        if job is None or job.project_id != request.project_id:
            raise NotFound("No such job.", param="id")
        return job

    async def EnqueueJob(self, request: jobs_pb2.EnqueueJobRequest, context: Any) -> Job:
        self.enqueued.append(request)
        await self.pause("before EnqueueJob")
        self.before_each()
        key = (request.job.project_id, request.idempotency_key)
        id, said = self.keys.get(key, ("", request.request_hash))
        if said != request.request_hash:
            raise AlreadyExists("The idempotency key was used with another request.", param="Idempotency-Key")
        if not id:
            id = f"job_{next(self._numbers)}"
            job = Job()
            job.CopyFrom(request.job)
            job.MergeFrom(Job(id=id, status=Job.QUEUED, revision=1))
            self.jobs[id], self.keys[key] = job, (id, request.request_hash)
        self.before_each()
        await self.pause("after EnqueueJob")
        return self.jobs[id]

    async def GetJob(self, request: jobs_pb2.GetJobRequest, context: Any) -> Job:
        return self.find(request)

    async def ListJobs(self, request: jobs_pb2.ListJobsRequest, context: Any) -> jobs_pb2.ListJobsResponse:
        self.listed.append(request)
        await self.pause("before ListJobs")
        if self.is_down:
            raise Unavailable("a part of the planner does not answer")
        found = [job for job in reversed(self.jobs.values()) if job.project_id == request.project_id]
        if request.after:
            ids = [job.id for job in found]
            found = found[ids.index(request.after) + 1 :] if request.after in ids else []
        for field in ("model_id", "model_template_name", "model_template_version"):
            if request.HasField(field):
                found = [job for job in found if getattr(job, field) == getattr(request, field)]
        if request.statuses:
            found = [job for job in found if job.status in request.statuses]
        if request.live:
            found = [job for job in found if job.status not in ENDED]
        await self.pause("after ListJobs")
        size = request.page_size
        return jobs_pb2.ListJobsResponse(jobs=found[:size], has_more=len(found) > size)

    async def GetUsage(self, request: jobs_pb2.GetUsageRequest, context: Any) -> jobs_pb2.GetUsageResponse:
        """Here each job has compute of its own that was asked for when it was made, unless its test says which."""
        self.usages.append(request)
        if self.is_down:
            raise Unavailable("a part of the planner does not answer")
        mine = [job for job in self.jobs.values() if job.project_id == request.project_id]
        live = [job for job in mine if job.status not in ENDED]
        gpus = {job.provision_id or job.id: gpu_count(job) for job in live}
        since = request.since.ToNanoseconds()
        cost = sum(job.cost_usd for job in mine if job.create_time.ToNanoseconds() >= since)
        return jobs_pb2.GetUsageResponse(
            live_jobs=len(live),
            live_gpus=sum(gpus.values()) if request.gpus else 0,
            cost_usd=cost if request.HasField("since") else 0,
        )

    async def CancelJob(self, request: jobs_pb2.CancelJobRequest, context: Any) -> Job:
        job = self.find(request)
        if job.status in ENDED:
            raise IllegalTransition("Cannot cancel a job that has ended.")
        await self.move(job.id, Job.CANCELLING)
        return job

    async def WatchJob(self, request: jobs_pb2.WatchJobRequest, context: Any) -> AsyncIterator[Job]:
        job, seen = self.find(request), request.after_revision
        self.watching += 1
        try:
            while True:
                if job.revision > seen:
                    seen = job.revision
                    yield job
                if job.status in ENDED:
                    return
                async with self.changed:
                    await self.changed.wait_for(lambda seen=seen: job.revision > seen)
        finally:
            self.watching -= 1


@asynccontextmanager
async def serving_planner(planner: ScriptedPlanner) -> AsyncIterator[str]:
    register = partial(jobs_pb2_grpc.add_JobServiceServicer_to_server, planner)
    async with serving("127.0.0.1:0", [register], [SERVICE], grace=0) as address:
        yield address
