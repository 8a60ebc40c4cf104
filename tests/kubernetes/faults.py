"""What may go wrong between a client and the emulated API server."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Asked:
    """One request as it came."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: Any = None
    """Its JSON; None: it had none."""

    @property
    def is_watch(self) -> bool:
        return self.query.get("watch") in ("1", "true")


@dataclass(frozen=True)
class Fault:
    """What happens instead of, or to, an answer. One of `status`, `raw`, `drops`, `loses` and `hangs`."""

    status: int = 0
    """An error with this HTTP status."""
    reason: str = ""
    message: str = "it was told to fail"
    retry_after: int | None = None
    raw: bytes | None = None
    """A good answer with this body."""
    drops: bool = False
    """The connection breaks; nothing is done."""
    loses: bool = False
    """What was asked for is done, then the connection breaks."""
    hangs: bool = False
    """No answer comes."""


@dataclass
class Planned:
    """A fault, for the next `times` requests that match."""

    fault: Fault
    times: int = 1
    method: str = ""
    path: str = ""
    """A regular expression that is found in the path."""
    is_watch: bool | None = None
    met: list[Asked] = field(default_factory=list)
    """Those that it happened to."""

    def meets(self, asked: Asked) -> bool:
        return (
            len(self.met) < self.times
            and self.method in ("", asked.method)
            and re.search(self.path, asked.path) is not None
            and self.is_watch in (None, asked.is_watch)
        )
