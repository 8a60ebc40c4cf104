"""How each type of engine is started: one adapter a row, from a template to an argument list. There is never a shell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from services.kit.engines.base import Adapter
from services.kit.engines.flags import SPEC, Path, Words, invalid, other, render
from services.kit.engines.listed import REPOSITORY, check_name, check_words
from services.kit.engines.llamacpp import LLAMACPP
from services.kit.engines.mock import MOCK
from services.kit.engines.sglang import SGLANG
from services.kit.engines.vllm import VLLM
from services.kit.spec.template import CONTROL, EngineArgs, ModelSource, TemplateSpec

ADAPTERS: dict[str, Adapter] = {adapter.engine: adapter for adapter in (VLLM, SGLANG, LLAMACPP, MOCK)}

# Of vLLM's, `custom_class` is missing: it imports what the speculative model names.
SPECULATIVE_METHODS = [
    "dflash",
    "draft_model",
    "dspark",
    "eagle",
    "eagle3",
    "mtp",
    "nextn",
    "ngram",
    "ngram_gpu",
    "ngram_cache",
    "ngram_map_k",
    "ngram_map_k4v",
    "ngram_mod",
    "ngram_simple",
    "standalone",
    "suffix",
]


def adapter_of(spec: TemplateSpec) -> Adapter:
    """Error: InvalidArgument that lists the types that have an adapter."""
    adapter = ADAPTERS.get(spec.engine.type)
    if adapter is None:
        known = ", ".join(sorted(ADAPTERS))
        raise invalid((*SPEC, "engine", "type"), f"'{spec.engine.type}' cannot be started here; these can: {known}")
    return adapter


def arguments(spec: TemplateSpec, *, model: str | None = None, served_model: str | None = None) -> Words:
    """Everything behind the program: model, parallelism, engine_args, quantization, serve_args.

    `model` replaces model_source.uri (a downloaded copy). Host and port are not in it: a runtime appends its own behind
    everything, so that those of a template have no effect. Error: InvalidArgument with the path of the field.
    """
    adapter = adapter_of(spec)
    values = adapter.model_values(spec.model_source, _bare(model, (*SPEC, "model_source", "uri")))
    if not _names_itself(adapter, spec):
        values["served_model"] = _bare(served_model, ("aibrix", "model"))
    words = (*render(adapter.model, values, "model_source"), *flags(spec), *spec.engine.serve_args)
    try:
        "".join(words).encode()
    except UnicodeEncodeError as error:
        raise invalid(SPEC, "an argument of the engine is not valid Unicode") from error
    return words


def flags(spec: TemplateSpec) -> Words:
    """Parallelism, engine_args and quantization only. Error: as arguments()."""
    adapter = adapter_of(spec)
    adapter.check(spec)
    degrees = {name: degree for name, degree in adapter.degrees(spec.parallelism).items() if degree > 1}
    return (
        *render(adapter.parallelism, degrees, "parallelism"),
        *render(adapter.engine_args, adapter.typed_args(spec.engine_args), "engine_args"),
        *adapter.other_args(spec.engine_args),
        *render(adapter.quantization, spec.quantization.model_dump(), "quantization"),
    )


def check_renderable(spec: TemplateSpec, *, served_model: str | None = None) -> None:
    """Error: what arguments() would raise."""
    arguments(spec, served_model=served_model)


def check_listed_args(engine_type: str, engine_args: Mapping[str, Any], path: Path) -> None:
    """engine_args that a batch brings along: typed fields, and flags of the allow-list. `path`: where they stand.

    They have the types of EngineArgs already. Error: InvalidArgument with the key's path.
    """
    adapter = ADAPTERS.get(engine_type)
    if adapter is None:
        return
    for key, value in engine_args.items():
        place = (*path, key)
        if key not in EngineArgs.model_fields:
            words = other(key, value, place, equals=adapter.equals) if value is not None else ()
            check_words(adapter.listed, words, place, equals=adapter.equals)
            if not words:
                # Nothing would be given, but what an operator gave would be taken away.
                check_name(adapter.listed, "--" + key.replace("_", "-"), place)
        elif value is not None:
            _check_speculative(key, value, place)


def check_listed_flags(engine_type: str, serve_args: Sequence[str], path: Path) -> None:
    """serve_args that a batch brings along: flags of the allow-list. Error: InvalidArgument with `path`."""
    if adapter := ADAPTERS.get(engine_type):
        check_words(adapter.listed, serve_args, path, equals=adapter.equals)


def check_listed_model(engine_type: str, source: ModelSource, path: Path) -> None:
    """Files beside the model that a batch's own template names: none. Error: InvalidArgument with the field's path."""
    if engine_type not in ADAPTERS:
        return
    if source.chat_template_path is not None:
        raise invalid((*path, "chat_template_path"), "a template of the operator's registry may name a file")
    if source.tokenizer_path is not None and not REPOSITORY.fullmatch(source.tokenizer_path):
        raise invalid((*path, "tokenizer_path"), "it must be a repository such as 'owner/name'")


def _check_speculative(key: str, value: Any, path: Path) -> None:
    if key == "speculative_method" and value.lower() not in SPECULATIVE_METHODS:
        raise invalid(path, f"it must be one of {', '.join(SPECULATIVE_METHODS)}")
    if key == "speculative_model" and not REPOSITORY.fullmatch(value):
        raise invalid(path, "it must be a repository such as 'owner/name'")


def _names_itself(adapter: Adapter, spec: TemplateSpec) -> bool:
    """Whether the template says under which name the model is served."""
    keys = ("--" + key for key in spec.engine_args.others())
    raw = (word.partition("=")[0] for word in spec.engine.serve_args if word.startswith("-"))
    return any(word.replace("_", "-") in adapter.served_model_flags for word in (*keys, *raw))


def _bare(text: str | None, path: Path) -> str | None:
    """It stands on a command line, where a leading dash would make a flag of it."""
    if text is not None and (not text or text.startswith("-") or CONTROL.search(text)):
        raise invalid(path, "it may not be empty, begin with a dash or hold control characters")
    return text
