"""Providers that say what is not so: the job still ends, and says why; no more is spent than somebody asked for."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable
from dataclasses import replace

import pytest

from services.kit.settings import Settings
from services.planner.domain import Machine, Offer
from services.planner.resource_manager.base import Order, Probe, Ready
from services.planner.states import JobState as S
from tests.planner import simulation
from tests.planner.conftest import Machines
from tests.planner.resources import H100
from tests.planner.simulation import Simulation, simulated

KEY = "ssh-ed25519 AAAA"


class Liar(Machines):
    """The fake cloud, which may lie in one way."""

    lie = ""

    async def launch(self, order: Order) -> Machine:
        if self.lie == "a machine that does not exist":
            self.cloud.launched.append(order)
            return Machine(id=f"no{len(self.cloud.launched)}", name=order.name)
        made = await super().launch(order)
        return replace(made, name="a name of its own") if self.lie == "another name" else made

    async def probe(self, machine: Machine) -> Probe:
        if self.lie == "a machine that does not exist":
            return Ready(replace(machine, state="running", host="192.0.2.7", ssh_port=22, ssh_user="root"))
        now = await super().probe(machine)
        if isinstance(now, Ready) and self.lie == "ready without an address":
            return Ready(replace(now.machine, host="", ssh_port=0, http_base_url=""))
        if isinstance(now, Ready) and self.lie == "another machine":
            return Ready(replace(now.machine, id="m99", name="somebody-elses"))
        if isinstance(now, Ready) and self.lie == "a host key":
            return Ready(replace(now.machine, host_key=KEY))
        return now


@pytest.fixture
async def sim(make_settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Simulation]:
    monkeypatch.setattr(simulation, "Machines", Liar)
    monkeypatch.setattr(Liar, "lie", "")
    async with simulated(make_settings(planner={"poll_s": 1.0})) as made:
        yield made


def lies(monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    monkeypatch.setattr(Liar, "lie", how)


@pytest.mark.parametrize("how", ["another name", "another machine"])
async def test_a_machine_is_called_what_we_call_it(sim: Simulation, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    lies(monkeypatch, how)
    id = await sim.enqueue()
    await sim.rounds(4, 2.0)
    job = await sim.get(id)
    assert job.status is S.VALIDATING
    assert job.provision is not None
    (machine,) = job.provision.machines
    assert (machine.id, machine.name) == ("m0", sim.cloud.launched[0].name)
    sim.metadata.set(job.batch_id or "", "COMPLETED", completed_count=10)
    assert (await sim.settle(id)).status is S.COMPLETED
    assert not sim.cloud.machines


async def test_a_machine_that_does_not_exist_is_replaced_and_then_given_up(
    sim: Simulation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The provider calls it up; only its runner finds that nobody is there."""
    lies(monkeypatch, "a machine that does not exist")
    id = await sim.enqueue()
    for _ in range(40):
        await sim.rounds(2, 2.0)
        for batch_id in sim.metadata.live():
            sim.metadata.set(batch_id, "IN_PROGRESS", compute_lost="The machine does not answer.")
    for batch_id in sim.metadata.live():
        sim.metadata.set(batch_id, "CANCELLED")
    job = await sim.settle(id, hop=30.0)
    assert job.status is S.RESOURCE_FAILED
    assert job.error_code
    assert "does not answer" in (job.error_message or "")
    assert 1 < len(sim.cloud.launched) <= 3


async def test_ready_without_an_address_is_not_ready(sim: Simulation, monkeypatch: pytest.MonkeyPatch) -> None:
    lies(monkeypatch, "ready without an address")
    id = await sim.enqueue(completion_window="2h")
    await sim.rounds(6, 2.0)
    assert sim.metadata.batches == {}  # a batch for a machine that nobody can reach
    job = await sim.settle(id, hop=300.0)
    assert job.status in (S.RESOURCE_FAILED, S.EXPIRED)
    assert job.error_message
    assert not sim.cloud.machines


async def test_a_host_key_is_not_forgotten(sim: Simulation, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch that is made later would trust whoever answers first."""
    lies(monkeypatch, "a host key")
    id = await sim.enqueue()
    await sim.rounds(3, 2.0)
    lies(monkeypatch, "")
    await sim.rounds(4, 60.0)
    provision = (await sim.get(id)).provision
    assert provision is not None
    assert [machine.host_key for machine in provision.machines] == [KEY]


@pytest.mark.parametrize("price", [-3.6, -math.inf, math.inf, math.nan])
async def test_a_price_that_is_none_is_not_paid(sim: Simulation, price: float) -> None:
    """It would be the cheapest of all, and no budget would ever stop it."""
    wrong: Offer = replace(H100, instance_type="cheap", hourly_price_usd=price)
    sim.cloud.offers[:] = [wrong, H100]
    id = await sim.enqueue(budget_usd=1.8)
    await sim.rounds(4, 2.0)
    assert [order.offer.instance_type for order in sim.cloud.launched] == [H100.instance_type]
    sim.clock.advance(1900)
    await sim.rounds(3, 2.0)
    (batch_id,) = sim.metadata.cancels
    sim.metadata.set(batch_id, "CANCELLED")
    job = await sim.settle(id)
    assert (job.status, job.error_code) == (S.FAILED, "budget_exceeded")
    assert job.cost_usd >= 1.8
