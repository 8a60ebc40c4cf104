"""The compute of a job that has ended is given back, until the provider confirms; unless another job uses it."""

from __future__ import annotations

from services.kit.transactions import Transactions, Tx
from services.planner.service.changes import Change, later
from services.planner.service.costs import cost_of
from services.planner.service.resources import ResourceManager
from services.planner.store import costs, plans
from services.planner.store.events import Line
from services.planner.store.jobs import Held

KEPT = Line("Compute stays with another job", source="resource_manager")


class Ending:
    def __init__(self, transactions: Transactions, manager: ResourceManager, poll_s: float) -> None:
        self.transactions = transactions
        self.manager = manager
        self.poll_s = poll_s

    async def give_back(self, held: Held) -> Change:
        async def work(tx: Tx) -> tuple[list[str], bool]:
            await plans.lock(tx)
            return await plans.list_to_release(tx, held)

        to_release, is_kept = await self.transactions.write(work)
        for id in to_release:
            await self.manager.release(id)
        if to_release:
            return later(held, self.poll_s)
        line = KEPT if is_kept else await self._released(held)
        return Change(lines=(line,) if line else (), rests=True)

    async def _released(self, held: Held) -> Line | None:
        """None: there was nothing to give back."""

        async def work(tx: Tx) -> Line | None:
            compute = await costs.list_compute(tx, [held])
            if not any(provision.machines for provision in compute):
                return None
            cost = cost_of(held, compute, await costs.list_guests(tx, [provision.id for provision in compute]))
            said = f"It has cost {cost:.2f} US dollars." if cost >= 0.005 else ""
            return Line("Compute released", said, "resource_manager")

        return await self.transactions.read(work)
