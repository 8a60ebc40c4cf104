"""What every runtime must do, whatever it starts: the four calls are idempotent, and handles are plain JSON."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import aiohttp
import pytest

from services.kit.kubernetes.api import Api
from services.kit.settings import Settings
from services.runner.engines.mock import mock_engine
from services.runner.runtimes.base import Gone, Handle, HandOver, Ready, Runtime, Shared, Spec
from services.runner.runtimes.kubernetes.workloads import Kubernetes, KubernetesJob
from services.runner.runtimes.registry import load_runtimes
from tests.kubernetes.cluster import Cluster
from tests.kubernetes.controllers import Controllers
from tests.runner.ssh import support as ssh
from tests.runtimes.kubernetes import support as kubernetes
from tests.runtimes.support import external_spec, local_spec, template, until, until_ready
from tests.ssh.machine import machine


class Case(NamedTuple):
    runtime: Runtime
    spec: Spec
    starts: bool
    """Whether something exists that can be released."""
    lists: bool = True
    """Whether that is here, where the runner runs."""
    stays: bool = False
    """Whether it outlives the runner, for others."""
    up: type[Ready] | type[HandOver] = Ready
    """What it says in the end."""

    async def is_up(self, handle: Handle) -> Ready | HandOver:
        if self.up is Ready:
            return await until_ready(self.runtime, self.spec, handle)

        async def found() -> HandOver | None:
            probe = await self.runtime.probe(self.spec, handle)
            assert not isinstance(probe, Gone), probe.why
            return probe if isinstance(probe, HandOver) else None

        handed: HandOver = await until(found, "handed over")
        return handed


KUBERNETES = {"Kubernetes": Kubernetes, "KubernetesJob": KubernetesJob}


@asynccontextmanager
async def on_kubernetes(target: str) -> AsyncIterator[Case]:
    async with Cluster("engines").running() as cluster, mock_engine() as engine:
        controllers = Controllers(cluster)
        controllers.on_pod = lambda pod: controllers.kubelet.ready(pod, engine.url)
        runtime = KUBERNETES[target](Settings(), Api(cluster.connect))
        spec = kubernetes.spec_of(target, kubernetes.template("mock", **{"accelerator.type": "cpu"}))
        yield Case(runtime, spec, starts=True, stays=True, up=HandOver if target == "KubernetesJob" else Ready)
        await runtime.close()
        controllers.stop()


@pytest.fixture(params=["External", "Kubernetes", "KubernetesJob", "Local", "RunPod", "LambdaCloud"])
async def case(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Case]:
    async with AsyncExitStack() as stack:
        settings = Settings(data_dir=tmp_path)
        if request.param in KUBERNETES:
            yield await stack.enter_async_context(on_kubernetes(request.param))
            return
        if request.param == "External":
            engine = await stack.enter_async_context(mock_engine())
            spec = external_spec({}, engine.url)
        elif request.param == "Local":
            spec = local_spec("batch_1", model_template=template())
        else:
            there = await stack.enter_async_context(machine(tmp_path / "machine"))
            settings = ssh.settings(there, tmp_path)
            spec = ssh.spec_for(request.param, ssh.options(there))
        runtimes = load_runtimes(settings)
        for each in runtimes.values():
            stack.push_async_callback(each.close)
        starts = request.param != "External"
        yield Case(runtimes[request.param], spec, starts=starts, lists=request.param == "Local")


async def test_launch_probe_and_release(case: Case) -> None:
    handle = await case.runtime.launch(case.spec)
    up = await case.is_up(handle)

    async with aiohttp.ClientSession() as session:
        body = {"model": case.spec.model or "m", "messages": [{"role": "user", "content": "hello"}]}
        for endpoint in up.endpoints if isinstance(up, Ready) else ():
            url = endpoint.base_url + "/v1/chat/completions"
            async with session.post(url, json=body, headers=endpoint.headers) as response:
                assert response.status == 200

    await case.runtime.release(handle)
    probe = await case.runtime.probe(case.spec, handle)
    assert isinstance(probe, Gone if case.starts else Ready)


async def test_launch_of_the_same_key_finds_the_same_allocation(case: Case) -> None:
    handle = await case.runtime.launch(case.spec)
    assert await case.runtime.launch(case.spec) == handle


async def test_handle_is_json_that_names_its_key(case: Case) -> None:
    handle = await case.runtime.launch(case.spec)
    again = json.loads(json.dumps(handle))
    assert again == handle
    assert again["key"] == case.spec.key
    assert await case.is_up(again)


async def test_release_twice_and_of_what_never_was_is_fine(case: Case) -> None:
    handle = await case.runtime.launch(case.spec)
    await case.runtime.release(handle)
    await case.runtime.release(handle)
    await case.runtime.release({})
    await case.runtime.release({"key": "batch_unknown"})


async def test_list_shows_what_exists(case: Case) -> None:
    assert await case.runtime.list() == []
    handle = await case.runtime.launch(case.spec)
    assert await case.runtime.list() == ([handle] if case.lists else [])
    await case.runtime.release(handle)
    assert await case.runtime.list() == []


async def test_launch_after_release_is_a_new_allocation(case: Case) -> None:
    first = await case.runtime.launch(case.spec)
    await case.runtime.release(first)
    second = await case.runtime.launch(case.spec)
    assert (second != first) == case.starts
    assert await case.is_up(second)


async def test_close_lets_go_of_everything_that_no_other_runner_can_reach(case: Case) -> None:
    handle = await case.runtime.launch(case.spec)
    await case.runtime.close()
    assert await case.runtime.list() == ([handle] if case.stays else [])
    assert isinstance(case.runtime, Shared) == case.stays
