"""Priority, then deadline: every job on compute of its own, as soon as there is a place."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import ClassVar

from services.kit.settings import Settings
from services.planner.policies.base import Candidate, Snapshot, Start


class Simple:
    name: ClassVar[str] = "simple"
    shares: ClassVar[bool] = False

    def __init__(self, settings: Settings) -> None:
        pass

    def plan(self, snapshot: Snapshot) -> Sequence[Start]:
        best = sorted(snapshot.waiting, key=rank)
        return [Start(job.id) for job in best[: snapshot.free_places]]


def rank(job: Candidate) -> tuple[int, datetime, datetime, str]:
    """Sorts those that go first to the front."""
    return (-job.priority, job.expires_time, job.create_time, job.id)
