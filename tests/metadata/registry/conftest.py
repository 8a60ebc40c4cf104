"""Registries over files that the test writes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import structlog

from services.kit.settings import Settings
from services.metadata.registry.registry import opened


def put(path: Path, content: str) -> None:
    """As an editor does: a new file takes the place of the old one."""
    new = path.with_name(".new")
    new.write_text(content)
    new.replace(path)


@pytest.fixture
def logs() -> Iterator[list[Any]]:
    with structlog.testing.capture_logs() as captured:
        yield captured


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "templates.yaml"


@pytest.fixture
def over(make_settings: Callable[..., Settings]) -> Any:
    """A registry over the given sources."""

    @asynccontextmanager
    async def make(templates: object = "", profiles: object = ""):
        settings = make_settings(templates={"source": str(templates)}, profiles={"source": str(profiles)})
        async with opened(settings) as registry:
            yield registry

    return make
