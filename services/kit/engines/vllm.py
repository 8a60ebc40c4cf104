"""vLLM: `vllm serve MODEL ...`."""

from __future__ import annotations

from services.kit.engines.base import Adapter, Values, plain_args
from services.kit.engines.flags import SPEC, Bare, Choice, Positional, Valued, invalid
from services.kit.engines.listed import HOST, SERVED, SWITCH, Integer, Kind, OneOf, Real, Word
from services.kit.spec.template import EngineArgs, Parallelism


def _degrees(parallelism: Parallelism) -> Values:
    """vLLM's expert parallelism has no degree: experts are spread over all ranks of tp and dp.

    So ep stands for ranks of its own, as in the product that fills the accelerators, and they become ranks of tp.
    """
    values = parallelism.model_dump()
    if parallelism.ep > 1:
        if parallelism.tp * parallelism.dp > 1:
            raise invalid(
                (*SPEC, "parallelism", "ep"),
                "vLLM spreads experts over all ranks of tp and dp; leave ep at 1 and set "
                "engine_args.enable_expert_parallel to true",
            )
        values["tp"] = parallelism.ep
    return values


def _typed_args(args: EngineArgs) -> Values:
    values = plain_args(args)
    config = {
        "method": args.speculative_method,
        "model": args.speculative_model,
        "num_speculative_tokens": args.num_speculative_tokens,
    }
    given = {name: value for name, value in config.items() if value is not None}
    if set(given) == {"num_speculative_tokens"}:
        raise invalid(
            (*SPEC, "engine_args", "num_speculative_tokens"), "it needs speculative_method or speculative_model"
        )
    return {**values, "speculative": given or None}


PAIRED = [
    "--enable-prefix-caching",
    "--enable-chunked-prefill",
    "--enable-expert-parallel",
    "--enforce-eager",
    "--async-scheduling",
    "--disable-custom-all-reduce",
    "--disable-cascade-attn",
    "--disable-sliding-window",
    "--enable-auto-tool-choice",
    "--enable-prompt-tokens-details",
    "--enable-force-include-usage",
    "--return-tokens-as-token-ids",
    "--enable-eplb",
]
DEGREE = Integer(1, 1024)
TOKENS = Integer(1, 1_000_000_000)
NAME = Word()

LISTED: dict[str, Kind] = {
    **dict.fromkeys(PAIRED, SWITCH),
    **{"--no-" + flag[2:]: SWITCH for flag in PAIRED},
    "--disable-log-stats": SWITCH,
    "--disable-log-requests": SWITCH,
    "--tensor-parallel-size": DEGREE,
    "-tp": DEGREE,
    "--pipeline-parallel-size": DEGREE,
    "-pp": DEGREE,
    "--data-parallel-size": DEGREE,
    "-dp": DEGREE,
    "--decode-context-parallel-size": DEGREE,
    "--max-num-seqs": Integer(1, 1_000_000),
    "--max-num-batched-tokens": TOKENS,
    "--max-model-len": TOKENS,
    "--long-prefill-token-threshold": TOKENS,
    "--gpu-memory-utilization": Real(0.01, 1),
    "--kv-cache-memory-bytes": Integer(1, 10**15),
    "--num-gpu-blocks-override": Integer(1, 1_000_000_000),
    "--block-size": Integer(1, 65_536),
    # Gone since 0.6.3, the version of the seed's example.
    "--swap-space": Real(0, 1_000_000),
    "--cpu-offload-gb": Real(0, 1_000_000),
    "--kv-cache-dtype": NAME,
    "--dtype": OneOf(("auto", "half", "float16", "bfloat16", "float", "float32")),
    "--quantization": NAME,
    "-q": NAME,
    "--seed": Integer(0, 2**63 - 1),
    "--max-logprobs": Integer(0, 1_000_000),
    "--optimization-level": Integer(0, 3),
    "--attention-backend": NAME,
    "--scheduling-policy": OneOf(("fcfs", "priority")),
    "--distributed-executor-backend": OneOf(("mp", "uni")),
    "--tokenizer-mode": OneOf(("auto", "hf", "slow", "mistral")),
    "--load-format": OneOf(("auto", "safetensors")),
    "--config-format": OneOf(("auto", "hf", "mistral")),
    "--generation-config": OneOf(("auto", "vllm")),
    "--runner": OneOf(("auto", "generate", "pooling")),
    "--convert": OneOf(("auto", "none", "embed", "classify")),
    "--tool-call-parser": NAME,
    "--reasoning-parser": NAME,
    "--served-model-name": SERVED,
    "--host": HOST,
    "--port": Integer(1, 65_535),
}

VLLM = Adapter(
    engine="vllm",
    program=("vllm", "serve"),
    port=8000,
    model={
        "uri": Positional(),
        "served_model": Valued("--served-model-name"),
        "revision": Valued("--revision"),
        "tokenizer_path": Valued("--tokenizer"),
        "chat_template_path": Valued("--chat-template"),
    },
    served_model_flags=frozenset({"--served-model-name"}),
    degrees=_degrees,
    parallelism={
        "tp": Valued("--tensor-parallel-size"),
        "pp": Valued("--pipeline-parallel-size"),
        "dp": Valued("--data-parallel-size"),
        "ep": Bare("--enable-expert-parallel"),
    },
    typed_args=_typed_args,
    engine_args={
        "max_num_seqs": Valued("--max-num-seqs"),
        "max_num_batched_tokens": Valued("--max-num-batched-tokens"),
        "max_model_len": Valued("--max-model-len"),
        "gpu_memory_utilization": Valued("--gpu-memory-utilization"),
        "enable_prefix_caching": Choice({True: ("--enable-prefix-caching",), False: ("--no-enable-prefix-caching",)}),
        "enable_chunked_prefill": Choice(
            {True: ("--enable-chunked-prefill",), False: ("--no-enable-chunked-prefill",)}
        ),
        "speculative": Valued("--speculative-config"),
    },
    quantization={
        "weight": Choice(
            {
                "fp8": ("--quantization", "fp8"),
                "awq": ("--quantization", "awq"),
                "gptq": ("--quantization", "gptq"),
                # vLLM knows no `int8`: checkpoints with int8 weights are of this format.
                "int8": ("--quantization", "compressed-tensors"),
                "bf16": ("--dtype", "bfloat16"),
                "fp16": ("--dtype", "float16"),
            }
        ),
        "kv_cache": Valued("--kv-cache-dtype", omit="auto"),
    },
    listed=LISTED,
)
