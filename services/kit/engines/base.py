"""What an engine adapter is: where the engine's program is, and rules from the fields of a template to flags."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from services.kit.engines.flags import SPEC, Rule, Words, other
from services.kit.engines.listed import Listed
from services.kit.spec.template import EngineArgs, ModelSource, Parallelism, TemplateSpec

Values = dict[str, Any]


def plain_model(source: ModelSource, model: str | None) -> Values:
    return {**source.model_dump(), "uri": model or source.uri}


def plain_degrees(parallelism: Parallelism) -> Values:
    return parallelism.model_dump()


def plain_args(args: EngineArgs) -> Values:
    return args.model_dump(include=set(EngineArgs.model_fields))


def no_more(spec: TemplateSpec) -> None:
    """Nothing else is to be checked."""


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """First functions bring the fields into the engine's own terms, then a rule for each value makes words of it."""

    engine: str
    program: Words
    """What is started; `python` stands for the Python that has the engine."""
    port: int
    """Where it listens if nobody says."""
    equals: bool = True
    """Whether it knows `--flag=value` beside `--flag value`."""

    model: Mapping[str, Rule]
    """Fields of model_source, and `served_model`."""
    parallelism: Mapping[str, Rule]
    engine_args: Mapping[str, Rule]
    quantization: Mapping[str, Rule]
    served_model_flags: frozenset[str] = frozenset()
    """Spellings of the flag for the served name, with dashes."""
    listed: Listed
    """Flags that a template may set that a batch brings along."""

    model_values: Callable[[ModelSource, str | None], Values] = plain_model
    degrees: Callable[[Parallelism], Values] = plain_degrees
    """One is left out."""
    typed_args: Callable[[EngineArgs], Values] = plain_args
    check: Callable[[TemplateSpec], None] = no_more
    """Error: InvalidArgument."""

    def other_args(self, args: EngineArgs) -> Words:
        words: list[str] = []
        for key, value in args.others().items():
            words += other(key, value, (*SPEC, "engine_args", key), equals=self.equals)
        return tuple(words)

    def flags(self) -> frozenset[str]:
        """Every flag that a field of its own may become."""
        groups = (self.model, self.parallelism, self.engine_args, self.quantization)
        return frozenset(flag for rules in groups for rule in rules.values() for flag in rule.flags)
