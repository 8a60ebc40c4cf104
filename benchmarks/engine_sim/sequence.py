"""What goes into an engine and comes out of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from benchmarks.engine_sim.workload import Request


class End(Enum):
    DONE = "done"
    REFUSED = "refused"
    """429: too many wait."""
    UNAVAILABLE = "unavailable"
    """503 from something in between."""
    BROKEN = "broken"
    """500, no sign of load."""
    LOST = "lost"
    """The connection ended: the engine died."""


@dataclass(frozen=True)
class EngineSpec:
    """Times in seconds, sizes in tokens."""

    base_s: float
    prefill_s: float
    sequence_s: float
    context_s: float
    kv_tokens: int
    max_seqs: int = 256
    max_batched: int = 8_192
    watermark: float = 0.01
    max_waiting: int | None = None
    """Requests that may wait before one more gets a 429. None: it never refuses."""
    retry_after_s: float | None = None
    prefix_caching: bool = True
    speed: float = 1.0
    jitter: float = 0.0
    """Sigma of a lognormal factor on every step."""


class Sequence:
    """A request inside the engine."""

    __slots__ = (
        "admitted",
        "arrived",
        "epoch",
        "first",
        "left",
        "on_end",
        "ours",
        "preempted",
        "request",
        "start",
        "total",
    )

    def __init__(self, request: Request, on_end: Callable[[Sequence, End], None], ours: bool) -> None:
        self.request = request
        self.on_end = on_end
        self.ours = ours
        self.arrived = 0.0
        self.first: float | None = None
        """When its first token came."""
        self.admitted = False
        self.left = 0
        """Tokens of prefill to do."""
        self.start = 0
        """The step before its first output token, had it never been preempted: step - start = tokens it has."""
        self.total = request.prompt
        """Tokens that prefill has to cover: the prompt, and after a preemption what was generated."""
        self.epoch = 0
        self.preempted = 0
