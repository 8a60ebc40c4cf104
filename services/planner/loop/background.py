"""The loops of this role: those who act on jobs, the policy, leases, watchers, gauges, old keys."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any

from services.kit.settings import Settings
from services.planner.loop.rounds import every
from services.planner.loop.workers import workers
from services.planner.service.advance import AdvanceService
from services.planner.service.bells import Bell, Bells
from services.planner.service.jobs import JobService
from services.planner.service.planning import PlanningService
from services.planner.service.watch import WatchService

# Seconds between two looks at the database for what other replicas did.
LOOK_S = 1.0
# What a bell announces is looked for without one so rarely.
RARELY_S = 60.0
# What follows each other within this time is looked at together.
GAP_S = 0.02
GAUGES_S = 5.0
KEYS_S = 600.0
# A lease is renewed so often in its time.
RENEWALS = 4


def loops(
    advance: AdvanceService,
    planning: PlanningService,
    jobs: JobService,
    watch: WatchService,
    bells: Bells,
    compute_changed: Bell,
    settings: Settings,
) -> list[Coroutine[Any, Any, None]]:
    never = Bell().listen

    async def ring() -> None:
        bells.to_wake.ring()
        bells.to_plan.ring()

    planner = settings.planner
    return [
        workers(advance, bells, settings.planner_worker_count, min(LOOK_S, planner.poll_s)),
        every(RARELY_S, bells.to_plan.listen, planning.plan, GAP_S),
        every(RARELY_S, bells.to_wake.listen, advance.wake_waiting, GAP_S),
        every(RARELY_S, compute_changed.listen, ring, GAP_S),
        every(planner.lease_ttl_s / RENEWALS, never, advance.renew),
        every(min(LOOK_S, planner.poll_s), never, watch.look),
        every(GAUGES_S, never, advance.count),
        every(KEYS_S, never, jobs.forget_old_keys),
    ]
