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
    to_act: Bell = field(default_factory=Bell)
    """A job may be due."""
    to_wake: Bell = field(default_factory=Bell)
    """The compute of a job may be what it waits for."""
    to_plan: Bell = field(default_factory=Bell)
    """A job waits for the policy, or a place has become free."""
