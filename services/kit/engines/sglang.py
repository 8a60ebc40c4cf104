"""SGLang: `python -m sglang.launch_server --model-path MODEL ...`."""

from __future__ import annotations

from services.kit.engines.base import Adapter, Values, plain_args
from services.kit.engines.flags import SPEC, Choice, Valued, invalid
from services.kit.engines.listed import HOST, SERVED, SWITCH, Integer, Kind, OneOf, Real, Word
from services.kit.spec.template import EngineArgs, Parallelism, TemplateSpec

ARGS = (*SPEC, "engine_args")
ALGORITHMS = {
    "eagle": "EAGLE",
    "eagle3": "EAGLE3",
    "mtp": "NEXTN",
    "nextn": "NEXTN",
    "draft_model": "STANDALONE",
    "standalone": "STANDALONE",
    "ngram": "NGRAM",
    "dflash": "DFLASH",
    "dspark": "DSPARK",
}
# These want all three numbers, or none.
CHAINS = {"EAGLE", "EAGLE3", "NEXTN", "STANDALONE"}


def _degrees(parallelism: Parallelism) -> Values:
    """SGLang's ep is a part of its tp. In a template ep stands for ranks of its own, and they become ranks of tp."""
    values = parallelism.model_dump()
    if parallelism.ep > 1:
        if parallelism.tp > 1:
            raise invalid(
                (*SPEC, "parallelism", "ep"),
                "SGLang spreads experts over the ranks of tp; leave ep at 1 and set engine_args.ep_size",
            )
        values["tp"] = parallelism.ep
    return values


def _typed_args(args: EngineArgs) -> Values:
    """A chain of k guesses is verified together with the token before it: k + 1 tokens."""
    method = (args.speculative_method or "").lower() or None
    values = {**plain_args(args), "speculative_method": method}
    count = args.num_speculative_tokens
    if count is not None:
        values["draft_tokens"] = count + 1
        if ALGORITHMS.get(method or "") in CHAINS:
            values |= {"steps": count, "breadth": 1}
    return values


def _check(spec: TemplateSpec) -> None:
    args = spec.engine_args
    if args.enable_chunked_prefill is False and args.max_num_batched_tokens is not None:
        raise invalid((*ARGS, "enable_chunked_prefill"), "with SGLang, max_num_batched_tokens is the size of a chunk")
    if args.speculative_method is None:
        for name in ("speculative_model", "num_speculative_tokens"):
            if getattr(args, name) is not None:
                raise invalid((*ARGS, name), "SGLang needs speculative_method with it")


SWITCHES = [
    "--disable-radix-cache",
    "--disable-overlap-schedule",
    "--disable-custom-all-reduce",
    "--disable-cuda-graph-padding",
    "--enable-mixed-chunk",
    "--enable-p2p-check",
    "--enable-torch-compile",
    "--enable-metrics",
    "--enable-cache-report",
    "--is-embedding",
    "--enable-deterministic-inference",
    "--skip-server-warmup",
    "--allow-auto-truncate",
]
DEGREE = Integer(1, 1024)
TOKENS = Integer(1, 1_000_000_000)
NAME = Word()

LISTED: dict[str, Kind] = {
    **dict.fromkeys(SWITCHES, SWITCH),
    "--tp-size": DEGREE,
    "--tensor-parallel-size": DEGREE,
    "--pp-size": DEGREE,
    "--pipeline-parallel-size": DEGREE,
    "--dp-size": DEGREE,
    "--data-parallel-size": DEGREE,
    "--ep-size": DEGREE,
    "--expert-parallel-size": DEGREE,
    "--attn-dp-size": DEGREE,
    "--moe-dense-tp-size": DEGREE,
    "--max-running-requests": Integer(1, 1_000_000),
    "--max-queued-requests": Integer(1, 1_000_000_000),
    "--max-total-tokens": TOKENS,
    "--max-prefill-tokens": TOKENS,
    "--chunked-prefill-size": TOKENS,
    "--context-length": TOKENS,
    "--mem-fraction-static": Real(0.01, 1),
    "--page-size": Integer(1, 65_536),
    "--stream-interval": Integer(1, 1_000_000),
    "--num-continuous-decode-steps": Integer(1, 1000),
    "--schedule-policy": NAME,
    "--schedule-conservativeness": Real(0, 100),
    "--random-seed": Integer(0, 2**63 - 1),
    "--cpu-offload-gb": Integer(0, 1_000_000),
    "--watchdog-timeout": Real(1, 1_000_000),
    "--kv-cache-dtype": NAME,
    "--dtype": OneOf(("auto", "half", "float16", "bfloat16", "float", "float32")),
    "--quantization": NAME,
    "--load-format": OneOf(("auto", "safetensors")),
    "--tokenizer-mode": OneOf(("auto", "slow")),
    "--attention-backend": NAME,
    "--sampling-backend": NAME,
    "--grammar-backend": NAME,
    "--moe-runner-backend": NAME,
    "--tool-call-parser": NAME,
    "--reasoning-parser": NAME,
    "--served-model-name": SERVED,
    "--log-level": OneOf(("critical", "error", "warning", "info")),
    "--host": HOST,
    "--port": Integer(1, 65_535),
}

SGLANG = Adapter(
    engine="sglang",
    program=("python", "-m", "sglang.launch_server"),
    port=30_000,
    model={
        "uri": Valued("--model-path"),
        "served_model": Valued("--served-model-name"),
        "revision": Valued("--revision"),
        "tokenizer_path": Valued("--tokenizer-path"),
        "chat_template_path": Valued("--chat-template"),
    },
    served_model_flags=frozenset({"--served-model-name"}),
    degrees=_degrees,
    parallelism={
        "tp": Valued("--tp-size"),
        "pp": Valued("--pp-size"),
        "dp": Valued("--dp-size"),
        "ep": Valued("--ep-size"),
    },
    typed_args=_typed_args,
    check=_check,
    engine_args={
        "max_num_seqs": Valued("--max-running-requests"),
        "max_num_batched_tokens": Valued("--chunked-prefill-size"),
        "max_model_len": Valued("--context-length"),
        "gpu_memory_utilization": Valued("--mem-fraction-static"),
        # Both are on by themselves.
        "enable_prefix_caching": Choice({True: (), False: ("--disable-radix-cache",)}),
        "enable_chunked_prefill": Choice({True: (), False: ("--chunked-prefill-size", "-1")}),
        "speculative_method": Choice(
            {name: ("--speculative-algorithm", word) for name, word in ALGORITHMS.items()},
            "SGLang knows " + ", ".join(ALGORITHMS),
        ),
        "speculative_model": Valued("--speculative-draft-model-path"),
        "steps": Valued("--speculative-num-steps"),
        "breadth": Valued("--speculative-eagle-topk"),
        "draft_tokens": Valued("--speculative-num-draft-tokens"),
    },
    quantization={
        "weight": Choice(
            {
                "fp8": ("--quantization", "fp8"),
                "awq": ("--quantization", "awq"),
                "gptq": ("--quantization", "gptq"),
                # SGLang's name for checkpoints with int8 weights.
                "int8": ("--quantization", "w8a8_int8"),
                "bf16": ("--dtype", "bfloat16"),
                "fp16": ("--dtype", "float16"),
            }
        ),
        "kv_cache": Valued("--kv-cache-dtype", omit="auto"),
    },
    listed=LISTED,
)
