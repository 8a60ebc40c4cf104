"""All instruments of this role."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

from services.metadata.domain import Batch

LIVE = Gauge("aibrix_batches", "Batches that are not at their end, by state.", ["state"])
WAITING = Gauge("aibrix_batches_waiting", "Batches that a runner could work on, and that none has leased.")
HELD = Gauge("aibrix_leases_held", "Batches that are leased now.")
CREATED = Counter("aibrix_batches_created_total", "Batches made.")
ENDED = Counter("aibrix_batches_ended_total", "Batches that reached their end, by state.", ["state"])
LEASED = Counter("aibrix_leases_total", "Leases given to runners.")
STALE = Counter("aibrix_leases_stale_total", "Calls refused because their token is not current.")
SEGMENTS = Counter("aibrix_segments_committed_total", "Segments committed.")
LINES = Counter("aibrix_lines_committed_total", "Lines committed, by outcome.", ["outcome"])
COMMIT_SECONDS = Histogram("aibrix_commit_seconds", "Time of one commit of a segment.")
VALIDATION_SECONDS = Histogram(
    "aibrix_validation_seconds", "Time to validate an input file.", buckets=(0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100)
)
RUNNERS = Gauge("aibrix_runners", "Runners that reported lately.")
REGISTRY_ENTRIES = Gauge("aibrix_registry_entries", "Templates and profiles that hold now.", ["kind"])
REGISTRY_PROBLEMS = Gauge("aibrix_registry_problems", "What is wrong in their source now.", ["kind"])


def ended(batch: Batch) -> None:
    ENDED.labels(batch.state.lower()).inc()
