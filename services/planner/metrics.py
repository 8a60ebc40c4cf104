"""All instruments of the queue of jobs."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

from services.planner.domain import Job

LIVE = Gauge("aibrix_jobs", "Jobs that are not at their end, by status.", ["status"])
QUEUED = Counter("aibrix_jobs_queued_total", "Jobs put into the queue.")
ENDED = Counter("aibrix_jobs_ended_total", "Jobs that reached their end, by status.", ["status"])
STEP_SECONDS = Histogram("aibrix_job_step_seconds", "Time of one look at a job, until it rests.")
PLAN_SECONDS = Histogram("aibrix_planning_seconds", "Time of one round of the planning policy.")


def ended(job: Job) -> None:
    ENDED.labels(job.status.lower()).inc()
