"""A job whose machine is lost while its batch runs: the same batch goes on with another machine."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable

import pytest

from services.kit.settings import Settings
from services.planner.domain import Job
from services.planner.resource_manager.base import Gone
from services.planner.states import JobState as S
from tests.planner.resources import refusal
from tests.planner.simulation import Simulation, simulated

WHY = "The machine 192.0.2.7 has not answered for 60 s."


def labels(job: Job) -> list[str]:
    return [event.label for event in job.events]


@pytest.fixture
async def sim(make_settings: Callable[..., Settings]) -> AsyncIterator[Simulation]:
    async with simulated(make_settings(planner={"poll_s": 1.0})) as simulation:
        yield simulation


async def running(sim: Simulation, **fields: object) -> Job:
    """A job with four of its ten lines done."""
    id = await sim.enqueue(**fields)
    await sim.rounds(3, 2.0)
    (batch_id,) = sim.metadata.batches
    sim.metadata.set(batch_id, "IN_PROGRESS", has_run=True, completed_count=4)
    await sim.rounds(2, 2.0)
    job = await sim.get(id)
    assert (job.status, job.request_counts.completed) == (S.IN_PROGRESS, 4)
    return job


@pytest.mark.parametrize("who", ["provider", "runner"])
async def test_the_batch_goes_on_with_another_machine(sim: Simulation, who: str) -> None:
    first = await running(sim)
    batch_id = first.batch_id or ""
    if who == "provider":
        sim.cloud.machines.clear()
    else:
        sim.metadata.set(batch_id, "IN_PROGRESS", compute_lost=WHY)
    before = sim.metadata.blocks[batch_id]
    await sim.rounds(6, 20.0)
    second = await sim.get(first.id)
    assert second.batch_id == batch_id
    assert second.provision_id != first.provision_id
    assert second.request_counts.completed == 4
    assert (sim.metadata.moved, sim.metadata.cancels) == ([batch_id], [])
    allocation = json.loads(sim.metadata.blocks[batch_id])["resource_allocation"]
    assert allocation["provision_id"] == second.provision_id
    assert sim.metadata.blocks[batch_id] != before
    assert "Compute was lost, asking for other" in labels(second)
    assert f"Batch {batch_id} goes on with the new compute" in labels(second)
    sim.metadata.set(batch_id, "COMPLETED", completed_count=10, output_file_id="file-out")
    done = await sim.settle(first.id)
    assert (done.status, done.output_dataset) == (S.COMPLETED, "file-out")
    assert sim.cloud.machines == {}


async def test_a_machine_that_only_its_runner_misses_is_given_back(sim: Simulation) -> None:
    """Its provider calls it up, and bills it."""
    first = await running(sim)
    sim.metadata.set(first.batch_id or "", "IN_PROGRESS", compute_lost=WHY)
    await sim.rounds(6, 5.0)
    assert len(sim.cloud.launched) == 2
    assert len(sim.cloud.machines) == 1
    timeline = {event.label: event.message for event in (await sim.get(first.id)).events}
    assert timeline["Compute was lost, asking for other"] == WHY


async def test_what_is_done_is_kept_if_no_machine_can_be_had(sim: Simulation) -> None:
    first = await running(sim)
    sim.cloud.fail("launch", refusal("InvalidCredential", retryable=False))
    sim.cloud.machines.clear()
    await sim.rounds(8, 20.0)
    assert sim.metadata.cancels == [first.batch_id]
    results = {"output_file_id": "file-out", "error_file_id": "file-err"}
    sim.metadata.set(first.batch_id or "", "CANCELLED", completed_count=4, **results)
    job = await sim.settle(first.id)
    assert (job.status, job.error_code) == (S.RESOURCE_FAILED, "InvalidCredential")
    assert (job.output_dataset, job.error_dataset) == ("file-out", "file-err")


async def test_three_machines_are_the_most(sim: Simulation) -> None:
    job = await running(sim)
    for _ in range(30):
        for id in sim.cloud.machines:
            sim.cloud.gone[id] = Gone("Unhealthy", "the GPU does not answer")
        await sim.round()
        sim.clock.advance(20)
        if sim.metadata.cancels:
            sim.metadata.set(job.batch_id or "", "CANCELLED", output_file_id="file-out")
    ended = await sim.settle(job.id)
    assert (ended.status, ended.error_code, ended.output_dataset) == (S.RESOURCE_FAILED, "Unhealthy", "file-out")
    assert len(sim.cloud.launched) == 3


async def test_a_deadline_that_passes_while_other_compute_is_waited_for(sim: Simulation) -> None:
    """The batch has the same deadline: metadata ends it, and the job takes what was done."""
    first = await running(sim, completion_window="1h")
    sim.cloud.boot_s = 1e9
    sim.cloud.machines.clear()
    await sim.rounds(6, 20.0)
    assert (await sim.get(first.id)).status is S.RESOURCE_PREPARING
    sim.clock.advance(3600)
    await sim.rounds(2, 2.0)
    sim.metadata.set(first.batch_id or "", "EXPIRED", completed_count=4, output_file_id="file-out")
    job = await sim.settle(first.id)
    assert (job.status, job.output_dataset) == (S.EXPIRED, "file-out")
    assert sim.cloud.machines == {}


async def test_a_cancel_while_other_compute_is_waited_for(sim: Simulation) -> None:
    first = await running(sim)
    sim.cloud.boot_s = 1e9
    sim.cloud.machines.clear()
    await sim.rounds(6, 20.0)
    await sim.one.jobs.cancel_job("default", first.id)
    await sim.rounds(2, 2.0)
    assert sim.metadata.cancels == [first.batch_id]
    sim.metadata.set(first.batch_id or "", "CANCELLED", output_file_id="file-out")
    job = await sim.settle(first.id)
    assert (job.status, job.output_dataset) == (S.CANCELLED, "file-out")


async def test_the_start_of_an_engine_can_be_followed(sim: Simulation) -> None:
    first = await running(sim)
    for phase in ("connecting", "pulling", "loading", "loading"):
        sim.metadata.set(first.batch_id or "", "IN_PROGRESS", phase=f"launching: {phase}")
        await sim.rounds(2, 2.0)
    for _ in range(2):
        sim.metadata.set(first.batch_id or "", "IN_PROGRESS", phase="dispatching")
        await sim.rounds(2, 2.0)
    said = labels(await sim.get(first.id))
    told = ["Connecting to the machine", "Pulling the engine's image", "Loading the model", "The engine is ready"]
    assert said[-4:] == told


async def test_a_batch_that_nobody_noted_is_found_again(sim: Simulation) -> None:
    """The planner died between the answer of metadata and its own note of it, and then the machine went."""
    id = await sim.enqueue()
    await sim.rounds(1, 2.0)
    await sim.one.manager.work_due()
    job = await sim.get(id)
    assert job.status is S.RESOURCE_PREPARING
    sim.clock.advance(2.0)
    real = sim.one.advance.writer.write

    async def lost(held, change):
        if change.values.get("batch_id"):
            raise RuntimeError("the process dies here")
        return await real(held, change)

    sim.one.advance.writer.write = lost  # type: ignore[method-assign]
    await sim.rounds(2, 2.0)
    (batch_id,) = sim.metadata.batches
    assert (await sim.get(id)).batch_id is None
    sim.one = sim.start()
    sim.cloud.machines.clear()
    sim.clock.advance(60)
    await sim.rounds(8, 20.0)
    assert (await sim.get(id)).batch_id == batch_id
    assert list(sim.metadata.batches) == [batch_id]
