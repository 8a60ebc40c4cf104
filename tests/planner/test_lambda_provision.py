"""The resource manager and Lambda Cloud together: no fault of the cloud leaves a machine behind, or makes a second one."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import pytest

from services.kit.errors import InvalidArgument
from services.kit.settings import Settings
from services.planner.resource_manager import lambda_client
from services.planner.resource_manager.gpus import matches
from services.planner.resource_manager.lambda_cloud import LambdaCloud
from services.planner.service.resources import ResourceManager
from services.planner.states import ProvisionState
from tests.planner.lambda_fake import FakeLambda, fake_lambda
from tests.planner.resources import Calls, Process, World, gpus, world
from tests.planner.test_lambda import LAUNCH, public_half

S = ProvisionState


@dataclass
class Cloud:
    fake: FakeLambda
    world: World
    manager: ResourceManager

    async def until(self, id: str, *states: ProvisionState, boots: bool = True) -> Any:
        """The provision in one of these states. Meanwhile the cloud does its work: machines boot, and end."""
        for _ in range(600):
            await self.manager.work_due()
            provision = await self.manager.get(id)
            if provision.status in states:
                return provision
            for instance in list(self.fake.instances.values()):
                if instance["status"] == "terminating":
                    self.fake.end(instance["id"])
                elif instance["status"] == "booting" and boots:
                    self.fake.run(instance["id"])
            self.world.clock.advance(5)
        raise AssertionError(f"{id} is {provision.status}, not {states}")


@pytest.fixture
async def cloud(make_settings: Callable[..., Settings], sqlite_url: str) -> AsyncIterator[Cloud]:
    async with world(sqlite_url, make_settings()) as here, fake_lambda() as (fake, provider):
        calls = Calls(here.database, here.clock, Process())
        yield Cloud(fake, here, ResourceManager(calls, here.settings, {LambdaCloud.name: provider}, None, matches))
        assert fake.violations == []
        assert fake.hurried == 0


async def test_the_whole_way(cloud: Cloud) -> None:
    wanted = await cloud.manager.provision("job/1", "p", gpus("H100"))
    running = await cloud.until(wanted.id, S.RUNNING)
    (machine,) = running.machines
    assert (machine.host, machine.ssh_user) == ("127.0.0.1", "ubuntu")
    assert machine.host_key == public_half(cloud.fake.sent(LAUNCH)[0]["user_data"])
    assert (running.accelerator, running.hourly_price_usd) == ("H100-SXM-80GB", 4.29)
    await cloud.manager.release(wanted.id)
    await cloud.manager.work_due()
    # It ends: that is not yet the end of it.
    assert (await cloud.manager.get(wanted.id)).status is S.RELEASING
    await cloud.until(wanted.id, S.RELEASED)
    assert cloud.fake.instances == {}
    assert len(cloud.fake.sent(LAUNCH)) == 1


@pytest.mark.parametrize("fault", [{"hang": True}, {"status": 500}, {"drop": True}])
async def test_a_machine_whose_launch_was_not_answered_is_taken_on(
    cloud: Cloud, fault: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lambda_client, "LAUNCH_S", 0.3)
    cloud.fake.fault("POST", LAUNCH, done=True, **fault)
    wanted = await cloud.manager.provision("job/1", "p", gpus("H100"))
    running = await cloud.until(wanted.id, S.RUNNING)
    assert [machine.id for machine in running.machines] == list(cloud.fake.instances)
    assert running.machines[0].host_key == public_half(cloud.fake.sent(LAUNCH)[0]["user_data"])
    assert len(cloud.fake.sent(LAUNCH)) == 1
    await cloud.manager.release(wanted.id)
    await cloud.until(wanted.id, S.RELEASED)
    assert cloud.fake.instances == {}


async def test_a_launch_that_was_lost_on_the_way_is_asked_for_again(cloud: Cloud) -> None:
    cloud.fake.fault("POST", LAUNCH, status=502)
    wanted = await cloud.manager.provision("job/1", "p", gpus("H100"))
    await cloud.until(wanted.id, S.RUNNING)
    names = [sent["name"] for sent in cloud.fake.sent(LAUNCH)]
    assert len(names) == 2
    assert len(cloud.fake.instances) == 1


async def test_without_capacity_the_next_accelerator_is_taken(cloud: Cloud) -> None:
    cloud.fake.fault("POST", LAUNCH, status=400, code="instance-operations/launch/insufficient-capacity")
    wanted = await cloud.manager.provision("job/1", "p", gpus("H100", "A10"))
    running = await cloud.until(wanted.id, S.RUNNING)
    assert running.instance_type == "gpu_1x_a10"


@pytest.mark.parametrize(("status", "code"), [("unhealthy", "Unhealthy"), ("preempted", "Lost")])
async def test_a_machine_that_comes_up_wrong_is_given_back(cloud: Cloud, status: str, code: str) -> None:
    wanted = await cloud.manager.provision("job/1", "p", gpus("H100"))
    await cloud.until(wanted.id, S.PROVISIONING, boots=False)
    (id,) = cloud.fake.instances
    cloud.fake.set(id, status, ip="127.0.0.1")
    ended = await cloud.until(wanted.id, S.RELEASED)
    assert (ended.error_code, ended.retryable) == (code, True)
    assert [one["status"] for one in cloud.fake.instances.values()] == (["preempted"] if status == "preempted" else [])


async def test_a_machine_that_never_comes_up_is_given_back(cloud: Cloud) -> None:
    wanted = await cloud.manager.provision("job/1", "p", gpus("H100"))
    await cloud.until(wanted.id, S.PROVISIONING, boots=False)
    cloud.world.clock.advance(cloud.world.settings.planner.provision_timeout_s)
    ended = await cloud.until(wanted.id, S.RELEASED, boots=False)
    assert ended.error_code == "Timeout"
    assert cloud.fake.instances == {}


async def test_a_machine_that_disappears_is_noticed(cloud: Cloud) -> None:
    wanted = await cloud.manager.provision("job/1", "p", gpus("H100"))
    running = await cloud.until(wanted.id, S.RUNNING)
    cloud.fake.end(running.machines[0].id)
    ended = await cloud.until(wanted.id, S.RELEASED)
    assert ended.error_code == "Lost"


async def test_a_second_machine_of_one_launch_is_released(cloud: Cloud) -> None:
    def twice(answer: Any) -> Any:
        extra = cloud.fake.add(cloud.fake.sent(LAUNCH)[0]["name"], status="booting")
        return {"data": {"instance_ids": [*answer["data"]["instance_ids"], extra]}}

    cloud.fake.fault("POST", LAUNCH, change=twice)
    wanted = await cloud.manager.provision("job/1", "p", gpus("H100"))
    running = await cloud.until(wanted.id, S.RUNNING)
    assert len(cloud.fake.instances) == 2
    await cloud.manager.reconciler.reconcile()
    states = {id: instance["status"] for id, instance in cloud.fake.instances.items()}
    assert states.pop(running.machines[0].id) == "active"
    assert list(states.values()) == ["terminating"]


async def test_an_accelerator_that_is_not_clear_is_asked_about(cloud: Cloud) -> None:
    with pytest.raises(InvalidArgument, match="say A100-40GB or A100-80GB"):
        await cloud.manager.provision("job/1", "p", gpus("A100", count=8))
    assert cloud.fake.requests == []


async def test_a_request_that_lambda_finds_wrong_ends_its_part_of_the_search(cloud: Cloud) -> None:
    """The SSH key is not in the account: no region and no type would mend that."""
    cloud.fake.ssh_keys = []
    wanted = await cloud.manager.provision("job/1", "p", gpus("A10", "H100"))
    ended = await cloud.until(wanted.id, S.RELEASED)
    assert (ended.error_code, ended.retryable) == ("InvalidRequest", False)
    assert ended.error_message == (
        "lambdaCloud: Lambda Cloud refused: global/object-does-not-exist: ssh key or instance type"
    )
    assert len(cloud.fake.sent(LAUNCH)) == 1
