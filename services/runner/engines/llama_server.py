"""llama.cpp's OpenAI-compatible server from a Python package (xllamacpp), where no `llama-server` is installed.

It takes flags of `llama-server` by the same names and refuses the others, serves until SIGTERM, and logs errors only:
llama.cpp's warnings may quote requests.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

PACKAGE = "xllamacpp"
# As `llama-server` does it when nobody says how many: a few at once, which share the context.
AUTOMATIC = {"n_parallel": 4, "kv_unified": True}
# Ours, not llama.cpp's: errors only, no pages, and nothing for browsers, since whatever a browser shows could ask it.
DEFAULTS = {"verbosity": 1, "ui": False, "endpoint_slots": False, "cors_origins": "", "port": 8080}


@dataclass(frozen=True)
class Names:
    """Values that are constants of the package, by what the command line calls them."""

    kind: str
    prefix: str
    words: tuple[str, ...]

    def value(self, package: Any, word: str) -> Any:
        constant = {"on": "enabled", "off": "disabled"}.get(word, word)
        return getattr(getattr(package, self.kind), self.prefix + constant.upper().replace("-", "_"))


CACHE_TYPES = Names("ggml_type", "GGML_TYPE_", ("f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1"))
ON_OFF_AUTO = Names("llama_flash_attn_type", "LLAMA_FLASH_ATTN_TYPE_", ("on", "off", "auto"))
POOLING = Names("llama_pooling_type", "LLAMA_POOLING_TYPE_", ("none", "mean", "cls", "last", "rank"))
ROPE = Names("llama_rope_scaling_type", "LLAMA_ROPE_SCALING_TYPE_", ("none", "linear", "yarn"))
SPLIT = Names("llama_split_mode", "LLAMA_SPLIT_MODE_", ("none", "layer", "row", "tensor"))
REASONING = Names(
    "common_reasoning_format", "COMMON_REASONING_FORMAT_", ("none", "auto", "deepseek", "deepseek-legacy")
)
SPECULATION = Names(
    "common_speculative_type",
    "COMMON_SPECULATIVE_TYPE_",
    (
        "none",
        "draft-simple",
        "draft-eagle3",
        "draft-mtp",
        "draft-dflash",
        "draft-dspark",
        "ngram-simple",
        "ngram-map-k",
        "ngram-map-k4v",
        "ngram-mod",
        "ngram-cache",
    ),
)


def seed(text: str) -> int:
    """-1 is "any", which llama.cpp keeps as the largest number."""
    return int(text) & 0xFFFFFFFF


def layers(text: str) -> int:
    return {"auto": -1, "all": 9999}.get(text) or int(text)


def on_off(text: str) -> bool:
    if text not in ("on", "off"):
        raise ValueError("neither on nor off")
    return text == "on"


def inverse(text: str) -> float:
    """llama.cpp keeps the scale of frequencies, which is one through that of the context."""
    scale = float(text)
    if scale <= 0:
        raise ValueError("not above 0")
    return 1 / scale


def comma_separated(text: str) -> list[str]:
    return [part for part in text.split(",") if part]


def template_arguments(text: str) -> dict[str, str]:
    """Each value is JSON again, as llama.cpp keeps them."""
    given = json.loads(text)
    if not isinstance(given, dict):
        raise ValueError("not a JSON object")
    return {name: json.dumps(value) for name, value in given.items()}


def file_text(name: str) -> str:
    try:
        return Path(name).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise argparse.ArgumentTypeError(f"the file cannot be read: {error}") from error


# Field of the package's parameters -> how its value is read, and the flag's names in llama-server.
VALUES: dict[str, tuple[Any, ...]] = {
    "model.path": (str, "--model", "-m"),
    "model_alias": (lambda text: set(comma_separated(text)), "--alias", "-a"),
    "hostnames": (comma_separated, "--host"),
    "port": (int, "--port"),
    "api_prefix": (str, "--api-prefix"),
    "n_ctx": (int, "--ctx-size", "-c"),
    "n_parallel": (int, "--parallel", "-np"),
    "kv_unified_per_slot": (int, "--kv-unified-per-slot"),
    "n_batch": (int, "--batch-size", "-b"),
    "n_ubatch": (int, "--ubatch-size", "-ub"),
    "n_predict": (int, "--predict", "--n-predict", "-n"),
    "n_keep": (int, "--keep"),
    "cache_type_k": (CACHE_TYPES, "--cache-type-k", "-ctk"),
    "cache_type_v": (CACHE_TYPES, "--cache-type-v", "-ctv"),
    "cache_ram_mib": (int, "--cache-ram", "-cram"),
    "n_cache_reuse": (int, "--cache-reuse"),
    "cpuparams.n_threads": (int, "--threads", "-t"),
    "cpuparams_batch.n_threads": (int, "--threads-batch", "-tb"),
    "n_threads_http": (int, "--threads-http"),
    "n_gpu_layers": (layers, "--gpu-layers", "--n-gpu-layers", "-ngl"),
    "main_gpu": (int, "--main-gpu", "-mg"),
    "split_mode": (SPLIT, "--split-mode", "-sm"),
    "flash_attn_type": (ON_OFF_AUTO, "--flash-attn", "-fa"),
    "rope_scaling_type": (ROPE, "--rope-scaling"),
    "rope_freq_base": (float, "--rope-freq-base"),
    "rope_freq_scale": (float, "--rope-freq-scale"),
    "rope_scale": (inverse, "--rope-scale"),
    "yarn_orig_ctx": (int, "--yarn-orig-ctx"),
    "fit_params": (on_off, "--fit"),
    "pooling_type": (POOLING, "--pooling"),
    "chat_template": (str, "--chat-template"),
    "chat_template_file": (file_text, "--chat-template-file"),
    "default_template_kwargs": (template_arguments, "--chat-template-kwargs"),
    "reasoning_format": (REASONING, "--reasoning-format"),
    "sampling.seed": (seed, "--seed", "-s"),
    "sampling.temp": (float, "--temperature", "--temp"),
    "sampling.top_k": (int, "--top-k"),
    "sampling.top_p": (float, "--top-p"),
    "sampling.min_p": (float, "--min-p"),
    "sampling.penalty_repeat": (float, "--repeat-penalty"),
    "sampling.penalty_present": (float, "--presence-penalty"),
    "sampling.penalty_freq": (float, "--frequency-penalty"),
    "slot_prompt_similarity": (float, "--slot-prompt-similarity", "-sps"),
    "speculative.type": (SPECULATION, "--spec-type"),
    "speculative.draft.mparams.path": (str, "--spec-draft-model", "--model-draft", "-md"),
    "speculative.draft.n_max": (int, "--spec-draft-n-max"),
    "speculative.draft.n_min": (int, "--spec-draft-n-min"),
    "speculative.ngram_mod.n_max": (int, "--spec-ngram-mod-n-max"),
    "speculative.ngram_mod.n_min": (int, "--spec-ngram-mod-n-min"),
    "speculative.ngram_mod.n_match": (int, "--spec-ngram-mod-n-match"),
    "speculative.ngram_simple.size_m": (int, "--spec-ngram-simple-size-m"),
    "speculative.ngram_map_k.size_m": (int, "--spec-ngram-map-k-size-m"),
    "speculative.ngram_map_k4v.size_m": (int, "--spec-ngram-map-k4v-size-m"),
    "timeout": (int, "--timeout", "-to"),
    "verbosity": (int, "--verbosity", "--log-verbosity", "-lv"),
}
# Each also has a form with `no-`.
SWITCHES: dict[str, tuple[str, ...]] = {
    "kv_unified": ("--kv-unified", "-kvu"),
    "cont_batching": ("--cont-batching", "-cb"),
    "cache_prompt": ("--cache-prompt",),
    "ctx_shift": ("--context-shift",),
    "warmup": ("--warmup",),
    "swa_full": ("--swa-full",),
    "use_jinja": ("--jinja",),
    "prefill_assistant": ("--prefill-assistant",),
    "embedding": ("--embedding", "--embeddings"),
    "reranking": ("--reranking", "--rerank"),
    "endpoint_metrics": ("--metrics",),
    "endpoint_slots": ("--slots",),
    "check_tensors": ("--check-tensors",),
    "perf": ("--perf",),
    "repack": ("--repack",),
    "kv_offload": ("--kv-offload", "-kvo"),
    "op_offload": ("--op-offload",),
}
# What the package says the other way round.
INVERSE = {
    "perf": "no_perf",
    "repack": "no_extra_bufts",
    "kv_offload": "no_kv_offload",
    "op_offload": "no_op_offload",
}
# Names of ours for what goes into a field that another flag also sets, or is a list.
SAME = {"chat_template_file": "chat_template", "rope_scale": "rope_freq_scale", "speculative.type": "speculative.types"}


def parse_arguments(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Fields of the package's parameters; what is not given is absent."""
    parser = argparse.ArgumentParser(
        prog="llama_server",
        usage="llama_server --model FILE [flags of llama-server]",
        description=__doc__,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    for field, (read, *names) in VALUES.items():
        known: dict[str, Any] = {"choices": read.words} if isinstance(read, Names) else {"type": read}
        metavar = None if isinstance(read, Names) else "VALUE"
        parser.add_argument(*names, dest=field, required=field == "model.path", metavar=metavar, **known)
    for field, switch in SWITCHES.items():
        parser.add_argument(*switch, dest=field, action=argparse.BooleanOptionalAction)
    return vars(parser.parse_args(arguments))


def fields_of(given: Mapping[str, Any]) -> dict[str, Any]:
    """With the defaults, and with flags resolved that are not a field by themselves."""
    fields = {**DEFAULTS, **({} if "n_parallel" in given else AUTOMATIC), **given}
    if fields.pop("reranking", False):
        fields |= {"embedding": True, "pooling_type": "rank"}
    if (seconds := fields.pop("timeout", None)) is not None:
        fields |= {"timeout_read": seconds, "timeout_write": seconds}
    for name, field in INVERSE.items():
        if name in fields:
            fields[field] = not fields.pop(name)
    return fields


def parameters(package: Any, fields: Mapping[str, Any]) -> Any:
    found = package.CommonParams()
    for field, value in fields.items():
        *path, name = SAME.get(field, field).split(".")
        read = VALUES.get(field, (None,))[0]
        plain = read.value(package, value) if isinstance(read, Names) else value
        setattr(reduce(getattr, path, found), name, [plain] if name == "types" else plain)
    return found


def serve(package: Any, fields: Mapping[str, Any]) -> NoReturn:
    """Serve until SIGTERM or SIGINT. While the model loads, a signal ends the process by itself."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        server = package.Server(parameters(package, fields))
    except (RuntimeError, ValueError, OverflowError) as error:
        sys.exit(f"error: llama.cpp did not start: {error}")
    # Whichever of the threads gets the signal, its number arrives here.
    arrived, number = os.pipe()
    os.set_blocking(number, False)
    signal.set_wakeup_fd(number)
    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, lambda *_: None)
    sys.stderr.write(f"llama.cpp serves at {server.listening_address}\n")
    os.read(arrived, 1)
    # At once: the server's own end waits for answers that nobody wants any more, and while one is under way it hangs.
    os._exit(0)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    given = parse_arguments(arguments)
    try:
        package = import_module(PACKAGE)
    except ImportError as error:
        sys.exit(f'error: {error}: pip install "aibrix-batch[llamacpp]"')
    serve(package, fields_of(given))


if __name__ == "__main__":
    main()
