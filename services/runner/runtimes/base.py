"""The port to compute: four idempotent calls over a small JSON handle.

A runtime is dumb and restartable. The loop owns waiting, retries, leases and persistence: it saves the handle with the
lease before it relies on it, so that the next holder finds the same engine again (`probe`) or cleans it up (`release`).
"Provision, wait until ready, connect, tear down" of other systems is: launch, probe until Ready, its endpoints, release.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

from services.kit.settings import Settings
from services.kit.spec.addresses import AddressPolicy
from services.kit.spec.block import Block
from services.kit.spec.template import TemplateSpec

# JSON that is saved with the lease. It names things (pid, container, port); it never holds a secret.
Handle = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """Where requests go: an OpenAI-compatible server."""

    base_url: str
    """Scheme, host, port and perhaps a prefix, without `/v1`: a line's path (`/v1/chat/completions`) is appended."""
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Sent with every request; may hold a credential, so it is never printed."""
    health_path: str | None = None
    """Path that answers 2xx when the engine is well. None: only traffic tells."""
    policy: AddressPolicy | None = None
    """Which addresses may be connected to. None: the operator chose the URL, anything goes."""


@dataclass(frozen=True, kw_only=True)
class Spec:
    """What is to be brought up, from the lease. Same key, same allocation."""

    key: str
    """The batch id."""
    block: Block
    default_endpoints: tuple[str, ...] = ()
    template: TemplateSpec | None = None
    """What to start, with the batch's overrides in it."""
    template_source: Literal["inline", "registry"] | None = None
    """`inline`: an ordinary user wrote the template. `registry`: an operator did."""
    template_overridden: frozenset[str] = frozenset()
    """Keys of engine_args that the batch wrote over those of the template."""
    model: str | None = None
    """What the engine should be called by: `aibrix.model`, else the model that the lines name."""
    kind: str | None = None
    """Batches of one kind may use one engine, one after the other. None: this one shares with nobody."""
    keep_s: float = 0.0
    """How long the engine may wait for the next batch of its kind."""
    expire_time: float | None = None
    """When the batch's window ends, in Unix seconds."""
    previous: Handle | None = None
    """For `launch`: the last allocation of this batch, which is given back, as far as that could be done."""


@dataclass(frozen=True)
class Pending:
    """Not ready yet; ask again."""

    detail: str
    phase: str = ""
    """One word for the batch's status, such as `loading`."""
    handle: Handle | None = None
    """What the handle is from now on, if that changed: saved before the next call."""
    counts: bool = True
    """Whether this time counts as the engine's, which has `ready_timeout_seconds`. What does not, the runtime ends itself."""
    unreachable: bool = False
    """Of one that was ready: nothing is sent to it until it is again, and no line pays for that."""


@dataclass(frozen=True)
class Ready:
    endpoints: tuple[Endpoint, ...]
    handle: Handle | None = None
    """As Pending's."""


@dataclass(frozen=True)
class Gone:
    """It will not become ready: it exited, or was never there. `why` is for the user, without secrets."""

    why: str
    retryable: bool = True
    """Whether another launch may do better."""
    machine_lost: bool = False
    """The machine is what failed: nothing more is launched on it."""


@dataclass(frozen=True)
class HandOver:
    """Nothing is left to do for this runner: a process that the runtime started asks for the batch by its id, now or later.

    So the lease is handed back. Should nobody take it within `rest_s` seconds, a runner comes and looks again.
    """

    detail: str
    rest_s: float
    queued: bool = False
    """It waits for its turn, which may last. Otherwise that process is ready, and should take the batch soon."""


Probe = Pending | Ready | Gone | HandOver


class RuntimeFailed(Exception):
    """A launch that cannot work. `retryable`: the next try may (no port free), else never (a wrong option).

    `machine_lost`: never on this machine, though another one may do.
    """

    def __init__(self, why: str, *, retryable: bool, machine_lost: bool = False) -> None:
        super().__init__(why)
        self.why = why
        self.retryable = retryable
        self.machine_lost = machine_lost


class Runtime(Protocol):
    """Built once per runner process as `Class(settings)`; also from other packages, by entry point."""

    target: ClassVar[str]
    """The name in `aibrix.runtime.target`."""

    async def launch(self, spec: Spec) -> Handle:
        """Start, or find, the allocation of `spec.key`. Error: RuntimeFailed."""
        ...

    async def probe(self, spec: Spec, handle: Handle) -> Probe:
        """How it is now. Asked until Ready, then every few seconds while the batch runs."""
        ...

    async def release(self, handle: Handle) -> None:
        """Give it back. Fine if it is already gone."""
        ...

    async def list(self) -> list[Handle]:
        """Everything of this runtime that exists here, to find orphans at start."""
        ...

    async def close(self) -> None:
        """The process ends: let go of what cannot outlive it."""
        ...


@runtime_checkable
class OwnedByRunner(Protocol):
    """A power that a runtime may have: what it starts can be reached, and ended, by this process alone.

    So a runner that loses a lease ends it; the allocation of any other runtime is the next holder's to find or release.
    """

    owned_by_runner: ClassVar[Literal[True]]


@runtime_checkable
class Explaining(Protocol):
    """A power that a runtime may have: to say more about an engine that does not become ready in time."""

    async def explain(self, handle: Handle) -> str:
        """The last lines of its log, without secrets. Empty: nothing is known."""
        ...


@runtime_checkable
class Alerting(Protocol):
    """A power that a runtime may have: to say at once that something changed, while others are asked every few seconds."""

    def alert(self, handle: Handle, wake: Callable[[], None] | None) -> None:
        """Call `wake` whenever `probe` may say something else than before; None: no longer."""
        ...


@runtime_checkable
class Shared(Protocol):
    """A power that a runtime may have: what it starts can be reached, and ended, by any runner.

    So what `list` finds may belong to another runner, and is released only once its batch has ended. Handles have the
    batch's id as `key`.
    """

    shared_by_runners: ClassVar[Literal[True]]


@runtime_checkable
class LeftToOthers(Protocol):
    """A power that a runtime may have: when its runner drains, what it started stays for the next one, if there is one.

    If no other runner that is alive has the target, it is ended then: nobody knows when somebody comes.
    """

    left_to_others: ClassVar[Literal[True]]


@runtime_checkable
class Reusable(Protocol):
    """A power that a runtime may have: to keep an engine for the next batch of its kind, whose `launch` then finds it."""

    async def leave(self, spec: Spec, handle: Handle) -> bool:
        """Called instead of `release` when a batch with a kind is done. False: it is to be released after all."""
        ...


class RuntimeClass(Protocol):
    """What an entry point in the group `aibrix_batch.runtimes` names."""

    target: ClassVar[str]

    def __call__(self, settings: Settings) -> Runtime: ...
