"""What a runner is doing now, for those who ask."""

from __future__ import annotations

from collections.abc import Sequence

from services.kit.release import release
from services.runner import metrics
from services.runner.domain import RunnerStatus
from services.runner.execution import Execution

VERSION = release()


class RunnerService:
    def __init__(self, runner_id: str, targets: Sequence[str], slot_count: int) -> None:
        self.runner_id = runner_id
        self.targets = list(targets)
        self.slot_count = slot_count
        self.draining = False
        self.shared_targets: frozenset[str] = frozenset()
        """Those that another live runner has, too, as metadata said last."""
        self.executions: set[Execution] = set()
        metrics.watch(
            lambda: sum(execution.status().in_flight for execution in self.executions),
            lambda: sum(execution.status().limit for execution in self.executions),
        )

    def status(self) -> RunnerStatus:
        return RunnerStatus(
            id=self.runner_id,
            version=VERSION,
            targets=self.targets,
            slot_count=self.slot_count,
            draining=self.draining,
            executions=[execution.status() for execution in self.executions],
        )
