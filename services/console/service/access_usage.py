"""What a project uses, counted from the planner's list of its jobs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

from brix.planner.v1.jobs_pb2 import ListJobsRequest
from brix.type.v1.job_pb2 import Job
from services.console.access import Live
from services.console.service.jobs import gpu_count
from services.console.service.planner import Planner
from services.kit import clock

PAGE = 100
# A month's jobs may be many: what they cost is not added up again for every new one.
COST_MEMORY = timedelta(seconds=30)
MOST_REMEMBERED = 1000


class PlannerUsage:
    def __init__(self, planner: Planner) -> None:
        self.planner = planner
        self._costs: dict[tuple[str, datetime], tuple[float, float]] = {}

    async def live(self, project_id: str) -> Live:
        """A job counts with the GPUs that it will take, also while it waits for them; jobs on one provision share its GPUs."""
        jobs = gpus = 0
        provisions: set[str] = set()
        async for job in self._list(project_id, live=True):
            jobs += 1
            if not job.provision_id or job.provision_id not in provisions:
                gpus += gpu_count(job)
            provisions.add(job.provision_id)
        return Live(jobs, gpus)

    async def cost_since(self, project_id: str, since: datetime) -> float:
        """At most COST_MEMORY old."""
        remembered = self._costs.get((project_id, since))
        if remembered is not None and clock.monotonic() < remembered[1]:
            return remembered[0]
        cost = 0.0
        async for job in self._list(project_id, live=False):
            if job.create_time.ToDatetime(UTC) < since:
                break
            cost += job.cost_usd
        if len(self._costs) >= MOST_REMEMBERED:
            self._costs.clear()
        self._costs[project_id, since] = (cost, clock.monotonic() + COST_MEMORY.total_seconds())
        return cost

    async def _list(self, project_id: str, *, live: bool) -> AsyncIterator[Job]:
        """Newest first."""
        after: str | None = None
        while True:
            page = await self.planner.list(
                ListJobsRequest(project_id=project_id, page_size=PAGE, after=after, live=live)
            )
            for job in page.jobs:
                yield job
            if not page.has_more:
                return
            after = page.jobs[-1].id
