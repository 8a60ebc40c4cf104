"""Jobs as they are shown: with what their compute is, what it costs, and what happened."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from services.kit.transactions import Tx
from services.planner.domain import Job
from services.planner.service.costs import cost_of
from services.planner.store import costs, events
from services.planner.store.jobs import Held


async def shown(tx: Tx, jobs: Sequence[Held]) -> list[Job]:
    """Without their events."""
    compute = await costs.list_compute(tx, jobs)
    guests = await costs.list_guests(tx, [provision.id for provision in compute])
    by_id = {provision.id: provision for provision in compute}
    return [
        replace(
            held.job,
            provision=by_id.get(held.job.provision_id or ""),
            cost_usd=cost_of(held, compute, guests),
        )
        for held in jobs
    ]


async def shown_whole(tx: Tx, held: Held) -> Job:
    """With its events."""
    (job,) = await shown(tx, [held])
    return replace(job, events=await events.list_all(tx, job.id))
