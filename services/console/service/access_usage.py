"""What a project uses, as the planner counts it."""

from __future__ import annotations

from datetime import datetime, timedelta

from google.protobuf.timestamp_pb2 import Timestamp

from brix.planner.v1.jobs_pb2 import GetUsageRequest
from services.console.access import Live
from services.console.service.planner import Planner
from services.kit import clock

# A month's machines may be many: what they cost is not added up again for every new job.
COST_MEMORY = timedelta(seconds=30)
MOST_REMEMBERED = 1000


class PlannerUsage:
    def __init__(self, planner: Planner) -> None:
        self.planner = planner
        self._costs: dict[tuple[str, datetime], tuple[float, float]] = {}

    async def live(self, project_id: str, *, with_gpus: bool = False) -> Live:
        """A job counts with the GPUs that it will take, also while it waits for them; jobs on one provision share its GPUs."""
        found = await self.planner.get_usage(GetUsageRequest(project_id=project_id, gpus=with_gpus))
        return Live(found.live_jobs, found.live_gpus)

    async def cost_since(self, project_id: str, since: datetime) -> float:
        """At most COST_MEMORY old."""
        remembered = self._costs.get((project_id, since))
        if remembered is not None and clock.monotonic() < remembered[1]:
            return remembered[0]
        begin = Timestamp()
        begin.FromDatetime(since)
        found = await self.planner.get_usage(GetUsageRequest(project_id=project_id, since=begin))
        if len(self._costs) >= MOST_REMEMBERED:
            self._costs.clear()
        self._costs[project_id, since] = (found.cost_usd, clock.monotonic() + COST_MEMORY.total_seconds())
        return found.cost_usd
