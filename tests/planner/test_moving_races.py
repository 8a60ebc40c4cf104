"""What may come between a job that loses its machine and its next one: the end of its batch, a cancel, its budget, and the end
of the planner at any of its calls."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from services.kit.settings import Settings
from services.planner.domain import Job
from services.planner.resource_manager.base import Gone
from services.planner.states import JobState as S
from tests.planner.resources import refusal
from tests.planner.simulation import Simulation, simulated
from tests.planner.test_moving import WHY, labels, running

AGAIN = "Compute was lost, asking for other"


@pytest.fixture
async def sim(make_settings: Callable[..., Settings]) -> AsyncIterator[Simulation]:
    async with simulated(make_settings(planner={"poll_s": 1.0})) as simulation:
        yield simulation


def provision_of(sim: Simulation, job: Job) -> Any:
    return json.loads(sim.metadata.blocks[job.batch_id or ""])["resource_allocation"]["provision_id"]


async def waiting(sim: Simulation, state: S) -> Job:
    """A job whose batch rests since its machine is gone, and which is so far with the next one."""
    first = await running(sim)
    sim.metadata.set(first.batch_id or "", "IN_PROGRESS", compute_lost=WHY)
    if state is S.QUEUED:
        sim.cloud.fail("launch", *(refusal() for _ in range(1000)))
    sim.cloud.boot_s = 1e9
    await sim.rounds(6, 5.0)
    job = await sim.get(first.id)
    assert job.status is state
    return job


# The end of the batch.


@pytest.mark.parametrize("state", ["FINALIZING", "IN_PROGRESS"])
async def test_a_machine_that_goes_after_the_last_line_is_not_replaced(sim: Simulation, state: str) -> None:
    first = await running(sim)
    sim.metadata.set(first.batch_id or "", state, completed_count=10)
    sim.cloud.machines.clear()
    await sim.rounds(6, 20.0)
    job = await sim.get(first.id)
    assert (job.status.value, AGAIN in labels(job)) == (state, False)
    sim.metadata.set(first.batch_id or "", "COMPLETED", output_file_id="file-out")
    done = await sim.settle(first.id)
    assert (done.status, done.output_dataset) == (S.COMPLETED, "file-out")
    assert len(sim.cloud.launched) == 1
    assert sim.metadata.cancels == []


@pytest.mark.parametrize("completed_count", [0, 4])
async def test_a_batch_that_somebody_cancels_as_its_machine_goes_is_not_begun_anew(
    sim: Simulation, completed_count: int
) -> None:
    first = await running(sim)
    batch_id = first.batch_id or ""
    await sim.one.manager.release(first.provision_id or "")
    sim.metadata.set(batch_id, "CANCELLING", completed_count=completed_count)
    await sim.rounds(4, 20.0)
    assert (await sim.get(first.id)).status is S.CANCELLING
    sim.metadata.set(batch_id, "CANCELLED", error_file_id="file-err")
    job = await sim.settle(first.id)
    assert (job.status, job.error_dataset) == (S.CANCELLED, "file-err")
    assert (len(sim.cloud.launched), len(sim.metadata.created)) == (1, 1)


async def test_a_batch_that_was_cancelled_when_its_machine_was_gone_is_not_begun_anew(sim: Simulation) -> None:
    first = await running(sim)
    await sim.one.manager.release(first.provision_id or "")
    sim.metadata.set(first.batch_id or "", "CANCELLED", completed_count=0)
    job = await sim.settle(first.id)
    assert job.status is S.CANCELLED
    assert (len(sim.cloud.launched), len(sim.metadata.created)) == (1, 1)


@pytest.mark.parametrize("state", [S.QUEUED, S.RESOURCE_PREPARING])
@pytest.mark.parametrize(
    ("end", "expected"), [("CANCELLED", S.CANCELLED), ("COMPLETED", S.COMPLETED), ("FINALIZING", S.FINALIZING)]
)
async def test_a_batch_that_ends_while_other_compute_is_waited_for_ends_the_wait(
    sim: Simulation, state: S, end: str, expected: S
) -> None:
    """Somebody cancels the batch itself, or the machine was not so lost after all."""
    job = await waiting(sim, state)
    sim.metadata.set(job.batch_id or "", end, compute_lost=None, output_file_id="file-out")
    await sim.rounds(6, 5.0)
    assert (await sim.get(job.id)).status is expected
    sim.metadata.set(job.batch_id or "", "COMPLETED")
    done = await sim.settle(job.id)
    assert done.output_dataset == "file-out"
    assert len(sim.metadata.created) == 1


async def test_a_job_that_rests_with_a_batch_asks_again_as_others_do(sim: Simulation) -> None:
    """It is looked at more often than it may ask."""
    job = await waiting(sim, S.QUEUED)
    sim.cloud.boot_s = 0.0
    await sim.rounds(60, 10.0)
    asked = labels(await sim.get(job.id)).count("No compute yet")
    assert 3 <= asked <= 8
    sim.cloud.faults["launch"].clear()
    await sim.rounds(60, 30.0)
    moved = await sim.get(job.id)
    assert (moved.status, provision_of(sim, moved)) == (S.IN_PROGRESS, moved.provision_id)


# What it may cost.


async def test_the_budget_is_one_for_all_machines(sim: Simulation) -> None:
    first = await running(sim, budget_usd=3.6)  # an hour
    sim.clock.advance(2400)
    sim.metadata.set(first.batch_id or "", "IN_PROGRESS", compute_lost=WHY)
    await sim.rounds(6, 2.0)
    second = await sim.get(first.id)
    assert second.provision_id != first.provision_id
    sim.clock.advance(1000)
    await sim.rounds(2, 2.0)
    assert (await sim.get(first.id)).status is S.IN_PROGRESS
    sim.clock.advance(240)
    await sim.rounds(2, 2.0)
    assert sim.metadata.cancels == [first.batch_id]
    sim.metadata.set(first.batch_id or "", "CANCELLED", output_file_id="file-out")
    job = await sim.settle(first.id)
    assert (job.status, job.error_code, job.output_dataset) == (S.FAILED, "budget_exceeded", "file-out")
    assert 3.6 <= job.cost_usd < 3.8


async def test_the_next_machine_is_no_dearer_than_allowed(sim: Simulation) -> None:
    first = await running(sim, resource_request_json='{"max_hourly_price_usd": 4}')
    sim.cloud.offers[:] = [replace(offer, hourly_price_usd=4.5) for offer in sim.cloud.offers]
    sim.cloud.machines.clear()
    await sim.rounds(6, 20.0)
    assert sim.metadata.cancels == [first.batch_id]
    sim.metadata.set(first.batch_id or "", "CANCELLED", output_file_id="file-out")
    job = await sim.settle(first.id)
    assert (job.status, job.output_dataset) == (S.RESOURCE_FAILED, "file-out")
    assert len(sim.cloud.launched) == 1


@pytest.mark.parametrize("who", ["provider", "runner"])
async def test_the_error_of_the_last_machine_names_them_all(sim: Simulation, who: str) -> None:
    job = await running(sim)
    for number in range(1, 4):
        if who == "runner":
            sim.metadata.set(job.batch_id or "", "IN_PROGRESS", compute_lost=f"fire {number}\nand its log")
        else:
            sim.cloud.gone.update(dict.fromkeys(sim.cloud.machines, Gone("Unhealthy", f"fire {number}")))
        await sim.rounds(4, 20.0)
    assert sim.metadata.cancels == [job.batch_id]
    sim.metadata.set(job.batch_id or "", "CANCELLED", output_file_id="file-out")
    ended = await sim.settle(job.id)
    assert (ended.status, ended.output_dataset) == (S.RESOURCE_FAILED, "file-out")
    assert ended.error_code == ("Unhealthy" if who == "provider" else "compute_lost")
    said = ended.error_message or ""
    assert said == "3 machines were lost, and that is the most: (1) fire 1; (2) fire 2; (3) fire 3"
    assert len(sim.cloud.launched) == 3


# The end of the planner.


async def lost(settings: Settings, who: str, kill: int | None) -> int:
    """A machine is lost, and its planner dies before its call of this number. How many calls the move took, if nobody died."""
    async with simulated(settings) as sim:
        first = await running(sim)
        batch_id = first.batch_id or ""
        if who == "runner":
            sim.metadata.set(batch_id, "IN_PROGRESS", compute_lost=WHY)
        else:
            sim.cloud.machines.clear()
        process = sim.one.process
        before = process.calls
        process.kill = None if kill is None else before + kill
        while not sim.metadata.moved:
            await sim.rounds(1, 20.0)
        await sim.rounds(3, 20.0)
        job = await sim.get(first.id)
        assert (job.status, job.batch_id) == (S.IN_PROGRESS, batch_id)
        assert provision_of(sim, job) == job.provision_id != first.provision_id
        assert sim.metadata.batches[batch_id].compute_lost is None
        assert sim.metadata.moved == [batch_id]
        assert (len(sim.cloud.launched), len(sim.cloud.machines)) == (2, 1)
        assert labels(job).count(AGAIN) == 1
        assert process.dead == (kill is not None)
        return process.calls - before


@pytest.mark.parametrize("who", ["provider", "runner"])
async def test_a_planner_may_die_at_any_call_of_a_move(
    make_settings: Callable[..., Settings], tmp_path: Path, who: str
) -> None:
    """Whoever comes next goes on with the same provision: one machine for another, and one batch."""
    settings = make_settings(planner={"poll_s": 1.0})
    calls = await lost(settings.model_copy(update={"data_dir": tmp_path / "whole"}), who, None)
    assert calls > 10
    for kill in range(1, calls + 1):
        await lost(settings.model_copy(update={"data_dir": tmp_path / str(kill)}), who, kill)
