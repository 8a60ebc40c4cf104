"""Wakes those who wait in this process, so that they need not poll fast. Other replicas find out by their slow poll."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field


class Bell:
    """Take `listen()` before looking for work, and wait for it after finding none: no ring is missed in between."""

    def __init__(self) -> None:
        self._rung = asyncio.Event()

    def listen(self) -> asyncio.Event:
        return self._rung

    def ring(self) -> None:
        self._rung.set()
        self._rung = asyncio.Event()


@dataclass(frozen=True)
class Bells:
    to_validate: Bell = field(default_factory=Bell)
    """A batch waits for its validation."""
    to_lease: Bell = field(default_factory=Bell)
    """A batch can be leased."""
    to_close: Bell = field(default_factory=Bell)
    """A cancel may be for this role to confirm."""
    to_clean: Bell = field(default_factory=Bell)
    """Objects have become useless."""
