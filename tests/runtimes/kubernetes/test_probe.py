"""The probe of an engine on loopback, run for real against the mock engine."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Sequence

import pytest

from services.runner.engines.faults import Faults
from services.runner.engines.mock import mock_engine
from services.runner.runtimes.kubernetes.plan import PORT
from services.runner.runtimes.kubernetes.pod import readiness
from tests.runtimes.kubernetes.support import planned, template

ENGINES = ["mock", pytest.param("llamacpp", marks=pytest.mark.skipif(not shutil.which("curl"), reason="no curl"))]


async def exit_code(words: Sequence[str], port: str) -> int:
    """As the kubelet runs it: `$$` is `$`. The engine of the test listens on a port of its own."""
    command = [word.replace("$$", "$").replace(str(PORT), port) for word in words]
    process = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.DEVNULL)
    return await process.wait()


def command(engine: str, path: str) -> list[str]:
    plan = planned("KubernetesJob", template(engine, **{"accelerator.type": "cpu", "engine.health_endpoint": path}))
    asked: list[str] = readiness(plan)["exec"]["command"]
    return asked


@pytest.mark.parametrize("engine", ENGINES)
async def test_it_says_how_the_engine_is(engine: str) -> None:
    async with mock_engine(faults=Faults()) as served:
        port = served.url.rpartition(":")[2]
        assert await exit_code(command(engine, "/health"), port) == 0
        assert await exit_code(command(engine, "/no-such-page"), port) != 0
        # Nothing in a path is code, or another word.
        for path in ("/$(HOME)", "/';import_os", "/health;", "/`id`", "/x?a=b&c"):
            assert await exit_code(command(engine, path), port) != 0
    assert await exit_code(command(engine, "/health"), port) != 0
