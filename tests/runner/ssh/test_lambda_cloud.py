"""LambdaCloud against a real sshd and Docker's command line: a container is pulled, run, found again, and removed."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import aiohttp
import pytest

from services.runner.runtimes.base import Gone
from services.runner.runtimes.lambda_cloud import LambdaCloud
from tests.runner.ssh.support import MODEL, Driver, ask, options, settings, spec_for, vllm_template
from tests.ssh.machine import Machine, machine

TARGET = "LambdaCloud"


@pytest.fixture
async def runtime(m: Machine, tmp_path: Path) -> AsyncIterator[LambdaCloud]:
    one = LambdaCloud(settings(m, tmp_path))
    yield one
    await one.close()


def run_of(m: Machine) -> list[str]:
    (call,) = [call for call in m.docker_calls() if call[0] == "run"]
    return call


async def test_a_container_comes_up_answers_and_is_removed(m: Machine, runtime: LambdaCloud) -> None:
    m.knobs(pull_s=0.5, startup_s=0.5)
    driver = await Driver.launch(runtime, spec_for(TARGET, options(m)))
    ready = await driver.ready()
    assert driver.seen in (["pulling", "loading"], ["pulling", "starting", "loading"])
    assert await ask(ready) == 200
    assert await ask(ready, Authorization="Bearer wrong") == 401
    assert m.containers() == ["aibrix-batch_1-1"]

    call, key = run_of(m), ready.endpoints[0].headers["Authorization"].removeprefix("Bearer ")
    image = call.index("vllm/vllm-openai:latest")
    assert call[image + 1 :] == ["--model", MODEL, "--host", "0.0.0.0", "--port", "8000"]
    assert call[call.index("-p") + 1] == f"127.0.0.1:{driver.handle['engine_port']}:8000"
    assert call[call.index("--label") + 1] == "aibrix.batch=batch_1"
    assert call[call.index("--gpus") + 1] == "all"
    assert not any(key in word for words in m.docker_calls() for word in words)

    await runtime.release(driver.handle)
    assert m.containers() == []
    assert m.left_over() == []
    assert isinstance(await driver.probe(), Gone)


async def test_the_image_of_the_template_and_flags(m: Machine, runtime: LambdaCloud) -> None:
    given = options(m, vllm_args=["--max-model-len", "4096"])
    spec = spec_for(TARGET, given, model_template=vllm_template(image="acme/vllm:0.33"))
    driver = await Driver.launch(runtime, spec)
    await driver.ready()
    call = run_of(m)
    assert call[call.index("acme/vllm:0.33") + 1 :][:4] == ["--model", "acme/weights", "--max-model-len", "4096"]
    await runtime.release(driver.handle)


async def test_docker_that_only_root_may_use(m: Machine, runtime: LambdaCloud) -> None:
    m.knobs(docker_needs_root=True)
    driver = await Driver.launch(runtime, spec_for(TARGET, options(m)))
    assert await ask(await driver.ready()) == 200
    await runtime.release(driver.handle)
    assert m.containers() == []
    assert m.left_over() == []


@pytest.mark.parametrize(
    ("knobs", "why"),
    [
        ({"docker_down": True}, "Docker does not answer"),
        ({"pull_fails": "denied"}, "the image vllm/vllm-openai:latest could not be pulled"),
        ({"no_gpu_runtime": True}, "the container could not be started"),
        ({"exit": 3}, "it exited with status 3"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
async def test_what_does_not_come_up_says_why(m: Machine, runtime: LambdaCloud, knobs: dict, why: str) -> None:
    m.knobs(**knobs)
    driver = await Driver.launch(runtime, spec_for(TARGET, options(m)))
    gone = await driver.gone()
    assert why in gone.why
    assert not gone.machine_lost
    if "docker_down" in knobs:
        return
    assert len(gone.why.split("\n")) > 1  # with the end of the log
    await runtime.release(driver.handle)
    assert m.containers() == []
    assert m.left_over() == []


async def test_a_registry_that_is_away_does_not_matter_for_an_image_that_is_there(
    m: Machine, runtime: LambdaCloud
) -> None:
    m.knobs(pull_fails="network", images=["vllm/vllm-openai:latest"])
    driver = await Driver.launch(runtime, spec_for(TARGET, options(m)))
    await driver.ready()
    await runtime.release(driver.handle)


async def test_a_takeover_finds_the_container_also_while_it_is_pulled(
    m: Machine, runtime: LambdaCloud, tmp_path: Path
) -> None:
    m.knobs(pull_s=1.0)
    spec = spec_for(TARGET, options(m))
    driver = await Driver.launch(runtime, spec)
    while driver.seen[-1:] != ["pulling"]:
        await driver.probe()
    await runtime.close()

    another = LambdaCloud(settings(m, tmp_path, engine_port=driver.handle["engine_port"]))
    found = Driver(another, spec, driver.handle)
    assert await ask(await found.ready()) == 200
    assert len(m.calls()) == 1
    assert [call[0] for call in m.docker_calls()].count("pull") == 1
    await another.release(driver.handle)
    assert m.containers() == []
    await another.close()


async def test_a_release_while_it_is_pulled_leaves_nothing(m: Machine, runtime: LambdaCloud) -> None:
    m.knobs(pull_s=60)
    driver = await Driver.launch(runtime, spec_for(TARGET, options(m)))
    while driver.seen[-1:] != ["pulling"]:
        await driver.probe()
    await runtime.release(driver.handle)
    assert m.containers() == []
    assert m.left_over() == []


async def test_a_container_that_ends_is_replaced_once(m: Machine, runtime: LambdaCloud) -> None:
    spec = spec_for(TARGET, options(m))
    m.knobs(die_after_requests=1)
    driver = await Driver.launch(runtime, spec)
    ready = await driver.ready()
    with pytest.raises(aiohttp.ClientError):
        await ask(ready)
    gone = await driver.gone()
    assert not gone.machine_lost
    assert "illegal memory access" in gone.why
    await runtime.release(driver.handle)

    driver = await Driver.launch(runtime, replace(spec, previous=driver.handle))
    ready = await driver.ready()
    assert m.containers() == ["aibrix-batch_1-2"]
    with pytest.raises(aiohttp.ClientError):
        await ask(ready)
    assert (await driver.gone()).machine_lost
    await runtime.release(driver.handle)
    assert m.containers() == []


async def test_a_container_that_somebody_removed(m: Machine, runtime: LambdaCloud) -> None:
    driver = await Driver.launch(runtime, spec_for(TARGET, options(m)))
    await driver.ready()
    await m.kill(everything=True)
    await m.start()
    assert "exited with status" in (await driver.gone()).why
    await runtime.release(driver.handle)
    assert m.containers() == []


async def test_why_docker_does_not_answer_is_said_for_the_user_and_for_sudo(m: Machine, runtime: LambdaCloud) -> None:
    m.knobs(docker_needs_root=True, sudo_password=True)
    gone = await (await Driver.launch(runtime, spec_for(TARGET, options(m)))).gone()
    assert "permission denied" in gone.why
    assert "a password is required" in gone.why


async def test_a_machine_without_docker(tmp_path: Path) -> None:
    async with machine(tmp_path / "m", without=["docker"]) as m:
        runtime = LambdaCloud(settings(m, tmp_path))
        driver = await Driver.launch(runtime, spec_for(TARGET, options(m)))
        assert "Docker does not answer" in (await driver.gone()).why
        await runtime.close()


async def test_a_dropped_connection_is_made_again(m: Machine, runtime: LambdaCloud) -> None:
    driver = await Driver.launch(runtime, spec_for(TARGET, options(m)))
    before = await driver.ready()
    assert await m.drop_connections()
    assert (await driver.ready()).endpoints == before.endpoints
    assert await ask(before) == 200
