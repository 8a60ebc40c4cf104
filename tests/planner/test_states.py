"""Cancel, deadline and failure at every state that services/planner/states.py has: the job says why it ended, and nothing of
its compute is left."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import sqlalchemy as sa

from services.kit.errors import IllegalTransition
from services.kit.settings import Settings
from services.planner.domain import Job
from services.planner.states import LIVE, TERMINAL, JobState, ProvisionState
from services.planner.store.tables import provisions
from tests.planner.resources import refusal
from tests.planner.simulation import BAD, Simulation, simulated
from tests.planner.test_life import at

S = JobState
Act = Callable[[Simulation], Awaitable[Any]]


@pytest.fixture
async def sim(make_settings: Callable[..., Settings]) -> AsyncIterator[Simulation]:
    async with simulated(make_settings(planner={"poll_s": 1.0})) as simulation:
        yield simulation


def end_batches(state: str, **fields: Any) -> Act:
    async def act(sim: Simulation) -> None:
        for batch_id in sim.metadata.live():
            sim.metadata.set(batch_id, state, **fields)

    return act


async def cannot_be_asked(sim: Simulation) -> None:
    """The provider that the job names was taken out of the settings."""
    sim.one.manager.providers = {}


async def machine_refused(sim: Simulation) -> None:
    sim.cloud.fail("probe", refusal("InvalidCredential", retryable=False))
    sim.cloud.machines.clear()
    sim.cloud.fail("launch", refusal("InvalidCredential", retryable=False))


async def input_is_wrong(sim: Simulation) -> None:
    sim.metadata.input_errors = [BAD]


async def batch_refused(sim: Simulation) -> None:
    sim.metadata.refuses = True


BATCH_FAILS = (end_batches("FAILED", errors=[BAD]), S.FAILED, "invalid_json_line")
# What goes wrong there, and how the job ends.
FAILURES: dict[JobState, tuple[Act, JobState, str]] = {
    S.QUEUED: (input_is_wrong, S.FAILED, "invalid_json_line"),
    S.PLANNED: (cannot_be_asked, S.RESOURCE_FAILED, "invalid_value"),
    S.RESOURCE_PREPARING: (machine_refused, S.RESOURCE_FAILED, "InvalidCredential"),
    S.SUBMITTING: (batch_refused, S.SUBMIT_FAILED, "invalid_value"),
    S.VALIDATING: BATCH_FAILS,
    S.IN_PROGRESS: BATCH_FAILS,
    S.FINALIZING: BATCH_FAILS,
    S.CANCELLING: BATCH_FAILS,
}
JOB = {"completion_window": "1h", "resource_request_json": '{"providers": ["fake"]}'}


def test_every_state_is_in_the_table() -> None:
    """A new state needs a row, and a way to it in `at`; every end but the good one and the deadline's is one of a failure."""
    assert FAILURES.keys() == LIVE
    ends = {end for _, end, _ in FAILURES.values()} | {S.COMPLETED, S.EXPIRED, S.CANCELLED}
    assert ends == TERMINAL


async def reached(sim: Simulation, state: JobState) -> str:
    if state is not S.CANCELLING:
        return await at(sim, state, **JOB)
    id = await at(sim, S.IN_PROGRESS, **JOB)
    await sim.one.jobs.cancel_job("default", id)
    await sim.rounds(2, 2.0)
    assert (await sim.get(id)).status is S.CANCELLING
    return id


async def ended(sim: Simulation, id: str) -> Job:
    """The job at its end: its batch and its compute as well, and it is known why."""
    job = await sim.settle(id, hop=5.0)
    assert job.status in TERMINAL
    assert getattr(job, f"{job.status.lower()}_time") is not None
    assert not sim.cloud.machines
    assert not [batch for batch in sim.metadata.live() if batch not in sim.metadata.cancels]
    async with sim.database.engine.connect() as connection:
        left = await connection.scalars(sa.select(provisions.c.status))
        assert set(left) <= {ProvisionState.RELEASED}
    said = [event.label for event in job.events]
    asked = sim.cloud.launched or any(label.startswith("Waiting for compute") for label in said)
    assert (said[-1] == "Compute released") == bool(asked)
    if job.status is not S.CANCELLED:
        assert job.error_code
        assert job.error_message
    return job


@pytest.mark.parametrize("state", sorted(LIVE))
async def test_a_failure(sim: Simulation, state: JobState) -> None:
    act, end, code = FAILURES[state]
    id = await reached(sim, state)
    await act(sim)
    job = await ended(sim, id)
    assert (job.status, job.error_code) == (end, code)


@pytest.mark.parametrize("state", sorted(LIVE))
async def test_a_cancel(sim: Simulation, state: JobState) -> None:
    id = await reached(sim, state)
    for _ in range(2):  # twice is as good as once
        assert (await sim.one.jobs.cancel_job("default", id)).status is S.CANCELLING
    await sim.rounds(2, 2.0)
    await end_batches("CANCELLED")(sim)
    job = await ended(sim, id)
    assert job.status is S.CANCELLED
    assert job.cancel_requested_time is not None
    assert [event.label for event in job.events].count("Cancel requested") == 1
    with pytest.raises(IllegalTransition, match="cancelled"):
        await sim.one.jobs.cancel_job("default", id)


@pytest.mark.parametrize("state", sorted(LIVE))
async def test_the_deadline(sim: Simulation, state: JobState) -> None:
    id = await reached(sim, state)
    sim.clock.advance(3600)
    await sim.rounds(2, 1.0)
    await end_batches("EXPIRED", completed_count=4, output_file_id="file-out", error_file_id="file-err")(sim)
    job = await ended(sim, id)
    if state is S.CANCELLING:  # which has a deadline of its own, and it is earlier
        assert job.status is S.CANCELLED
        return
    assert (job.status, job.error_code) == (S.EXPIRED, "expired")
    if job.batch_id is not None:
        assert (job.output_dataset, job.error_dataset) == ("file-out", "file-err")


@pytest.mark.parametrize("state", sorted(TERMINAL))
async def test_nothing_happens_after_the_end(sim: Simulation, state: JobState) -> None:
    """Whatever comes late, from the user, metadata or the clock."""
    ways: dict[JobState, tuple[JobState, Act]] = {
        S.COMPLETED: (S.IN_PROGRESS, end_batches("COMPLETED", completed_count=10)),
        S.EXPIRED: (S.IN_PROGRESS, end_batches("EXPIRED")),
        S.CANCELLED: (S.IN_PROGRESS, end_batches("CANCELLED")),
        **{end: (at_state, act) for at_state, (act, end, _) in FAILURES.items()},
    }
    at_state, act = ways[state]
    id = await reached(sim, at_state)
    await act(sim)
    before = await sim.settle(id, hop=5.0)
    assert before.status is state
    with pytest.raises(IllegalTransition):
        await sim.one.jobs.cancel_job("default", id)
    sim.clock.advance(7200)
    await sim.rounds(3, 60.0)
    assert await sim.get(id) == before
