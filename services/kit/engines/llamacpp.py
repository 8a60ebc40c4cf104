"""llama.cpp: `llama-server --model FILE ...`."""

from __future__ import annotations

from services.kit.engines.base import Adapter, Values, plain_args
from services.kit.engines.flags import SPEC, Choice, Refused, Valued, invalid
from services.kit.engines.listed import HOST, REPOSITORY, SERVED, SWITCH, Integer, Kind, OneOf, Real
from services.kit.spec.template import EngineArgs, ModelSource, TemplateSpec

ARGS = (*SPEC, "engine_args")
LARGEST_CONTEXT = 2**31 - 1
# Type of speculation, and what its number of guesses is called.
METHODS = {
    "draft_model": ("draft-simple", "draft"),
    "eagle3": ("draft-eagle3", "draft"),
    "mtp": ("draft-mtp", "draft"),
    "dflash": ("draft-dflash", "draft"),
    "dspark": ("draft-dspark", "draft"),
    "ngram": ("ngram-simple", "simple"),
    "ngram_simple": ("ngram-simple", "simple"),
    "ngram_mod": ("ngram-mod", "mod"),
    "ngram_map_k": ("ngram-map-k", "map_k"),
    "ngram_map_k4v": ("ngram-map-k4v", "map_k4v"),
    "ngram_cache": ("ngram-cache", ""),
}


def _model_values(source: ModelSource, model: str | None) -> Values:
    """A repository is downloaded by the engine; anything else is a file."""
    values = {**source.model_dump(), "uri": model or source.uri}
    owner_and_name = source.uri.partition(":")[0]
    if model is None and source.type == "huggingface" and REPOSITORY.fullmatch(owner_and_name):
        values |= {"uri": None, "repository": source.uri}
    return values


def _typed_args(args: EngineArgs) -> Values:
    """`--ctx-size` is shared out among the slots in equal parts, max_model_len is what one request may use.

    Without a number of slots the engine makes some that share one context without limits, and fails all of them once it
    is full: so a length comes with a number.
    """
    values = plain_args(args)
    if args.max_model_len is not None:
        slots = args.max_num_seqs or 1
        total = args.max_model_len * slots
        if total > LARGEST_CONTEXT:
            raise invalid((*ARGS, "max_model_len"), f"times max_num_seqs it may be {LARGEST_CONTEXT} at most")
        values |= {"max_num_seqs": slots, "max_model_len": total}
    return {**values, **_speculation(args)}


def _speculation(args: EngineArgs) -> Values:
    method = (args.speculative_method or "").lower() or None
    if method is None and args.speculative_model is not None:
        # A draft model alone is loaded and not used.
        method = "draft_model"
    count = args.num_speculative_tokens
    values: Values = {"speculative_method": method}
    if count is not None and method in METHODS:
        values["guesses_" + METHODS[method][1]] = count
    return values


def _check(spec: TemplateSpec) -> None:
    args = spec.engine_args
    if args.num_speculative_tokens is None:
        return
    if args.speculative_method is None and args.speculative_model is None:
        raise invalid((*ARGS, "num_speculative_tokens"), "it needs speculative_method or speculative_model")
    if (args.speculative_method or "").lower() == "ngram_cache":
        raise invalid((*ARGS, "num_speculative_tokens"), "llama.cpp has no such number for ngram_cache")


PAIRED = [
    "--cont-batching",
    "--context-shift",
    "--kv-offload",
    "--kv-unified",
    "--cache-prompt",
    "--warmup",
    "--jinja",
    "--perf",
    "--repack",
    "--op-offload",
]
TYPES = OneOf(("f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1"))
TOKENS = Integer(0, LARGEST_CONTEXT)
THREADS = Integer(1, 4096)
LAYERS = Integer(0, 100_000, ("auto", "all"))
POSITIVE = Real(0, 1_000_000_000)
ON_OFF = OneOf(("on", "off", "auto"))

LISTED: dict[str, Kind] = {
    **dict.fromkeys(PAIRED, SWITCH),
    **{"--no-" + flag[2:]: SWITCH for flag in PAIRED},
    "--swa-full": SWITCH,
    "--embedding": SWITCH,
    "--embeddings": SWITCH,
    "--rerank": SWITCH,
    "--reranking": SWITCH,
    "--metrics": SWITCH,
    "--ctx-size": TOKENS,
    "-c": TOKENS,
    "--parallel": Integer(1, 1_000_000),
    "-np": Integer(1, 1_000_000),
    "--kv-unified-per-slot": TOKENS,
    "--batch-size": TOKENS,
    "-b": TOKENS,
    "--ubatch-size": TOKENS,
    "-ub": TOKENS,
    "--predict": TOKENS,
    "-n": TOKENS,
    "--keep": TOKENS,
    "--cache-reuse": TOKENS,
    "--cache-ram": Integer(0, 100_000_000),
    "--threads": THREADS,
    "-t": THREADS,
    "--threads-batch": THREADS,
    "-tb": THREADS,
    "--threads-http": THREADS,
    "--n-gpu-layers": LAYERS,
    "-ngl": LAYERS,
    "--split-mode": OneOf(("none", "layer", "row", "tensor")),
    "--main-gpu": Integer(0, 1024),
    "--flash-attn": ON_OFF,
    "-fa": ON_OFF,
    "--fit": OneOf(("on", "off")),
    "--cache-type-k": TYPES,
    "-ctk": TYPES,
    "--cache-type-v": TYPES,
    "-ctv": TYPES,
    "--rope-scaling": OneOf(("none", "linear", "yarn")),
    "--rope-scale": POSITIVE,
    "--rope-freq-base": POSITIVE,
    "--rope-freq-scale": POSITIVE,
    "--yarn-orig-ctx": TOKENS,
    "--pooling": OneOf(("none", "mean", "cls", "last", "rank")),
    "--reasoning-format": OneOf(("none", "auto", "deepseek", "deepseek-legacy")),
    "--seed": Integer(0, 2**32 - 1),
    "--temp": POSITIVE,
    "--top-k": TOKENS,
    "--top-p": Real(0, 1),
    "--min-p": Real(0, 1),
    "--timeout": Integer(1, 1_000_000),
    "--alias": SERVED,
    "-a": SERVED,
    "--host": HOST,
    "--port": Integer(1, 65_535),
}

ONE_DEVICE = Refused("llama.cpp has no such degree")
IN_THE_FILE = "a GGUF file says itself how its weights are quantized"

LLAMACPP = Adapter(
    engine="llamacpp",
    program=("llama-server",),
    port=9931,
    equals=False,
    model_values=_model_values,
    model={
        "uri": Valued("--model"),
        "repository": Valued("--hf-repo"),
        "served_model": Valued("--alias"),
        "revision": Refused("llama.cpp has no flag for it"),
        "tokenizer_path": Refused("a GGUF file holds its tokenizer"),
        "chat_template_path": Valued("--chat-template-file"),
    },
    served_model_flags=frozenset({"--alias", "-a"}),
    parallelism={"tp": ONE_DEVICE, "pp": ONE_DEVICE, "dp": ONE_DEVICE, "ep": ONE_DEVICE},
    typed_args=_typed_args,
    check=_check,
    engine_args={
        "max_num_seqs": Valued("--parallel"),
        "max_num_batched_tokens": Valued("--batch-size"),
        "max_model_len": Valued("--ctx-size"),
        "gpu_memory_utilization": Refused("llama.cpp has no such share; see its flag --n-gpu-layers"),
        # Both are on by themselves.
        "enable_prefix_caching": Choice({True: (), False: ("--no-cache-prompt",)}),
        "enable_chunked_prefill": Choice({True: ()}, "llama.cpp always reads a prompt in parts"),
        "speculative_method": Choice(
            {name: ("--spec-type", word) for name, (word, _) in METHODS.items()},
            "llama.cpp knows " + ", ".join(METHODS),
        ),
        "speculative_model": Valued("--model-draft"),
        "guesses_draft": Valued("--spec-draft-n-max"),
        "guesses_simple": Valued("--spec-ngram-simple-size-m"),
        "guesses_mod": Valued("--spec-ngram-mod-n-max"),
        "guesses_map_k": Valued("--spec-ngram-map-k-size-m"),
        "guesses_map_k4v": Valued("--spec-ngram-map-k4v-size-m"),
    },
    quantization={
        "weight": Refused(IN_THE_FILE),
        "kv_cache": Valued("--cache-type-k", also="--cache-type-v", omit="auto"),
    },
    listed=LISTED,
)
