"""The compute of a job, as the steps see it: what it is now, what it has cost, and whether another try is allowed."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from services.kit.settings import Settings
from services.kit.transactions import Transactions, Tx
from services.planner.domain import Provision
from services.planner.service.changes import Change, failed, moved
from services.planner.service.costs import cost_of
from services.planner.states import JobEvent, ProvisionState
from services.planner.store import costs, events, plans, provisions
from services.planner.store.events import Line
from services.planner.store.jobs import Held

BUDGET_EXCEEDED = "budget_exceeded"
COMPUTE_LOST = "compute_lost"
# What the timeline says of each machine that another one is asked for.
LOST = "Compute was lost, asking for other"
# Failures before there was a machine: they cost nothing, and may pass with time.
FREE_CODES = ("NoCapacity", "QuotaExceeded", "ProviderUnavailable")
# Why there is no compute, as a provision and a job say it.
COMPUTE_CODES = frozenset(
    {*FREE_CODES, COMPUTE_LOST, "NoGpuType", "InvalidCredential", "InvalidRequest", "Unhealthy", "Lost", "Timeout"}
)
# Machines that a job may use up, and how often it may ask in all.
MOST_MACHINES = 3
MOST_ASKED = 1000
# Seconds until compute is asked for again where there was none, and none was given back: twice as long after every try.
FIRST_PAUSE_S = 15.0
LONGEST_PAUSE_S = 1800.0
# Seconds between two looks at the batch of a job that is back in the queue.
BATCH_LOOK_S = 15.0
GOING = (ProvisionState.PENDING, ProvisionState.PROVISIONING, ProvisionState.RUNNING)
# What belongs to one try, and is gone with it. A batch that has not ended stays: it goes on from what is committed.
FRESH = {
    "provision_id": None,
    "submitting_time": None,
    "validating_time": None,
    "in_progress_time": None,
    "finalizing_time": None,
    "dispatch_time": None,
}
# What belongs to a batch.
NO_BATCH = {"batch_id": None, "total_count": 0, "completed_count": 0, "failed_count": 0}


@dataclass(frozen=True)
class Situation:
    provision: Provision | None
    cost_usd: float
    is_first: bool
    """Whether it is the job's turn on its provision."""

    @property
    def runs(self) -> bool:
        return self.provision is not None and self.provision.status is ProvisionState.RUNNING

    @property
    def is_lost(self) -> bool:
        return self.provision is None or self.provision.status not in GOING


class Compute:
    def __init__(self, transactions: Transactions, settings: Settings) -> None:
        self.transactions = transactions
        self.budget_usd = settings.planner.job_budget_usd

    async def situation(self, held: Held, *, turn: bool = False) -> Situation:
        """`turn`: whether it is asked for whose turn it is. The cost is 0 for a job without a budget."""

        async def work(tx: Tx) -> Situation:
            id = held.job.provision_id
            if id is None:
                return Situation(None, 0.0, False)
            provision = await provisions.find(tx, id)
            cost = await self._cost(tx, held) if self._budget(held) else 0.0
            first = await plans.first_in_line(tx, id) if turn else None
            return Situation(provision, cost, first == held.job.id)

        return await self.transactions.read(work)

    async def _cost(self, tx: Tx, held: Held) -> float:
        compute = await costs.list_compute(tx, [held])
        return cost_of(held, compute, await costs.list_guests(tx, [provision.id for provision in compute]))

    def _budget(self, held: Held) -> float:
        return held.job.budget_usd or self.budget_usd

    def over_budget(self, held: Held, situation: Situation) -> Change | None:
        """The end of a job that has cost too much; what runs of it is cancelled first."""
        budget = self._budget(held)
        if not budget or situation.cost_usd < budget:
            return None
        message = (
            f"The compute of this job has cost {situation.cost_usd:.2f} US dollars, and its budget is {budget:.2f}: "
            "it was stopped."
        )
        return failed(JobEvent.CANCEL, BUDGET_EXCEEDED, message, label="Budget exceeded")

    async def after_failure(self, held: Held, situation: Situation, why: str = "") -> Change:
        """Another try, if one is allowed, or the end. `why`: what its runner says of the machine."""
        provision = situation.provision
        code, message = reason(provision)
        if why and (provision is None or not provision.error_code):
            message = why
        if provision is not None and code in FREE_CODES:
            if provision.retryable and held.attempt < MOST_ASKED:
                return requeued(held, "No compute yet", message, pause(held.attempt))
        elif provision is None or provision.retryable or not provision.error_code:
            if not await self._used_up(held):
                return replanned(held, LOST, message)
            message = await self._all_lost(held, message)
        return failed(JobEvent.FAIL_RESOURCE, code, message, label="No compute", source="resource_manager")

    async def _used_up(self, held: Held) -> bool:
        async def work(tx: Tx) -> int:
            return await plans.count_failures(tx, held, FREE_CODES)

        return await self.transactions.read(work) >= MOST_MACHINES or held.attempt >= MOST_ASKED

    async def _all_lost(self, held: Held, last: str) -> str:
        """Why each machine of the job was lost. What follows a reason's first line stands in the timeline."""

        async def work(tx: Tx) -> list[str]:
            return await events.list_messages(tx, held.job.id, LOST)

        whys = [why.partition("\n")[0] for why in [*await self.transactions.read(work), last]]
        shown = "; ".join(f"({number}) {why}" for number, why in enumerate(whys, start=1))
        return f"{len(whys)} machines were lost, and that is the most: {shown}"


def reason(provision: Provision | None) -> tuple[str, str]:
    """Why there is no compute, as a code and as words."""
    if provision is None or not provision.error_code:
        return COMPUTE_LOST, "The compute of this job was given back before the job had ended."
    return provision.error_code, provision.error_message or provision.error_code


def pause(attempt: int) -> float:
    """Seconds until the next try, after so many."""
    return min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** min(attempt - 1, 20))


def replanned(held: Held, label: str, message: str) -> Change:
    """A new provision, under the next key, at once."""
    line = Line(label, message, "resource_manager")
    return moved(JobEvent.REPLAN, line, **FRESH, attempt=held.attempt + 1)


def requeued(held: Held, label: str, message: str, seconds: float) -> Change:
    """Back to the queue: the policy sees it again after so many seconds, or when compute was given back."""
    until = min(held.now + timedelta(seconds=seconds), held.job.expires_time)
    move = (JobEvent.REQUEUE, Line(label, message, "resource_manager"))
    look = until if held.job.batch_id is None else min(until, held.now + timedelta(seconds=BATCH_LOOK_S))
    return Change(moves=(move,), values=FRESH | {"rest_until_time": until}, due=look)
