"""What a source of templates or profiles is. The sources are one module each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol


class SourceError(Exception):
    """The source cannot be read now. The message is the same as long as the reason is."""


@dataclass(frozen=True)
class Document:
    """One text of a source."""

    origin: str
    """Its name for people, and among the source's texts."""
    text: str | None
    """None: it is there, and cannot be read."""
    problem: str = ""
    """Why not."""


@dataclass(frozen=True)
class Snapshot:
    """What a source holds at one moment."""

    documents: tuple[Document, ...]
    fingerprint: object | None
    """Equal as long as the documents are. None: nothing is known, read them again."""
    problem: str = ""
    """What an operator should know of the source as a whole."""


class Source(Protocol):
    """Somewhere that texts come from."""

    name: str
    """For people."""

    async def check(self) -> None:
        """Look at the setting before the server serves. Error: ValueError, if it can never work."""

    async def fetch(self, known: object | None) -> Snapshot | None:
        """What is there now; None if its fingerprint is still `known`. Error: SourceError."""

    async def follow(self, changed: Callable[[], None]) -> None:
        """Call `changed` whenever there is something new, until cancelled. A source that has to be asked returns at once."""

    async def close(self) -> None:
        """Let connections go. It may be used again."""
