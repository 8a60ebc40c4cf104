"""What every runtime must do, whatever it starts: the four calls are idempotent, and handles are plain JSON."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import NamedTuple

import aiohttp
import pytest

from services.kit.settings import Settings
from services.runner.engines.mock import mock_engine
from services.runner.runtimes.base import Gone, Ready, Runtime, Spec
from services.runner.runtimes.registry import load_runtimes
from tests.runner.ssh import support as ssh
from tests.runtimes.support import external_spec, local_spec, template, until_ready
from tests.ssh.machine import machine


class Case(NamedTuple):
    runtime: Runtime
    spec: Spec
    starts: bool
    """Whether something exists that can be released."""
    lists: bool = True
    """Whether that is here, where the runner runs."""


@pytest.fixture(params=["External", "Local", "RunPod", "LambdaCloud"])
async def case(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Case]:
    async with AsyncExitStack() as stack:
        settings = Settings(data_dir=tmp_path)
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
    ready = await until_ready(case.runtime, case.spec, handle)

    async with aiohttp.ClientSession() as session:
        body = {"model": case.spec.model or "m", "messages": [{"role": "user", "content": "hello"}]}
        for endpoint in ready.endpoints:
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
    assert await until_ready(case.runtime, case.spec, again)


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
    assert await until_ready(case.runtime, case.spec, second)


async def test_close_lets_go_of_everything(case: Case) -> None:
    await case.runtime.launch(case.spec)
    await case.runtime.close()
    assert await case.runtime.list() == []
