"""An emulated cluster whose controllers run, and runtimes on it."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from types import SimpleNamespace

import pytest

from services.kit.kubernetes import backoff
from services.runner import allocation
from services.runner.engines.mock import MockEngine, mock_engine
from services.runner.engines.options import MockOptions
from services.runner.runtimes.base import Spec
from services.runner.runtimes.kubernetes import runtime as runtimes
from services.runner.runtimes.kubernetes import workloads
from services.runner.runtimes.kubernetes.workloads import Kubernetes
from tests.kubernetes.cluster import Cluster
from tests.kubernetes.controllers import Controllers
from tests.runner.platform import (
    Platform,
    platform,
    settings_for,
)
from tests.runtimes.kubernetes.support import spec_of, template
from tests.runtimes.kubernetes.world import (
    CPU,
    runtime_on,
)


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses as short as can be."""
    monkeypatch.setattr(backoff, "FIRST_S", 0.001)
    monkeypatch.setattr(backoff, "LONGEST_S", 0.01)
    monkeypatch.setattr(runtimes, "EVENTS_S", 0.02)
    monkeypatch.setattr(runtimes, "GONE_S", 0.02)


@pytest.fixture
async def cluster(hasty: None) -> AsyncIterator[Cluster]:
    async with Cluster("engines", "other").running() as made:
        yield made


@pytest.fixture
async def controllers(cluster: Cluster) -> AsyncIterator[Controllers]:
    made = Controllers(cluster)
    yield made
    made.stop()


@pytest.fixture
async def p(tmp_path: Path) -> AsyncIterator[Platform]:
    """The platform, without a runner."""
    async with platform(settings_for(tmp_path, ttl_s=2.0)) as running:
        yield running


@pytest.fixture
async def runtime(cluster: Cluster) -> AsyncIterator[Kubernetes]:
    async with runtime_on(cluster) as made:
        yield made


@pytest.fixture
def spec() -> Spec:
    return spec_of("Kubernetes", template("mock", **CPU))


@pytest.fixture
async def engines() -> AsyncIterator[list[MockEngine]]:
    """Three, each on a port of its own."""
    async with AsyncExitStack() as stack:
        options = MockOptions(record=True, latency_ms=10)
        yield [await stack.enter_async_context(mock_engine(options)) for _ in range(3)]


@pytest.fixture
def fast_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of those who wait for engines: ten seconds take half of one."""

    def monotonic() -> float:
        return 20 * time.monotonic()

    monkeypatch.setattr(allocation, "WATCH_S", 0.1)
    monkeypatch.setattr(allocation, "clock", SimpleNamespace(monotonic=monotonic))
    monkeypatch.setattr(workloads, "monotonic", monotonic)
