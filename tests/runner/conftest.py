"""Fixtures of the runner's tests."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.runner.engines.mock import MockEngine, mock_engine
from services.runner.engines.options import MockOptions
from tests.runner.platform import Platform, platform, settings_for


@pytest.fixture
async def p(tmp_path: Path) -> AsyncIterator[Platform]:
    """The platform, without a runner."""
    async with platform(settings_for(tmp_path)) as running:
        yield running


@pytest.fixture
async def engine() -> AsyncIterator[MockEngine]:
    """An engine that keeps what it was asked."""
    async with mock_engine(MockOptions(record=True)) as running:
        yield running
