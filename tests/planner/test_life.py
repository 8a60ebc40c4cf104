"""Whatever happens to a job, it ends, says why, and leaves no machine behind. test_states.py has every state."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.kit.errors import IllegalTransition
from services.kit.settings import Planner, Settings
from services.planner.domain import Job
from services.planner.resource_manager.base import Gone
from services.planner.states import JobState
from tests.planner.resources import refusal
from tests.planner.simulation import BAD, Simulation, simulated

S = JobState


def labels(job: Job) -> list[str]:
    return [event.label for event in job.events]


@pytest.fixture
async def sim(make_settings: Callable[..., Settings]) -> AsyncIterator[Simulation]:
    async with simulated(make_settings(planner={"poll_s": 1.0})) as simulation:
        yield simulation


async def at(sim: Simulation, state: JobState, **fields: Any) -> str:
    """A job in this state; nobody acts on it now."""
    id = await sim.enqueue(**fields)
    if state is S.QUEUED:
        return id
    if state is S.PLANNED:
        await act_once(sim)
        await sim.one.planning.plan()
    elif state is S.RESOURCE_PREPARING:
        sim.cloud.boot_s = 1e9
        await sim.rounds(3, 2.0)
    elif state is S.SUBMITTING:
        sim.cloud.boot_s = 0.0
        await sim.rounds(1)
        sim.clock.advance(2.0)
        await sim.one.manager.work_due()
        sim.metadata.down = 1
        await act_once(sim)
    else:
        await sim.rounds(3, 2.0)
        (batch_id,) = sim.metadata.batches
        if state is not S.VALIDATING:
            sim.metadata.set(batch_id, state.value, has_run=True)
        await sim.rounds(2, 2.0)
    assert (await sim.get(id)).status is state
    return id


async def act_once(sim: Simulation) -> None:
    for held in await sim.one.advance.take(10):
        await sim.one.advance.act(held)


async def test_a_batch_that_nobody_ends_does_not_hold_the_compute(sim: Simulation) -> None:
    id = await at(sim, S.IN_PROGRESS, completion_window="1h")
    sim.clock.advance(3600)
    job = await sim.settle(id, hop=30.0)
    assert job.status is S.EXPIRED
    assert sim.metadata.cancels


async def test_a_cancelled_batch_that_nobody_ends_does_not_hold_the_compute(sim: Simulation) -> None:
    id = await at(sim, S.IN_PROGRESS)
    await sim.one.jobs.cancel_job("default", id)
    job = await sim.settle(id, hop=30.0)
    assert job.status is S.CANCELLED
    assert "without waiting" in job.events[-2].message


async def test_a_wrong_input_costs_nothing(sim: Simulation) -> None:
    sim.metadata.input_errors = [BAD]
    id = await sim.enqueue()
    await sim.rounds(3, 2.0)
    job = await sim.get(id)
    assert (job.status, job.error_code) == (S.FAILED, "invalid_json_line")
    assert job.error_message == "Line 2: This line is not parseable as valid JSON."
    assert sim.cloud.launched == []


async def test_a_batch_that_is_refused_frees_the_compute(sim: Simulation) -> None:
    sim.metadata.refuses = True
    id = await sim.enqueue()
    job = await sim.settle(id)
    assert (job.status, job.error_code, job.error_message) == (S.SUBMIT_FAILED, "invalid_value", "the block is wrong")
    assert labels(job)[-1] == "Compute released"


async def test_a_batch_that_fails_fails_the_job(sim: Simulation) -> None:
    id = await at(sim, S.IN_PROGRESS)
    (batch_id,) = sim.metadata.batches
    sim.metadata.set(batch_id, "FAILED", errors=[BAD])
    job = await sim.settle(id)
    assert (job.status, job.error_code) == (S.FAILED, "invalid_json_line")


async def test_a_batch_that_is_gone_fails_the_job(sim: Simulation) -> None:
    id = await at(sim, S.IN_PROGRESS)
    sim.metadata.batches.clear()
    job = await sim.settle(id)
    assert (job.status, job.error_code) == (S.FAILED, "batch_lost")


async def test_somebody_cancels_the_batch_itself(sim: Simulation) -> None:
    id = await at(sim, S.IN_PROGRESS)
    (batch_id,) = sim.metadata.batches
    sim.metadata.set(batch_id, "CANCELLED")
    job = await sim.settle(id)
    assert job.status is S.CANCELLED
    assert "The batch was cancelled" in labels(job)


async def test_a_batch_that_is_done_before_the_cancel_arrives_is_kept(sim: Simulation) -> None:
    id = await at(sim, S.IN_PROGRESS)
    (batch_id,) = sim.metadata.batches
    await sim.one.jobs.cancel_job("default", id)
    sim.metadata.set(batch_id, "COMPLETED", completed_count=10, output_file_id="file-out")
    job = await sim.settle(id)
    assert (job.status, job.output_dataset) == (S.COMPLETED, "file-out")


async def test_three_machines_are_the_most_that_a_job_uses_up(sim: Simulation) -> None:
    sim.cloud.boot_s = 1e9
    id = await sim.enqueue()
    for _ in range(60):
        await sim.round()
        for machine_id in sim.cloud.machines:
            sim.cloud.gone[machine_id] = Gone("Unhealthy", "the GPU does not answer")
        sim.clock.advance(10)
    job = await sim.settle(id)
    assert (job.status, job.error_code) == (S.RESOURCE_FAILED, "Unhealthy")
    assert len(sim.cloud.launched) == 3


async def test_no_capacity_is_waited_for(sim: Simulation) -> None:
    sim.cloud.fail("launch", *(refusal() for _ in range(4)))
    id = await sim.enqueue()
    await sim.rounds(30, 30.0)
    job = await sim.get(id)
    assert job.status is S.VALIDATING
    assert labels(job).count("No compute yet") == 4


async def test_no_capacity_until_the_deadline(sim: Simulation) -> None:
    sim.cloud.offers.clear()
    sim.cloud.fail("launch", *(refusal() for _ in range(500)))
    id = await sim.enqueue(completion_window="5h")
    job = await sim.settle(id)
    assert job.status in (S.EXPIRED, S.RESOURCE_FAILED)
    assert sim.cloud.launched == []


async def test_a_refusal_for_good_ends_the_job(sim: Simulation) -> None:
    sim.cloud.fail("launch", refusal("InvalidCredential", retryable=False))
    id = await sim.enqueue()
    job = await sim.settle(id)
    assert (job.status, job.error_code) == (S.RESOURCE_FAILED, "InvalidCredential")
    assert job.error_message


async def test_the_budget_stops_a_job_that_runs(sim: Simulation) -> None:
    id = await at(sim, S.IN_PROGRESS, budget_usd=1.8)  # half an hour at 3.60 US dollars
    sim.clock.advance(1700)
    await sim.rounds(2, 1.0)
    assert (await sim.get(id)).status is S.IN_PROGRESS
    sim.clock.advance(110)
    await sim.rounds(2, 2.0)
    (batch_id,) = sim.metadata.cancels
    sim.metadata.set(batch_id, "CANCELLED", output_file_id="file-out", completed_count=3)
    job = await sim.settle(id)
    assert (job.status, job.error_code, job.output_dataset) == (S.FAILED, "budget_exceeded", "file-out")
    assert "its budget is 1.80" in (job.error_message or "")
    assert job.cancel_requested_time is None
    assert 1.8 <= job.cost_usd < 1.9
    sim.clock.advance(3600)
    assert (await sim.get(id)).cost_usd == pytest.approx(job.cost_usd)


async def test_the_budget_stops_a_job_whose_machine_does_not_come_up(sim: Simulation) -> None:
    id = await at(sim, S.RESOURCE_PREPARING, budget_usd=0.1)
    sim.clock.advance(200)
    job = await sim.settle(id)
    assert (job.status, job.error_code) == (S.FAILED, "budget_exceeded")


async def test_an_outage_of_metadata_is_waited_for(sim: Simulation) -> None:
    sim.metadata.down = 6
    id = await sim.enqueue()
    await sim.rounds(12, 3.0)
    assert (await sim.get(id)).status is S.VALIDATING
    assert len(sim.metadata.created) == 1


OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("round"), st.none()),
        st.tuples(st.just("time"), st.sampled_from([1, 10, 31, 400, 3600])),
        st.tuples(st.just("cancel"), st.none()),
        st.tuples(st.just("batch"), st.sampled_from(["IN_PROGRESS", "FINALIZING", "COMPLETED", "FAILED", "EXPIRED"])),
        st.tuples(st.just("batch"), st.sampled_from(["CANCELLED", "CANCELLING"])),
        st.tuples(st.just("commit"), st.none()),
        st.tuples(st.just("lose"), st.none()),
        st.tuples(st.just("miss"), st.none()),
        st.tuples(st.just("no_capacity"), st.none()),
        st.tuples(st.just("down"), st.integers(1, 4)),
        st.tuples(st.just("kill"), st.integers(1, 25)),
    ),
    max_size=14,
)


class Events:
    """What may happen to a job, by name."""

    def __init__(self, sim: Simulation, id: str) -> None:
        self.sim = sim
        self.id = id

    async def round(self, _: None) -> None:
        await self.sim.round()

    async def time(self, seconds: int) -> None:
        self.sim.clock.advance(seconds)

    async def cancel(self, _: None) -> None:
        with suppress(IllegalTransition):
            await self.sim.start().jobs.cancel_job("default", self.id)

    async def batch(self, state: str) -> None:
        for batch_id in self.sim.metadata.live():
            self.sim.metadata.set(batch_id, state, has_run=True)

    async def commit(self, _: None) -> None:
        for batch_id in self.sim.metadata.live():
            self.sim.metadata.set(batch_id, self.sim.metadata.batches[batch_id].state, completed_count=3)

    async def lose(self, _: None) -> None:
        self.sim.cloud.machines.clear()

    async def miss(self, _: None) -> None:
        """Its runner cannot reach the machine, and the cloud calls it up."""
        for batch_id in self.sim.metadata.live():
            if self.sim.metadata.batches[batch_id].state == "IN_PROGRESS":
                self.sim.metadata.set(batch_id, "IN_PROGRESS", compute_lost="not reached")

    async def no_capacity(self, _: None) -> None:
        self.sim.cloud.fail("launch", refusal())

    async def down(self, calls: int) -> None:
        self.sim.metadata.down = calls

    async def kill(self, after: int) -> None:
        process = self.sim.one.process
        process.kill = process.calls + after


@settings(max_examples=60)
@given(operations=OPERATIONS)
async def test_every_job_ends_and_no_machine_is_left(operations: list[tuple[str, Any]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        planner = Planner(listen="127.0.0.1:0", poll_s=1.0)
        async with simulated(Settings(data_dir=Path(folder), planner=planner)) as sim:
            id = await sim.enqueue(completion_window="2h")
            seen: list[JobState] = []
            for what, value in operations:
                await getattr(Events(sim, id), what)(value)
                seen.append((await sim.get(id)).status)
            job = await sim.settle(id, hop=200.0)
            ended = [state for state in seen if state in (S.COMPLETED, S.FAILED, S.EXPIRED, S.CANCELLED)]
            assert set(ended) <= {job.status}
            assert [event.id for event in job.events] == list(range(1, len(job.events) + 1))
            assert job.events[-1].label in ("Compute released", "Expired", "Cancelled", "Input refused")
            assert len(sim.metadata.created) == len(set(sim.metadata.created))
            # Whatever it was made for, no batch of an ended job goes on without having been told to end.
            late = job.status is S.EXPIRED or any("without waiting" in event.message for event in job.events)
            assert late or all(batch_id in sim.metadata.cancels for batch_id in sim.metadata.live())
