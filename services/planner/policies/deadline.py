"""Starts a job before its deadline would be missed, or when there is a place anyway; jobs of one template share compute.

A job that has time waits for compute of its kin rather than load the model once more. It takes compute of its own when it
would otherwise be late, or when nobody else has its template.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import ClassVar

from services.kit.settings import Settings
from services.planner.policies.base import Candidate, Shared, Snapshot, Start
from services.planner.policies.simple import rank

# Jobs that wait for one provision, besides the one that runs: if it is lost, all of them begin anew.
MOST_JOBS = 16
# How much sooner than reckoned necessary a job is started: the next look comes later, and estimates are estimates.
MARGIN = timedelta(minutes=1)


class Deadline:
    name: ClassVar[str] = "deadline"
    shares: ClassVar[bool] = True

    def __init__(self, settings: Settings) -> None:
        pass

    def plan(self, snapshot: Snapshot) -> Sequence[Start]:
        plan = _Plan(snapshot, {shared.provision_id: shared for shared in snapshot.compute if shared.provision_id})
        urgent = [job for job in snapshot.waiting if latest_start(job, snapshot) <= snapshot.now]
        for job in sorted(urgent, key=lambda job: (latest_start(job, snapshot), *rank(job))):
            if not plan.share(job):
                plan.start(job)
        for job in sorted(set(snapshot.waiting) - set(urgent), key=rank):
            if not plan.share(job) and not plan.will_have_kin(job):
                plan.start(job)
        return plan.starts


def latest_start(job: Candidate, snapshot: Snapshot) -> datetime:
    """When a job must begin to look for compute of its own, to be done at its deadline."""
    return job.expires_time - job.run_time - snapshot.cold_start - MARGIN


@dataclass
class _Plan:
    snapshot: Snapshot
    compute: dict[str, Shared]
    """By provision, with what this plan has put onto it."""
    starts: list[Start] = field(default_factory=list)
    started: set[str] = field(default_factory=set)
    """The kin of jobs that this plan starts on compute of their own."""

    def share(self, job: Candidate) -> bool:
        """Put it onto compute of its kin where it is done in time, or at least no later than on its own."""
        alone = self.snapshot.now + self.snapshot.cold_start + job.run_time
        good = [
            shared
            for shared in self.compute.values()
            if shared.kin == job.kin
            and shared.job_count < MOST_JOBS
            and self._end(shared, job) <= max(job.expires_time - MARGIN, alone)
        ]
        if not good:
            return False
        best = min(good, key=lambda shared: (shared.free_time, shared.provision_id or ""))
        assert best.provision_id is not None
        self.compute[best.provision_id] = replace(best, free_time=self._end(best, job), job_count=best.job_count + 1)
        self.starts.append(Start(job.id, best.provision_id))
        return True

    def start(self, job: Candidate) -> None:
        """Let it have compute of its own, if there is a place."""
        own = sum(start.provision_id is None for start in self.starts)
        if own < self.snapshot.free_places:
            self.starts.append(Start(job.id))
            self.started.add(job.kin)

    def will_have_kin(self, job: Candidate) -> bool:
        """Whether compute of its kin is on its way, onto which it can be put soon."""
        asked = any(shared.provision_id is None and shared.kin == job.kin for shared in self.snapshot.compute)
        return asked or job.kin in self.started

    def _end(self, shared: Shared, job: Candidate) -> datetime:
        return max(shared.free_time, self.snapshot.now) + job.run_time
