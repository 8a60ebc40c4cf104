"""Rounds of the planning policy: one planner at a time looks at everything, and starts what the policy says."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from datetime import datetime, timedelta

import structlog

from services.kit.settings import Settings
from services.kit.transactions import Transactions, Tx
from services.planner import metrics
from services.planner.policies.base import Candidate, Policy, Shared, Snapshot, Start
from services.planner.service.bells import Bells
from services.planner.service.watch import WatchService
from services.planner.store import plans
from services.planner.store.events import Line
from services.planner.store.jobs import Held
from services.planner.store.plans import Running, Waiting

# Seconds for a request of a template that no job has completed with.
USUAL_REQUEST_S = 0.05

log = structlog.get_logger(__name__)


class PlanningService:
    def __init__(
        self,
        transactions: Transactions,
        policy: Policy,
        bells: Bells,
        watch: WatchService,
        settings: Settings,
        sharable: Collection[str],
    ) -> None:
        """`sharable`: providers whose machines jobs may use one after another."""
        self.transactions = transactions
        self.policy = policy
        self.bells = bells
        self.watch = watch
        self.sharable = sharable
        self.max_provisions = settings.planner.max_provisions
        self.cold_start = timedelta(seconds=settings.planner.cold_start_s)

    async def plan(self) -> None:
        """One round."""
        with metrics.PLAN_SECONDS.time():
            waits = await self.transactions.look(plans.HAS_WAITING) is not None
            started = await self.transactions.write(self._plan) if waits else []
        if started:
            log.info("jobs planned", count=len(started), policy=self.policy.name)
            self.bells.to_act.ring()
            self.watch.changed(held.job.id for held in started)

    async def _plan(self, tx: Tx) -> list[Held]:
        await plans.lock(tx)
        snapshot = await self._snapshot(tx)
        starts = permitted(self.policy.plan(snapshot), snapshot)
        by_compute: dict[str | None, list[str]] = defaultdict(list)
        for start in starts:
            by_compute[start.provision_id].append(start.job_id)
        held: list[Held] = []
        for provision_id, ids in by_compute.items():
            line = Line("Planned", "" if provision_id is None else "It shares compute with another job.")
            held += await plans.start(tx, ids, provision_id, line)
        return held

    async def _snapshot(self, tx: Tx) -> Snapshot:
        shares = self.policy.shares
        waiting = await plans.list_waiting(tx, with_kin=shares)
        running = await plans.list_running(tx, self.sharable) if shares else []
        rates = await self._rates(tx, [*waiting, *(one.waiting for one in running)]) if shares else {}
        return Snapshot(
            now=tx.now,
            waiting=[candidate(job, rates) for job in waiting],
            compute=shared(running, rates, tx.now),
            provision_count=await plans.count_provisions(tx),
            max_provisions=self.max_provisions,
            cold_start=self.cold_start,
        )

    async def _rates(self, tx: Tx, jobs: Sequence[Waiting]) -> dict[tuple[str, str], float]:
        """Seconds per request, by project and template."""
        rates: dict[tuple[str, str], float] = {}
        for job in jobs:
            of = (job.project_id, job.model_template_name)
            if of not in rates:
                known = await plans.seconds_per_request(tx, *of)
                rates[of] = USUAL_REQUEST_S if known is None else known
        return rates


def run_time(job: Waiting, count: int, rates: dict[tuple[str, str], float]) -> timedelta:
    return timedelta(seconds=count * rates.get((job.project_id, job.model_template_name), USUAL_REQUEST_S))


def candidate(job: Waiting, rates: dict[tuple[str, str], float]) -> Candidate:
    return Candidate(
        id=job.id,
        priority=job.priority,
        create_time=job.create_time,
        expires_time=job.expires_time,
        kin=job.kin,
        run_time=run_time(job, job.total_count, rates),
    )


def shared(running: Sequence[Running], rates: dict[tuple[str, str], float], now: datetime) -> list[Shared]:
    """Compute with the time that the requests which are left on it will take."""
    groups: dict[str, list[Running]] = defaultdict(list)
    found = []
    for one in running:
        if one.provision_id is None or one.is_sought:
            found.append(Shared(provision_id=None, kin=one.waiting.kin, free_time=now, job_count=1))
        elif one.can_share:
            groups[one.provision_id].append(one)
    for id, jobs in groups.items():
        left = sum(
            (run_time(one.waiting, max(0, one.waiting.total_count - one.done_count), rates) for one in jobs),
            timedelta(),
        )
        found.append(Shared(provision_id=id, kin=jobs[0].waiting.kin, free_time=now + left, job_count=len(jobs)))
    return found


def permitted(starts: Sequence[Start], snapshot: Snapshot) -> list[Start]:
    """What of a policy's answer can be: each waiting job once, on compute that is there, within the places."""
    waiting = {job.id for job in snapshot.waiting}
    there = {shared.provision_id for shared in snapshot.compute if shared.provision_id is not None}
    places = snapshot.free_places
    kept = []
    for start in starts:
        on_its_own = start.provision_id is None
        if start.job_id not in waiting or (places <= 0 if on_its_own else start.provision_id not in there):
            log.warning("the policy wants what cannot be", job_id=start.job_id, provision_id=start.provision_id)
            continue
        waiting.discard(start.job_id)
        places -= on_its_own
        kept.append(start)
    return kept
