"""Who the machine is, who we are to it, and which addresses may be tried."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import structlog

from services.kit.runtime_settings import External
from services.kit.ssh.keys import HostKey
from services.runner.runtimes.base import Pending, RuntimeFailed
from services.runner.runtimes.runpod import RunPod
from tests.conftest import free_port
from tests.runner.ssh.support import Driver, ask, counting, options, settings, spec_for
from tests.ssh.machine import Machine


@pytest.fixture
async def runtime(m: Machine, tmp_path: Path) -> AsyncIterator[RunPod]:
    one = RunPod(settings(m, tmp_path))
    yield one
    await one.close()


async def test_the_first_host_key_is_pinned_before_anything_is_sent(m: Machine, runtime: RunPod) -> None:
    with structlog.testing.capture_logs() as logs:
        driver = await Driver.launch(runtime, spec_for("RunPod", options(m, host_key=None)))
        assert driver.handle["host_key"] is None
        probe = await driver.probe()
    assert isinstance(probe, Pending)
    assert driver.handle["host_key"] == m.host_key
    assert "Accepted" not in m.log()
    (said,) = [line for line in logs if "trusted" in line["event"]]
    assert said["log_level"] == "warning"
    assert said["host_key"] == HostKey.parse(m.host_key).fingerprint()
    await driver.ready()


@pytest.mark.parametrize("given", [True, False], ids=["expected key", "first use"])
async def test_a_host_key_that_changes_is_refused_and_the_machine_lost(
    m: Machine, runtime: RunPod, tmp_path: Path, given: bool
) -> None:
    pinned = HostKey.parse(m.host_key).fingerprint()
    spec = spec_for("RunPod", options(m) if given else options(m, host_key=None))
    driver = await Driver.launch(runtime, spec)
    await driver.ready()
    accepted = m.log().count("Accepted")
    await m.start(new_host_key=True)
    gone = await driver.gone()
    assert gone.machine_lost
    assert not gone.retryable
    assert pinned in gone.why
    assert HostKey.parse(m.host_key).fingerprint() in gone.why
    assert m.log().count("Accepted") == accepted  # nobody logged in there

    with pytest.raises(RuntimeFailed) as failed:
        await runtime.release(driver.handle)
    assert not failed.value.retryable
    # A launch that comes after, by whichever runner, does not learn the new key.
    another = RunPod(settings(m, tmp_path))
    again = spec_for("RunPod", options(m, host_key=None)) if not given else spec
    handle = await another.launch(replace(again, previous=driver.handle))
    assert handle["host_key"] == driver.handle["host_key"]
    await another.close()


async def test_an_injected_host_key_may_appear_late(m: Machine, runtime: RunPod) -> None:
    """Until cloud-init has run, the image's own key shows: nothing is sent, and nothing is relaxed."""
    injected_file, injected = m.folder / "injected", m.host_key
    shutil.copy(m.folder / "host_key", injected_file)
    await m.start(new_host_key=True)
    driver = await Driver.launch(runtime, spec_for("RunPod", options(m, host_key=injected)))
    for _ in range(3):
        probe = await driver.probe()
        assert isinstance(probe, Pending)
        assert "is expected" in probe.detail
    assert "Accepted" not in m.log()
    await m.stop()
    shutil.copy(injected_file, m.folder / "host_key")
    await m.start()
    await driver.ready()


async def test_an_injected_host_key_that_never_appears(m: Machine, tmp_path: Path) -> None:
    runtime = RunPod(settings(m, tmp_path, connect_timeout_s=0.5))
    injected = m.host_key
    await m.start(new_host_key=True)
    driver = await Driver.launch(runtime, spec_for("RunPod", options(m, host_key=injected)))
    gone = await driver.gone()
    assert gone.machine_lost
    assert HostKey.parse(injected).fingerprint() in gone.why
    assert HostKey.parse(m.host_key).fingerprint() in gone.why
    await runtime.release(driver.handle)  # nothing was ever sent there
    await runtime.close()


async def test_the_wrong_key_is_tried_for_a_while(m: Machine, tmp_path: Path) -> None:
    runtime = RunPod(settings(m, tmp_path, connect_timeout_s=1.0))
    authorized = m.folder / "authorized_keys"
    right = authorized.read_text()
    authorized.write_text("")
    driver = await Driver.launch(runtime, spec_for("RunPod", options(m)))
    assert isinstance(await driver.probe(), Pending)
    authorized.write_text(right)  # the cloud was late
    await driver.ready()
    await runtime.close()

    authorized.write_text("")
    other = RunPod(settings(m, tmp_path, connect_timeout_s=0.3))
    gone = await (await Driver.launch(other, spec_for("RunPod", options(m), key="batch_2"))).gone()
    assert not gone.retryable
    assert not gone.machine_lost
    assert "does not accept the key" in gone.why
    await other.close()


async def test_a_base_url_is_used_as_it_is_and_its_address_judged(m: Machine, tmp_path: Path) -> None:
    port = free_port()
    runtime = RunPod(settings(m, tmp_path, engine_port=port))
    spec = spec_for("RunPod", options(m, http_base_url=f"http://127.0.0.1:{port}/v1"))
    driver = await Driver.launch(runtime, spec)
    ready = await driver.ready()
    (endpoint,) = ready.endpoints
    assert endpoint.base_url == f"http://127.0.0.1:{port}"
    assert endpoint.policy is not None
    assert await ask(ready) == 200
    assert m.calls()[0]["host"] == "0.0.0.0"
    await runtime.release(driver.handle)

    with pytest.raises(RuntimeFailed, match="not a public address"):
        await runtime.launch(spec_for("RunPod", options(m, http_base_url="http://169.254.169.254")))
    await runtime.close()


async def test_a_host_on_an_inner_network_gets_no_packet(m: Machine, tmp_path: Path) -> None:
    plain = settings(m, tmp_path)
    runtime = RunPod(plain.model_copy(update={"external": External()}))
    async with counting() as (port, visitors):
        driver = await Driver.launch(runtime, spec_for("RunPod", options(m, ssh_port=port)))
        gone = await driver.gone()
    assert not gone.retryable
    assert "AIBRIX_EXTERNAL__ALLOWED_HOSTS" in gone.why
    assert visitors == []
    await runtime.close()
