"""An engine between two batches: the next one of its kind takes it over, anything else ends it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from services.runner.runtimes.base import Gone, Handle, Spec
from services.runner.runtimes.local import Local
from tests.runtimes.support import alive, command, local_spec, settings, until, until_ready

KIND = "model-1"
FIRST = replace(local_spec("batch_1", {"command": "engine"}), kind=KIND, keep_s=60.0)
SECOND = replace(FIRST, key="batch_2")


@pytest.fixture
async def runtime(tmp_path: Path) -> AsyncIterator[Local]:
    made = Local(settings(tmp_path, **command("engine")), grace_s=2.0)
    yield made
    await made.close()


async def started(runtime: Local, spec: Spec) -> Handle:
    handle = await runtime.launch(spec)
    await until_ready(runtime, spec, handle)
    return handle


async def test_the_next_batch_of_its_kind_takes_it_over(runtime: Local) -> None:
    handle = await started(runtime, FIRST)
    assert await runtime.leave(FIRST, handle)
    again = await runtime.launch(SECOND)
    assert again["engine_pid"] == handle["engine_pid"]
    await until_ready(runtime, SECOND, again)
    assert await runtime.leave(SECOND, again)
    third = await runtime.launch(replace(FIRST, key="batch_3"))
    assert third["engine_pid"] == handle["engine_pid"]
    await runtime.release(third)
    assert not alive(handle["engine_pid"])


async def test_nobody_comes(runtime: Local) -> None:
    handle = await started(runtime, FIRST)
    assert await runtime.leave(replace(FIRST, keep_s=0.05), handle)

    async def gone() -> bool:
        return isinstance(await runtime.probe(FIRST, handle), Gone)

    await until(gone, "the engine is ended")
    assert not alive(handle["engine_pid"])
    later = await started(runtime, SECOND)
    assert later["engine_pid"] != handle["engine_pid"]


async def test_a_batch_of_another_kind_gets_its_room(runtime: Local) -> None:
    handle = await started(runtime, FIRST)
    assert await runtime.leave(FIRST, handle)
    other = await runtime.launch(replace(SECOND, kind="model-2"))
    assert other["engine_pid"] != handle["engine_pid"]
    assert not alive(handle["engine_pid"])


async def test_of_two_of_a_kind_one_is_kept(runtime: Local) -> None:
    handles = [await started(runtime, FIRST), await started(runtime, SECOND)]
    for spec, handle in zip((FIRST, SECOND), handles, strict=True):
        assert await runtime.leave(spec, handle)
    await until(lambda: not alive(handles[0]["engine_pid"]), "the earlier one is ended")
    assert (await runtime.launch(replace(FIRST, key="batch_3")))["engine_pid"] == handles[1]["engine_pid"]


async def test_what_does_not_run_is_not_kept(runtime: Local) -> None:
    plain = replace(FIRST, kind=None)
    handle = await started(runtime, plain)
    assert not await runtime.leave(plain, handle)
    await runtime.release(handle)
    assert not await runtime.leave(FIRST, handle)


async def test_the_end_of_the_runner_ends_it(tmp_path: Path) -> None:
    runtime = Local(settings(tmp_path, **command("engine")), grace_s=2.0)
    handle = await started(runtime, FIRST)
    assert await runtime.leave(FIRST, handle)
    await runtime.close()
    assert not alive(handle["engine_pid"])
    assert await runtime.list() == []
