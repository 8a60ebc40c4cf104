"""BatchProfile: how batches of a kind are scheduled, and how large they may be. Strict: unknown fields are refused."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from services.kit.errors import InvalidArgument
from services.kit.spec.client import MAX_CONCURRENCY, Strict
from services.kit.spec.template import Name
from services.kit.spec.window import parse_window

BEST_EFFORT = "best_effort"
MIB = 1024 * 1024
UNBOUNDED_GB = 10**9
PRIORITIES = {"high": 10, "normal": 0, "low": -10}


def _window(text: str) -> str:
    if text != BEST_EFFORT:
        try:
            parse_window(text)
        except InvalidArgument as error:
            raise ValueError(error.message) from error
    return text


class RetryHints(Strict):
    """Accepted and not honoured: a batch's `aibrix.client.retry_policy` decides."""

    max_retries: int = Field(default=2, ge=0, le=1000)
    """Attempts after the first."""
    backoff_seconds: list[float] = Field(default_factory=lambda: [5.0, 30.0], max_length=100)
    """Pauses between attempts."""
    retryable_errors: list[int] = Field(default_factory=lambda: [429, 500, 502, 503, 504], max_length=100)
    """HTTP status codes."""


class Scheduling(Strict):
    """An absent field says nothing: the batch's own value holds, else the server's."""

    max_concurrency: int | None = Field(default=None, ge=1, le=MAX_CONCURRENCY)
    """Requests in flight, for batches whose `aibrix.client.max_concurrency` is absent."""
    request_timeout_seconds: float | None = Field(default=None, ge=1, le=86_400)
    """Longest time for one attempt of one request."""
    priority: Literal["high", "normal", "low"] | None = None
    """Which batches a runner takes first."""
    completion_window: Annotated[str, Field(max_length=64), AfterValidator(_window)] | None = None
    """Such as `4h`: the batch ends at this deadline or its own, whichever is earlier. `best_effort`: it sets none, and
    gives way to other batches of its priority."""
    provider_preference: list[str] | None = Field(default=None, max_length=100)
    """Accepted and not honoured."""
    allow_preempt: bool | None = None
    """Accepted and not honoured."""
    allow_spot: bool | None = None
    """Accepted and not honoured."""
    retry_policy: RetryHints | None = None

    def rank(self) -> int:
        """What the batch's row is sorted by: higher first."""
        return PRIORITIES[self.priority or "normal"] - (self.completion_window == BEST_EFFORT)


class Quota(Strict):
    """How large a batch may be. It stands in place of the server's own limits; one that a batch brings along is never larger."""

    max_requests_per_batch: int = Field(default=50_000, ge=1, le=10**12)
    """Lines of the input file."""
    max_input_size_mb: float = Field(default=200, gt=0, le=10**9)
    """Size of the input file, in MiB."""
    max_output_size_gb: float = Field(default=10, gt=0, le=UNBOUNDED_GB)
    """In GiB, output and error lines together. A batch that passes it while it runs is stopped."""

    def input_bytes(self) -> int:
        return int(self.max_input_size_mb * MIB)

    def output_bytes(self) -> int:
        return int(self.max_output_size_gb * 1024 * MIB)

    def within(self, other: Quota) -> Quota:
        """The smaller of each."""
        return Quota(**{name: min(value, getattr(other, name)) for name, value in self})


class ProfileSpec(Strict):
    """What the profile says. A batch may bring the same along, as `aibrix.profile.spec`."""

    scheduling: Scheduling = Field(default_factory=Scheduling)
    quota: Quota = Field(default_factory=Quota)

    def ignored_fields(self) -> list[str]:
        """Fields that are set, accepted, and not honoured by anything here."""
        names = ("provider_preference", "allow_preempt", "allow_spot", "retry_policy")
        return [f"scheduling.{name}" for name in names if getattr(self.scheduling, name) not in (None, False, [])]


class Profile(Strict):
    """A named kind of batch."""

    name: Name
    """1 to 128 printable ASCII characters, the first a letter or a digit; unique in the list."""
    spec: ProfileSpec = Field(default_factory=ProfileSpec)

    def with_scheduling(self, overrides: dict[str, Any]) -> Self:
        """The profile with these scheduling fields over its own; null takes one away. Error: ValidationError."""
        given = self.spec.scheduling.model_dump(exclude_unset=True)
        scheduling = Scheduling.model_validate({**given, **overrides})
        return self.model_copy(update={"spec": self.spec.model_copy(update={"scheduling": scheduling})})


class ProfileList(Strict):
    """The document of a profile registry."""

    default: Name | None = None
    """Name of the profile of batches that name none; it must be among the items."""
    items: list[Profile] = Field(default_factory=list)
    """The profiles."""

    @model_validator(mode="after")
    def _default_exists(self) -> Self:
        if self.default is not None and all(item.name != self.default for item in self.items):
            raise ValueError("the default profile is not among the items")
        return self
