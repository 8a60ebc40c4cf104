"""A front for each module of tests, on an event loop that lives as long."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.gateway.front import Front, fronting, settings_for


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def front(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Front]:
    async with fronting(settings_for(tmp_path_factory.mktemp("front"))) as running:
        yield running
