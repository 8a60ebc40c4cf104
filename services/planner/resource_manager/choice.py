"""Which offer a provision takes next. Pure: it decides from what is wanted, what is offered, and what was refused before."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from math import inf
from typing import Protocol

from services.planner.domain import Group, Offer, Provision, ProvisionSpec
from services.planner.resource_manager.base import Provider

CPU = Group()
LONGEST_MESSAGE = 1000
# The same card is sold as 141 and as 143 GB.
TOLERANCE = 0.03
# What a cloud refuses for these reasons when it may choose the place, it has in none of its places.
EVERYWHERE = frozenset({"NoCapacity", "NoGpuType"})
# Another try after these may work elsewhere, but not later: time mends none of them.
OF_THE_REQUEST = frozenset({"InvalidRequest", "NoGpuType"})
# Which of several reasons is told: what can be waited for, then what somebody has to mend.
MOST_USEFUL = ("NoCapacity", "ProviderUnavailable", "InvalidCredential", "QuotaExceeded", "InvalidRequest", "NoGpuType")


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """Why an offer, or all of a provider (`instance_type` None), is not asked again."""

    provider: str = ""
    region: str = ""
    instance_type: str | None = None
    code: str
    message: str
    retryable: bool

    def covers(self, offer: Offer) -> bool:
        if self.provider != offer.provider:
            return False
        if self.instance_type is None:
            return True
        everywhere = not self.region and self.code in EVERYWHERE
        return self.instance_type == offer.instance_type and (everywhere or self.region == offer.region)

    def passes(self) -> bool:
        """Whether the same may be had later."""
        return self.retryable and self.code not in OF_THE_REQUEST


@dataclass(frozen=True, kw_only=True)
class Search:
    """How far the search for compute is; the column `tried` of a provision."""

    refused: tuple[Refusal, ...] = ()
    offer: Offer | None = None
    """The one that was chosen."""
    asked: bool = False
    """The provider may have been asked, and its answer is not known."""
    missing_since: datetime | None = None
    """When a machine that was asked for was first looked for in vain."""
    named: int = 0
    """How many names of machines were given out: none is used for two requests."""
    failures: int = 0
    """Calls in a row that failed, or had to be repeated, for reasons that pass."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """A provision whose lease this process holds, with what its users do not see."""

    provision: Provision
    spec: ProvisionSpec
    search: Search
    token: int
    provisioning_time: datetime | None
    now: datetime
    """The database's time when the row was read."""


class Match(Protocol):
    """Whether `offer` has the accelerator that a user calls `wanted`. Neither True nor False: it is not clear which one is
    meant, and `str()` of the answer says what to ask."""

    def __call__(self, wanted: str, offer: Offer) -> object: ...


class Counted(Provider, Protocol):
    """A provider of what is there anyway: what is taken of it is counted in our store, so nothing of it can be leaked, and
    asking for it again is harmless."""

    def narrowed(self, spec: ProvisionSpec, offer: Offer) -> Offer | None:
        """What of `offer` this spec would take; None if it is not for it. Accelerators are compared by the caller."""
        ...

    def capacity(self, offer: Offer) -> int:
        """How many units there are of what it is part of: GPUs, or, where an offer has none, provisions at once."""
        ...


def counted(provider: Provider | None) -> Counted | None:
    """The provider, if it is one whose capacity is counted in our store."""
    return provider if hasattr(provider, "capacity") else None  # type: ignore[return-value]


def group_of(spec: ProvisionSpec) -> Group:
    """The only group; none means a CPU."""
    return spec.groups[0] if spec.groups else CPU


def describe(group: Group) -> str:
    if not group.gpus_per_replica:
        return "a CPU machine"
    memory = (
        f" with {group.accelerator_preference.min_memory_gb} GB" if group.accelerator_preference.min_memory_gb else ""
    )
    return f"{group.gpus_per_replica} x {' or '.join(group.accelerator_preference.preferred_types)}{memory}"


@dataclass(frozen=True)
class _Candidate:
    offer: Offer
    type_rank: int


@dataclass
class Choice:
    """One look at the catalogs. `offers` are of configured providers only."""

    spec: ProvisionSpec
    providers: Mapping[str, Provider]
    match: Match
    unclear: list[str] = field(default_factory=list)

    def choose(self, offers: Sequence[Offer], refused: Sequence[Refusal]) -> Offer | Refusal:
        """The best offer that nobody refused: by the order of providers, of accelerators, of regions, then by price; of those
        that are equal, the first."""
        dropped = {no.provider for no in refused if no.instance_type is None}
        asked = [name for name in self.spec.providers or self.providers if name not in dropped]
        wished = self._wished(offers, asked)
        if self.unclear:
            return Refusal(code="NoGpuType", message=self.unclear[0], retryable=False)
        if isinstance(wished, Refusal):
            return summary([*refused, wished] if asked or not refused else refused)
        unrefused = [one for one in wished if not any(no.covers(one.offer) for no in refused)]
        if left := [one for one in unrefused if one.offer.available]:
            return min(left, key=self._rank).offer
        return summary([*refused, self._none(asked, " now", retryable=True)] if unrefused else refused)

    def _wished(self, offers: Sequence[Offer], asked: Collection[str]) -> list[_Candidate] | Refusal:
        """What is as it is wanted, be it available or not: never empty."""
        suited = [candidate for offer in offers if (candidate := self._suited(offer))]
        if not suited:
            return self._none(asked, code="NoGpuType" if group_of(self.spec).gpus_per_replica else "NoCapacity")
        near = [candidate for candidate in suited if self._is_near(candidate.offer)]
        if not near:
            # A cloud that has no capacity anywhere names no region.
            nowhere = any(not candidate.offer.region for candidate in suited)
            return self._none(asked, f" in {', '.join(self.spec.regions)}", retryable=nowhere)
        cheap = [candidate for candidate in near if self._is_cheap(candidate.offer)]
        return cheap or self._none(asked, f" for at most {self.spec.max_hourly_price_usd:g} USD an hour")

    def _suited(self, offer: Offer) -> _Candidate | None:
        if self.spec.providers and offer.provider not in self.spec.providers:
            return None
        if not 0 <= offer.hourly_price_usd < inf:  # a price that is none would win every comparison
            return None
        group = group_of(self.spec)
        if (own := counted(self.providers.get(offer.provider))) is not None:
            taken = own.narrowed(self.spec, offer)
            if taken is None:
                return None
            # What is there anyway may not say what it has: then its labels, or the cluster, decide.
            rank = self._type_rank(group, taken) if taken.accelerator and group.gpus_per_replica else 0
            return None if rank is None else _Candidate(taken, rank)
        if offer.gpus != group.gpus_per_replica:
            return None
        rank = self._type_rank(group, offer) if offer.gpus else 0
        return None if rank is None else _Candidate(offer, rank)

    def _type_rank(self, group: Group, offer: Offer) -> int | None:
        """The place of the first wanted accelerator that it has; None: it has none of them."""
        wanted = group.accelerator_preference
        enough = offer.memory_gb * (1 + TOLERANCE) >= wanted.min_memory_gb
        if offer.memory_gb and not enough:
            return None
        for rank, name in enumerate(wanted.preferred_types):
            answer = self.match(name, offer)
            # A least size of memory was asked for: whichever is meant, it is large enough.
            if answer is True or (answer is not False and wanted.min_memory_gb and enough):
                return rank
            if answer is not False:
                self.unclear.append(str(answer))
        return None

    def _is_near(self, offer: Offer) -> bool:
        """What is there anyway may have no region; of a cloud, no region means anywhere."""
        if not self.spec.regions or offer.region in self.spec.regions:
            return True
        return not offer.region and counted(self.providers.get(offer.provider)) is not None

    def _is_cheap(self, offer: Offer) -> bool:
        most = self.spec.max_hourly_price_usd
        return most is None or offer.hourly_price_usd * group_of(self.spec).replicas <= most

    def _rank(self, candidate: _Candidate) -> tuple[int, int, int, float]:
        offer, spec = candidate.offer, self.spec
        return (
            spec.providers.index(offer.provider) if spec.providers else 0,
            candidate.type_rank,
            spec.regions.index(offer.region) if offer.region in spec.regions else len(spec.regions),
            offer.hourly_price_usd,
        )

    def _none(
        self, asked: Collection[str], where: str = "", *, code: str = "NoCapacity", retryable: bool = False
    ) -> Refusal:
        message = f"{', '.join(asked)}: no offer of {self._wish()}{where}"
        return Refusal(code=code, message=message, retryable=retryable)

    def _wish(self) -> str:
        labels = ", ".join(f"{name}={value}" for name, value in sorted(self.spec.labels.items()))
        return describe(group_of(self.spec)) + (f" with the labels {labels}" if labels else "")


def summary(refusals: Sequence[Refusal]) -> Refusal:
    """Several refusals (at least one) as one: the most useful first. It can be retried if one of them passes with time."""
    passing = [no for no in refusals if no.passes()]
    told = min(passing or refusals, key=_usefulness)
    texts = [f"{no.provider}: {no.message}" if no.provider else no.message for no in (told, *refusals)]
    return Refusal(code=told.code, message="; ".join(dict.fromkeys(texts))[:LONGEST_MESSAGE], retryable=bool(passing))


def _usefulness(refusal: Refusal) -> int:
    return MOST_USEFUL.index(refusal.code) if refusal.code in MOST_USEFUL else len(MOST_USEFUL)
