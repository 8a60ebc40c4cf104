"""An emulated cluster, and an Api of it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from services.kit.kubernetes import backoff
from services.kit.kubernetes.api import Api
from tests.kubernetes.cluster import Cluster


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses as short as can be."""
    monkeypatch.setattr(backoff, "FIRST_S", 0.001)
    monkeypatch.setattr(backoff, "LONGEST_S", 0.01)


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    async with Cluster("batch", "other").running() as made:
        yield made


@pytest.fixture
async def api(cluster: Cluster) -> AsyncIterator[Api]:
    made = Api(cluster.connect)
    yield made
    await made.close()
