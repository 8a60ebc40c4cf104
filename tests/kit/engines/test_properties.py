"""Any valid template becomes an argument list, or an error that names a field."""

from __future__ import annotations

from math import prod
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from services.kit.engines.table import arguments, check_renderable, flags
from services.kit.errors import InvalidArgument
from services.kit.spec.template import TemplateSpec

words = st.text(max_size=12)
names = st.from_regex(r"[A-Za-z0-9/][A-Za-z0-9/._-]{0,20}", fullmatch=True)
values = st.recursive(
    st.booleans() | st.integers() | st.floats() | words | st.none(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=5,
)
keys = st.sampled_from(["seed", "trust_remote_code", "enforce-eager", "served_model_name", "latency_ms", "x"])
typed = st.fixed_dictionaries(
    {},
    optional={
        "max_num_seqs": st.integers(1, 1_000_000),
        "max_num_batched_tokens": st.integers(1, 1_000_000),
        "max_model_len": st.integers(1, 1_000_000_000),
        "gpu_memory_utilization": st.floats(0.01, 1),
        "enable_prefix_caching": st.booleans(),
        "enable_chunked_prefill": st.booleans(),
        "speculative_method": st.sampled_from(["ngram", "EAGLE3", "draft_model", "suffix", "custom_class"]),
        "speculative_model": names,
        "num_speculative_tokens": st.integers(1, 1000),
    },
)
small = st.sampled_from([1, 1, 2, 4])


@st.composite
def documents(draw: st.DrawFn) -> dict[str, Any]:
    degrees = draw(st.fixed_dictionaries({}, optional=dict.fromkeys(("tp", "pp", "dp", "ep"), small)))
    source = st.fixed_dictionaries(
        {"type": st.sampled_from(["huggingface", "s3", "local"]), "uri": names},
        optional={"revision": names, "tokenizer_path": names, "chat_template_path": names},
    )
    weights = st.sampled_from(["fp8", "awq", "gptq", "int8", "bf16", "fp16"])
    kept = st.sampled_from(["auto", "fp8_e4m3", "q8_0"])
    return {
        "engine": {
            "type": draw(st.sampled_from(["vllm", "sglang", "llamacpp", "mock", "trtllm"])),
            "serve_args": draw(st.lists(words, max_size=4)),
        },
        "model_source": draw(source),
        "accelerator": {"type": "H100", "count": prod(degrees.values())},
        "supported_endpoints": ["/v1/completions"],
        "parallelism": degrees,
        "engine_args": {**draw(st.dictionaries(keys, values, max_size=3)), **draw(typed)},
        "quantization": draw(st.fixed_dictionaries({}, optional={"weight": weights, "kv_cache": kept})),
    }


def attempt(spec: TemplateSpec, model: str | None, served_model: str | None) -> tuple[str, ...] | InvalidArgument:
    try:
        return arguments(spec, model=model, served_model=served_model)
    except InvalidArgument as error:
        return error


@settings(max_examples=600)
@given(document=documents(), model=st.none() | names, served_model=st.none() | words)
def test_an_argument_list_or_an_error_with_a_param(
    document: dict[str, Any], model: str | None, served_model: str | None
) -> None:
    try:
        spec = TemplateSpec.model_validate(document)
    except ValidationError:
        return
    found = attempt(spec, model, served_model)
    if isinstance(found, InvalidArgument):
        assert found.context["param"].startswith("aibrix.")
        return
    assert all(type(word) is str and "\0" not in word for word in found)
    tail = tuple(spec.engine.serve_args)
    middle = flags(spec)
    assert found[len(found) - len(middle) - len(tail) :] == middle + tail
    assert found == attempt(spec, model, served_model)
    check_renderable(spec)
