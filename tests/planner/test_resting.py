"""Jobs for which there is no compute: they hold no place, and go on in order when there is some. And what must end anyway."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from datetime import timedelta

import pytest

from services.kit.settings import Settings
from services.kit.transactions import Tx
from services.planner.states import JobState as S
from services.planner.store import plans
from tests.planner.resources import refusal
from tests.planner.simulation import Simulation, simulated


@pytest.fixture
async def sim(make_settings: Callable[..., Settings]) -> AsyncIterator[Simulation]:
    """One place."""
    async with simulated(make_settings(planner={"poll_s": 1.0, "max_provisions": 1})) as simulation:
        yield simulation


def stock(sim: Simulation, is_there: bool) -> None:
    """Whether the cloud has what is asked for."""
    sim.cloud.offers[:] = [replace(offer, available=is_there) for offer in sim.cloud.offers]


async def running(sim: Simulation, **fields: object) -> str:
    """A job whose batch runs."""
    id = await sim.enqueue(**fields)
    await sim.rounds(4, 2.0)
    batch_id = (await sim.get(id)).batch_id
    assert batch_id is not None
    sim.metadata.set(batch_id, "IN_PROGRESS", has_run=True)
    await sim.rounds(2, 2.0)
    assert (await sim.get(id)).status is S.IN_PROGRESS
    return id


async def resting(sim: Simulation, **fields: object) -> str:
    """A job that was refused compute, for half an hour by now."""
    stock(sim, False)
    id = await sim.enqueue(**fields)
    await sim.rounds(300, 10.0)
    job = await sim.get(id)
    assert job.status is S.QUEUED
    assert [event.label for event in job.events].count("No compute yet") >= 5
    return id


async def test_a_job_that_rests_holds_no_place(sim: Simulation) -> None:
    patient = await resting(sim)
    stock(sim, True)
    other = await sim.enqueue()
    await sim.rounds(4, 1.0)
    assert (await sim.get(other)).status is S.VALIDATING
    assert (await sim.get(patient)).status is S.QUEUED


async def test_what_is_given_back_goes_to_the_first_in_order(sim: Simulation) -> None:
    """Not to the one that happens to ask next: the pause of one that asked often is long."""
    first = await running(sim)
    important = await sim.enqueue(priority=5)
    stock(sim, False)
    held_back = (await sim.get(important)).status
    assert held_back is S.QUEUED
    await sim.one.jobs.cancel_job("default", first)
    sim.metadata.set((await sim.get(first)).batch_id or "", "CANCELLED")
    await sim.rounds(300, 10.0)
    assert (await sim.get(important)).status is S.QUEUED
    stock(sim, True)
    second = await running(sim)  # made now, while the important one rests
    late = await sim.enqueue()
    sim.metadata.set((await sim.get(second)).batch_id or "", "COMPLETED", completed_count=10)
    await sim.rounds(6, 1.0)
    assert (await sim.get(important)).status is S.VALIDATING
    assert (await sim.get(late)).status is S.QUEUED


async def test_it_looks_again_by_itself(sim: Simulation) -> None:
    id = await resting(sim)
    stock(sim, True)
    await sim.rounds(8, 600.0)
    assert (await sim.get(id)).status is S.VALIDATING


async def test_it_ends_at_its_deadline_and_when_it_is_cancelled(sim: Simulation) -> None:
    late = await resting(sim, completion_window="2h")
    cancelled = await sim.enqueue()
    await sim.rounds(30, 10.0)
    await sim.one.jobs.cancel_job("default", cancelled)
    assert (await sim.settle(cancelled)).status is S.CANCELLED
    assert (await sim.settle(late)).status is S.EXPIRED
    assert sim.cloud.launched == []


@pytest.mark.parametrize(
    ("why", "fields"), [("budget", {"budget_usd": 1.8}), ("deadline", {"completion_window": "1h"})]
)
async def test_a_machine_is_given_back_in_time_also_while_metadata_is_away(
    sim: Simulation, why: str, fields: dict[str, object]
) -> None:
    id = await running(sim, **fields)
    sim.metadata.down = 10**9
    await sim.rounds(60, 60.0)  # an hour at 3.60 US dollars
    await sim.rounds(30, 30.0)
    job = await sim.get(id)
    assert sim.cloud.machines == {}
    if why == "budget":
        assert (job.status, job.error_code) == (S.FAILED, "budget_exceeded")
        assert 1.8 <= job.cost_usd < 2.4
    else:
        assert (job.status, job.error_code) == (S.EXPIRED, "expired")


async def test_the_time_of_a_request_leaves_out_the_loading_of_the_model(sim: Simulation) -> None:
    id = await running(sim)
    batch_id = (await sim.get(id)).batch_id or ""
    sim.metadata.set(batch_id, "IN_PROGRESS", phase="launching: loading")
    await sim.rounds(60, 10.0)
    sim.metadata.set(batch_id, "IN_PROGRESS", phase="dispatching")
    await sim.rounds(2, 5.0)
    sim.metadata.set(batch_id, "COMPLETED", completed_count=10)
    job = await sim.settle(id)
    assert job.completed_time is not None
    assert job.in_progress_time is not None
    assert job.completed_time - job.in_progress_time > timedelta(minutes=10)

    async def known(tx: Tx) -> float | None:
        return await plans.seconds_per_request(tx, "default", job.model_template_name)

    seconds = await sim.one.advance.transactions.read(known)
    assert seconds is not None
    assert seconds <= 2.0


async def test_a_planner_that_stops_leaves_its_jobs_to_others_at_once(sim: Simulation) -> None:
    await sim.enqueue()
    (held,) = await sim.one.advance.take(1)
    other = sim.start()
    assert list(await other.advance.take(1)) == []
    await sim.one.advance.stop()
    (again,) = await other.advance.take(1)
    assert again.lease_token == held.lease_token + 1


async def test_a_refused_launch_is_tried_elsewhere_first(sim: Simulation) -> None:
    sim.cloud.fail("launch", refusal())
    id = await sim.enqueue()
    await sim.rounds(3, 1.0)
    assert (await sim.get(id)).status in (S.QUEUED, S.VALIDATING)
