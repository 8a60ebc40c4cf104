"""Clouds whose machines are real: what the fakes of tests/planner launch comes up as a real sshd, and goes when it is terminated.

Planner and runner are in the test's process, where they can be told what no setting says: the user and the port of machines
(only root could be somebody else, or listen on port 22), the time, which runs faster for Lambda's limits, and less patience.
"""

from __future__ import annotations

import asyncio
import os
import pwd
import socket
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml
from aiohttp import web

from services.__main__ import serve
from services.kit.runtime_settings import External, Ssh
from services.kit.settings import Planner, Runner, Settings
from services.planner.resource_manager import lambda_cloud, runpod, runpod_ready
from services.planner.service import provision_worker
from services.runner import allocation
from services.runner.runtimes import ssh, ssh_machine
from tests.conftest import free_port, unavailable
from tests.e2e.processes import Suite, eventually
from tests.planner import lambda_fake, runpod_fake
from tests.planner.http_fake import HttpFake
from tests.ssh.machine import Machine

# How much faster than ours Lambda's time runs: a request a second, and a launch in 12.
SPEED = 10.0
ACCELERATOR = "H100-SXM"
LOOPBACK = "127.0.0.0/8"
# Lines that are committed together.
SEGMENT = 5
# What sshd notes of a client that left because of the host key, before it said who it is.
TURNED_AWAY = "Host key is not trusted"


@dataclass(frozen=True)
class ClientKey:
    """Of the planner and the runners: the file of the private half, and the line of the public one."""

    file: Path
    public: str


@dataclass
class Rented:
    """A machine from its launch to its end."""

    machine: Machine
    said_before: str = ""
    """The log of its sshd from before it had the host key that it should have."""
    left_over: list[str] | None = None
    """What still ran when the cloud ended it; None: it goes on, and costs."""


class Cloud(HttpFake):
    """Beside the API: machines. Those that are launched while `power` is off boot when it is on again."""

    provisioner: ClassVar[str]
    target: ClassVar[str]

    def __init__(self, folder: Path, key: ClientKey, **knobs: Any) -> None:
        """`knobs`: how `vllm` and `docker` behave on the machines."""
        super().__init__()
        self.folder = folder
        self.key = key
        self.knobs = knobs
        self.rented: dict[str, Rented] = {}
        """By the id that the cloud gave, in the order of their launches."""
        self.power = asyncio.Event()
        self.power.set()
        self.impostors = 0
        """So many of the first machines show another host key than the one that they should have."""
        self._tasks: asyncio.TaskGroup

    def is_impostor(self, id: str) -> bool:
        return list(self.rented).index(id) < self.impostors

    @property
    def machines(self) -> list[Machine]:
        return [one.machine for one in self.rented.values()]

    def settings(self) -> dict[str, Any]:
        """The planner's, for this cloud."""
        raise NotImplementedError

    def listed(self) -> list[str]:
        """Ids of what the cloud still has."""
        raise NotImplementedError

    def forget(self, id: str) -> None:
        """The cloud knows a machine no more, which goes on all the same."""
        raise NotImplementedError

    def configure(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Tell the planner's code what differs from the real cloud."""
        raise NotImplementedError

    @asynccontextmanager
    async def runs(self) -> AsyncIterator[None]:
        """With its machines, which end with it. A machine that does not boot ends the block. Requests that broke the document fail it."""
        async with self.serve():
            try:
                async with asyncio.TaskGroup() as self._tasks:
                    yield
            finally:
                for machine in self.machines:
                    await machine.kill(everything=True)
        assert self.violations == []

    async def gone(self) -> None:
        """Wait until all was given back."""

        async def ended() -> bool:
            return not self.listed() and all(one.left_over is not None for one in self.rented.values())

        await eventually(ended, "the machines are given back", lambda: str(self.listed()))

    def _rent(self, id: str, authorized_key: str, **where: Any) -> Machine:
        machine = Machine(self.folder / f"machine-{len(self.rented)}", **where)
        machine.prepare(authorized_key=authorized_key)
        machine.knobs(**self.knobs)
        self.rented[id] = Rented(machine)
        return machine

    def _launched(self, id: str, request: Mapping[str, Any]) -> None:
        self._tasks.create_task(self._boot_with_power(id, request))

    def _terminated(self, id: str) -> None:
        self._tasks.create_task(self._end(id))

    async def _boot_with_power(self, id: str, request: Mapping[str, Any]) -> None:
        await self.power.wait()
        if id in self.listed():
            await self._boot(id, request)

    async def _boot(self, id: str, request: Mapping[str, Any]) -> None:
        raise NotImplementedError

    async def _end(self, id: str) -> None:
        if (one := self.rented.get(id)) is not None:
            left_over = await asyncio.to_thread(one.machine.left_over)
            await one.machine.kill(everything=True)
            one.left_over = left_over


class RunPodCloud(Cloud, runpod_fake.FakeRunPod):
    provisioner = "runpod"
    target = "RunPod"

    def settings(self) -> dict[str, Any]:
        return {
            "runpod_api_key": runpod_fake.KEY,
            "runpod_base_url": self.url,
            "runpod_ssh_public_key": self.key.public,
        }

    def listed(self) -> list[str]:
        return list(self.pods)

    def forget(self, id: str) -> None:
        del self.pods[id]

    def configure(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(runpod, "USER", user())
        monkeypatch.setattr(runpod_ready, "LOG_IDLE_S", 0.2)

    def _act(self, request: web.Request, body: Any) -> tuple[int, Any]:
        status, answer = super()._act(request, body)
        if (request.method, status) == ("POST", 201):
            self._launched(answer["id"], body)
        if (request.method, status) == ("DELETE", 204):
            self._terminated(request.path.rpartition("/")[2])
        return status, answer

    async def _boot(self, id: str, request: Mapping[str, Any]) -> None:
        """What the pod's script does: it lets in the key of its environment, and says its own in its log."""
        env = request["env"]
        machine = self._rent(id, env["PUBLIC_KEY"])
        await machine.start()
        self.logs[id] = [f"CUDA {env['MACHINE_NAME']} 0", f"HOSTKEY {env['MACHINE_NAME']} {machine.host_key}"]
        if self.is_impostor(id):
            await machine.start(new_host_key=True)
        self.publish(id, machine.port)


class LambdaCloud(Cloud, lambda_fake.FakeLambda):
    provisioner = "lambdaCloud"
    target = "LambdaCloud"

    def __init__(self, folder: Path, key: ClientKey, **knobs: Any) -> None:
        check_addresses()
        super().__init__(folder, key, **knobs)
        self.clock = FastClock()
        self.ssh_port = free_port()
        self.account_keys = {"planner": key.public}

    def settings(self) -> dict[str, Any]:
        return {
            "lambda_cloud_api_key": lambda_fake.KEY,
            "lambda_cloud_base_url": self.url,
            "lambda_cloud_ssh_keys": "planner",
        }

    def listed(self) -> list[str]:
        return list(self.instances)

    def forget(self, id: str) -> None:
        self.end(id)

    def configure(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(lambda_cloud, "SSH_USER", user())
        defaults = lambda_cloud.LambdaCloud.__init__.__kwdefaults__
        monkeypatch.setitem(defaults, "clock", self.clock)
        monkeypatch.setitem(defaults, "ssh_port", self.ssh_port)

    def _act(self, method: str, path: str, body: Any) -> tuple[int, Any]:
        status, answer = super()._act(method, path, body)
        if status == 200 and path.endswith("/launch"):
            self._launched(answer["data"]["instance_ids"][0], body)
        if status == 200 and path.endswith("/terminate"):
            for one in answer["data"]["terminated_instances"]:
                self._terminated(one["id"])
        return status, answer

    async def _boot(self, id: str, request: Mapping[str, Any]) -> None:
        """Active with the image's own host key; with that of cloud-init once somebody has turned away from the image's."""
        where = {"host": f"127.0.0.{2 + len(self.rented)}", "port": self.ssh_port}
        machine = self._rent(id, self.account_keys[request["ssh_key_names"][0]], **where)
        await machine.start()
        self.set(id, "active", ip=machine.host)

        async def turned_away() -> bool:
            return TURNED_AWAY in machine.log()

        await eventually(turned_away, "somebody comes, and goes", machine.log)
        if self.is_impostor(id):
            return
        self.rented[id].said_before = machine.log()
        head, _, config = request["user_data"].partition("\n")
        assert head == "#cloud-config"
        keys = yaml.safe_load(config)["ssh_keys"]
        await machine.start(host_key=keys["ed25519_private"])
        assert machine.host_key == keys["ed25519_public"]

    async def _end(self, id: str) -> None:
        await super()._end(id)
        self.end(id)


CLOUDS: dict[str, type[RunPodCloud] | type[LambdaCloud]] = {"runpod": RunPodCloud, "lambdaCloud": LambdaCloud}


class FastClock:
    """The clock of Lambda and of who asks it."""

    def now(self) -> float:
        return time.monotonic() * SPEED

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds / SPEED)


@asynccontextmanager
async def planner_and_runner(
    platform: Suite, cloud: Cloud, monkeypatch: pytest.MonkeyPatch, boot_s: float
) -> AsyncIterator[None]:
    """Those of the platform, in this process; the planner with a store of its own. A machine may take `boot_s` to boot."""
    cloud.configure(monkeypatch)
    monkeypatch.setattr(allocation, "WATCH_S", 0.5)
    monkeypatch.setattr(provision_worker, "WATCH_S", 0.5)
    monkeypatch.setattr(ssh_machine, "WINDOW_S", 0.3)
    planner = Planner(
        listen=platform.listens["planner"],
        database_url=f"sqlite+aiosqlite:///{cloud.folder / 'planner.db'}",
        lease_ttl_s=2,
        poll_s=0.1,
        provision_timeout_s=boot_s,
    )
    settings = Settings(
        data_dir=platform.folder / "data",
        provisioner=cloud.provisioner,
        metadata_addr=platform.listens["metadata"],
        batch_ssh_key_file=str(cloud.key.file),
        external=External(allowed_hosts=LOOPBACK),
        planner=planner,
        runner=Runner(listen=platform.listens["runner"], segment_lines=SEGMENT, segment_seconds=0.5, drain_s=2),
        ssh=Ssh(engine_port=free_port(), keepalive_s=0.5, connect_timeout_s=2, lost_after_s=1, stop_grace_s=3),
        **cloud.settings(),
    )
    async with serve(settings, ["planner", "runner"]):
        yield


def separate_ports(monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines of several machines may run at once: here all machines share one loopback."""
    new_handle = ssh._new_handle
    monkeypatch.setattr(ssh, "_new_handle", lambda spec, wanted, _: new_handle(spec, wanted, free_port()))


def user() -> str:
    """Who machines let in: whoever runs the tests."""
    return pwd.getpwuid(os.geteuid()).pw_name


def check_addresses() -> None:
    """Machines of Lambda have one port and many addresses."""
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.2", 0))
        except OSError as error:
            unavailable(f"loopback has no other addresses than 127.0.0.1 here: {error}")
