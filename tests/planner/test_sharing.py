"""The policy `deadline`: jobs of a template run one after another on one machine, so that its model is loaded once."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable

import pytest

from services.kit.settings import Settings
from services.planner.domain import Job
from services.planner.states import JobState as S
from tests.planner.conftest import GPU, a_template
from tests.planner.simulation import Simulation, simulated


@pytest.fixture
async def sim(make_settings: Callable[..., Settings]) -> AsyncIterator[Simulation]:
    settings = make_settings(planning_policy="deadline", planner={"poll_s": 1.0, "cold_start_s": 600.0})
    async with simulated(settings) as simulation:
        yield simulation


async def all_of(sim: Simulation, ids: list[str]) -> list[Job]:
    return [await sim.get(id) for id in ids]


async def run_batches(sim: Simulation, ids: list[str]) -> list[list[str]]:
    """Complete every batch as it comes, until all jobs have; which batches there were at once, each time."""
    seen: list[list[str]] = []
    for _ in range(40):
        await sim.rounds(2, 2.0)
        if live := sim.metadata.live():
            seen.append(sorted(live))
            for batch_id in live:
                sim.metadata.set(batch_id, "COMPLETED", completed_count=10, has_run=True)
        if all(job.status is S.COMPLETED for job in await all_of(sim, ids)):
            return seen
    raise AssertionError([job.status for job in await all_of(sim, ids)])


async def test_jobs_of_one_template_share_a_machine(sim: Simulation) -> None:
    ids = [await sim.enqueue() for _ in range(3)]
    seen = await run_batches(sim, ids)
    assert [len(live) for live in seen] == [1, 1, 1]
    assert len(sim.cloud.launched) == 1
    jobs = await all_of(sim, ids)
    assert len({job.provision_id for job in jobs}) == 1
    assert len({job.batch_id for job in jobs}) == 3
    told = [event.message for job in jobs for event in job.events]
    assert told.count("It shares compute with another job.") == 2  # which of them comes first is open: they are alike
    for id in ids:
        assert (await sim.settle(id)).status is S.COMPLETED
    last = [(await sim.get(id)).events[-1].label for id in ids]
    assert sorted(last) == ["Compute released", "Compute stays with another job", "Compute stays with another job"]


async def test_what_shares_a_machine_pays_for_its_turn_only(sim: Simulation) -> None:
    ids = [await sim.enqueue() for _ in range(2)]
    await sim.rounds(4, 2.0)
    for _ in range(2):
        sim.clock.advance(1800)
        for batch_id in sim.metadata.live():
            sim.metadata.set(batch_id, "COMPLETED", completed_count=10, has_run=True)
        await sim.rounds(4, 2.0)
    jobs = [await sim.settle(id) for id in ids]
    assert [job.status for job in jobs] == [S.COMPLETED, S.COMPLETED]
    assert [job.cost_usd for job in jobs] == pytest.approx([1.8, 1.8], abs=0.1)  # half an hour each at 3.60 US dollars


@pytest.mark.parametrize(
    "other",
    [
        {"model_template_spec_json": json.dumps(a_template(**GPU, engine_args={"max_model_len": 4096}))},
        {"model": "another"},
        {"resource_request_json": '{"max_hourly_price_usd": 5}'},
    ],
    ids=["spec", "model", "request"],
)
async def test_what_is_not_the_same_has_a_machine_of_its_own(sim: Simulation, other: dict[str, str]) -> None:
    ids = [await sim.enqueue(), await sim.enqueue(**other)]
    await run_batches(sim, ids)
    assert len(sim.cloud.launched) == 2
    assert len({job.provision_id for job in await all_of(sim, ids)}) == 2


async def test_one_that_would_be_late_does_not_wait(sim: Simulation) -> None:
    sim.metadata.total = 100_000  # some 5,000 s, as long as nobody knows better
    first = await sim.enqueue()
    await sim.rounds(4, 2.0)
    urgent = await sim.enqueue(completion_window="100min")
    await sim.rounds(6, 2.0)
    jobs = await all_of(sim, [first, urgent])
    assert len(sim.cloud.launched) == 2
    assert len({job.provision_id for job in jobs}) == 2
    assert {job.status for job in jobs} == {S.VALIDATING}


async def test_a_shared_machine_that_is_lost_leaves_nobody_behind(sim: Simulation) -> None:
    ids = [await sim.enqueue() for _ in range(3)]
    await sim.rounds(4, 2.0)
    sim.cloud.machines.clear()
    await sim.rounds(4, 31.0)
    await run_batches(sim, ids)
    for id in ids:
        assert (await sim.settle(id)).status is S.COMPLETED
    assert not sim.cloud.machines
