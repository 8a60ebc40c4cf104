"""A machine for each test, and runtimes that do not wait long for it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.runner.runtimes import ssh_machine
from tests.ssh.machine import Machine, machine


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ssh_machine, "WINDOW_S", 0.3)


@pytest.fixture
async def m(tmp_path: Path) -> AsyncIterator[Machine]:
    async with machine(tmp_path / "machine") as running:
        yield running
