"""The port to a planning policy: a pure function from what there is now to what is to be started."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import ClassVar, Protocol

from services.kit.settings import Settings


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A job that waits. Its input is known to be right."""

    id: str
    priority: int
    """Higher goes first."""
    create_time: datetime
    expires_time: datetime
    """Its deadline."""
    kin: str
    """Jobs with the same text here can use the same compute: same project, template, model and resource request."""
    run_time: timedelta
    """How long its batch will take once the engine runs: reckoned from earlier jobs of its template."""


@dataclass(frozen=True, kw_only=True)
class Shared:
    """Compute that live jobs have, or wait for. Its jobs run one after another."""

    provision_id: str | None
    """None: it is not asked for yet, so nothing can be put onto it, but soon there will be something."""
    kin: str
    free_time: datetime
    """When the last of its jobs is reckoned to end."""
    job_count: int
    """Its jobs that have not ended."""


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    now: datetime
    waiting: Sequence[Candidate]
    """At most some hundreds: those of highest priority, and those with the nearest deadlines."""
    compute: Sequence[Shared]
    """Empty for a policy that does not share."""
    provision_count: int
    """Provisions that exist, or are about to be asked for, also those that are being given back."""
    max_provisions: int
    cold_start: timedelta
    """What machines and models take to come up."""

    @property
    def free_places(self) -> int:
        return max(0, self.max_provisions - self.provision_count)


@dataclass(frozen=True)
class Start:
    """Let the job run; on the compute of `provision_id`, or on its own if that is None."""

    job_id: str
    provision_id: str | None = None


class Policy(Protocol):
    """Built once per planner as `Class(settings)`; also from other packages, by entry point."""

    name: ClassVar[str]
    """The value of PLANNING_POLICY."""
    shares: ClassVar[bool]
    """Whether it looks at `Snapshot.compute`, `kin` and `run_time`. Otherwise these are not worked out."""

    def plan(self, snapshot: Snapshot) -> Sequence[Start]:
        """What to start now: each waiting job at most once, and no more without a provision than there are free places.

        Pure: the same snapshot gives the same answer. What goes beyond the places is cut off by the caller.
        """
        ...


class PolicyClass(Protocol):
    """What an entry point in the group `aibrix_batch.policies` names."""

    name: ClassVar[str]
    shares: ClassVar[bool]

    def __call__(self, settings: Settings) -> Policy: ...
