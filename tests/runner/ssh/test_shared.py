"""Batches that use one machine one after another: the second takes over the engine of the first, whichever runner has it."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from services.runner.runtimes.base import Gone, Spec
from tests.runner.ssh.support import RUNTIMES, Driver, ask, options, settings, spec_for
from tests.runtimes.support import until
from tests.ssh.machine import Machine

KIND = "0123456789abcdef" * 4


def of_kind(m: Machine, target: str, key: str, kind: str = KIND) -> Spec:
    return replace(spec_for(target, options(m), key), kind=kind, keep_s=60.0)


@pytest.mark.parametrize("target", list(RUNTIMES))
async def test_the_next_batch_takes_the_engine_over(m: Machine, tmp_path: Path, target: str) -> None:
    config = settings(m, tmp_path)
    first, second = RUNTIMES[target](config), RUNTIMES[target](config)
    one = await Driver.launch(first, of_kind(m, target, "batch_1"))
    before = await one.ready()
    assert await first.leave(one.spec, one.handle)
    two = await Driver.launch(second, of_kind(m, target, "batch_2"))
    after = await two.ready()
    assert after.endpoints[0].headers == before.endpoints[0].headers
    assert await ask(after) == 200
    assert len(m.calls()) == 1

    # Whoever had it changes nothing any more, whatever it does.
    await first.release(one.handle)
    assert isinstance(await one.probe(), Gone)
    third = RUNTIMES[target](config)
    late = await Driver(third, one.spec, one.handle).gone()
    assert "took the engine's place" in late.why
    assert await ask(after) == 200

    assert await second.leave(two.spec, two.handle)
    three = await Driver.launch(first, of_kind(m, target, "batch_3"))
    await three.ready()
    assert len(m.calls()) == 1
    await first.release(three.handle)
    assert m.left_over() == []
    for runtime in (first, second, third):
        await runtime.close()


@pytest.mark.parametrize("target", list(RUNTIMES))
async def test_an_engine_that_died_meanwhile_is_started_again(m: Machine, tmp_path: Path, target: str) -> None:
    runtime = RUNTIMES[target](settings(m, tmp_path))
    one = await Driver.launch(runtime, of_kind(m, target, "batch_1"))
    await one.ready()
    assert await runtime.leave(one.spec, one.handle)
    for pid in m.engines():
        os.kill(pid, signal.SIGKILL)
    await until(lambda: not m.engines(), "the engine is gone")
    two = await Driver.launch(runtime, of_kind(m, target, "batch_2"))
    assert await ask(await two.ready()) == 200
    assert len(m.calls()) == 2
    await runtime.release(two.handle)
    assert m.left_over() == []
    await runtime.close()


async def test_what_is_not_ready_or_shares_with_nobody_is_not_left(m: Machine, tmp_path: Path) -> None:
    runtime = RUNTIMES["RunPod"](settings(m, tmp_path))
    alone = await Driver.launch(runtime, spec_for("RunPod", options(m)))
    await alone.ready()
    assert not await runtime.leave(alone.spec, alone.handle)
    await runtime.release(alone.handle)
    m.knobs(hang=True)
    slow = await Driver.launch(runtime, of_kind(m, "RunPod", "batch_2"))
    await slow.probe()
    assert not await runtime.leave(slow.spec, slow.handle)
    await runtime.release(slow.handle)
    assert m.left_over() == []
    await runtime.close()
