"""The port to a provider of compute: four idempotent calls over machines that carry the provision's id in their name.

The resource manager owns waiting, retries, leases and persistence. It stores the intent and the machine's name before it
calls `launch`; so after a crash, or an answer that never came, `list` tells whether the machine exists.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

from services.kit.settings import Settings
from services.planner.domain import Machine, Offer

# Every machine of ours is called `aibrix-<provision id>-<number>`.
NAME_PREFIX = "aibrix-"


class ProviderError(Exception):
    """A call that a provider refused, or that did not come through.

    `code`: NoGpuType, NoCapacity, QuotaExceeded, InvalidCredential, InvalidRequest or ProviderUnavailable. `retryable`:
    another try may work, here or elsewhere. `ambiguous`: nobody knows whether it was done (a timeout, a 5xx).
    """

    def __init__(self, code: str, message: str, *, retryable: bool, ambiguous: bool = False) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.retryable = retryable
        self.ambiguous = ambiguous


@dataclass(frozen=True, kw_only=True)
class Order:
    """One machine that is wanted."""

    name: str
    """Unique: `aibrix-<provision id>-<number>`."""
    offer: Offer
    image: str = ""
    labels: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Pending:
    """In the making; ask again."""

    detail: str
    machine: Machine


@dataclass(frozen=True)
class Ready:
    """It runs and can be reached. The machine has everything that the runtime needs: host, ports, user, URL, host key."""

    machine: Machine


@dataclass(frozen=True)
class Gone:
    """It will not run (again). `code`: Unhealthy, Lost or Timeout."""

    code: str
    why: str


Probe = Pending | Ready | Gone


class Provider(Protocol):
    """Built once per planner process as `Class(settings)`; also from other packages, by entry point.

    Its constructor raises ValueError naming the environment variable of a credential that is missing.
    """

    name: ClassVar[str]
    """The name in PROVISIONER."""
    target: ClassVar[str]
    """The value of `aibrix.runtime.target` for batches on its machines."""

    async def catalog(self) -> list[Offer]:
        """What it offers now, with live prices. Error: ProviderError."""
        ...

    async def launch(self, order: Order) -> Machine:
        """Ask for one machine. Not repeated blindly: the caller looks with `list` after an ambiguous error. Error: ProviderError."""
        ...

    async def probe(self, machine: Machine) -> Probe:
        """How it is now. Error: ProviderError."""
        ...

    async def release(self, machine: Machine) -> bool:
        """Give it back; fine if it is gone. True: the provider confirms that it is gone, or at least no longer billed."""
        ...

    async def list(self) -> list[Machine]:
        """All machines whose name has NAME_PREFIX, that may still cost money. Error: ProviderError."""
        ...

    async def close(self) -> None:
        """Let go of connections."""
        ...


class ProviderClass(Protocol):
    """What an entry point in the group `aibrix_batch.providers` names."""

    name: ClassVar[str]
    target: ClassVar[str]

    def __call__(self, settings: Settings) -> Provider: ...
