"""How many slots of runners the present work deserves: pure arithmetic, and what a ScaledObject may say about it.

Why so: docs/decisions/0016-slots-by-deadline.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from services.kit.spec.block import as_invalid

METADATA = "scalerMetadata"
# KEDA hands over all metadata of the trigger: these are for itself.
KEDAS_OWN = frozenset({"scalerAddress", "enableTLS", "unsafeSsl", "tlsCertFile"})
# Whoever holds a batch of these targets is a runner of the batch's own, which no ScaledObject starts or stops.
OWN_RUNNER = frozenset({"KubernetesJob"})
MOST_TARGETS = 100


def _names(text: Any) -> Any:
    """`a, b` as names, each once."""
    return tuple(dict.fromkeys(name for part in text.split(",") if (name := part.strip())))


Target = Annotated[str, Field(max_length=128, pattern=r"^[^\x00]*$")]


class Wishes(BaseModel):
    """The metadata of a ScaledObject's trigger, all of it text. Unknown keys are refused: a typo must not pass for a default."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, alias_generator=to_camel)

    targets: Annotated[tuple[Target, ...], BeforeValidator(_names), Field(max_length=MOST_TARGETS)] = ()
    """Targets of batches that count. None: all."""
    slots_per_runner: int | None = Field(default=None, ge=1, le=10_000)
    """Batches that a runner runs at once. None: what metadata's own settings say of runners."""
    relaxed_weight: float = Field(default=0.25, ge=0, le=1)
    """What a batch that can wait counts at least, in slots. 1: each gets a slot at once."""
    lines_per_second: float = Field(default=1.0, ge=1e-6, le=1e6)
    """How fast a batch is taken to run of which nothing is done yet."""
    startup_seconds: float = Field(default=300.0, ge=0, le=86_400)
    """How long it may take until a runner and an engine are there for it."""

    @property
    def startup(self) -> timedelta:
        return timedelta(seconds=self.startup_seconds)


@dataclass(frozen=True, kw_only=True)
class Backlog:
    """Batches that a runner runs, or could run now."""

    held_count: int
    """A runner has them."""
    urgent_count: int
    """No runner has them, and they can wait no longer."""
    share: float
    """What those that are held and those that can wait need of slots, to be done by their deadlines one after the other."""

    def slots(self) -> float:
        """A slot for each that is held or urgent; those that can wait share what is there, or what they need. To 1/1000."""
        return round(self.urgent_count + max(float(self.held_count), self.share), 3)


def read_wishes(metadata: Mapping[str, str]) -> Wishes:
    """An empty text is as nothing said. Error: InvalidArgument, param such as `scalerMetadata.slotsPerRunner`."""
    said = {key: text for key, text in metadata.items() if text.strip() and key not in KEDAS_OWN}
    try:
        return Wishes.model_validate(said)
    except ValidationError as error:
        raise as_invalid(error.errors(include_url=False, include_input=False)[0], METADATA) from error
