"""What an engine cannot do is refused, with the path of the field."""

from __future__ import annotations

from typing import Any

import pytest

from services.kit.engines.table import arguments, check_renderable
from services.kit.errors import InvalidArgument
from tests.kit.engines.support import template

SPEC = "aibrix.model_template.spec."
TWO = {"accelerator.count": 2}
SIXTEEN = {"accelerator.count": 16}


@pytest.mark.parametrize(
    ("engine", "fields", "param"),
    [
        ("trtllm", {}, "engine.type"),
        ("lmdeploy", {}, "engine.type"),
        # Expert parallelism is not a degree of its own in these engines.
        ("vllm", {**SIXTEEN, "parallelism": {"tp": 2, "ep": 8}}, "parallelism.ep"),
        ("vllm", {**SIXTEEN, "parallelism": {"dp": 2, "ep": 8}}, "parallelism.ep"),
        ("sglang", {**SIXTEEN, "parallelism": {"tp": 2, "ep": 8}}, "parallelism.ep"),
        ("vllm", {"engine_args": {"num_speculative_tokens": 4}}, "engine_args.num_speculative_tokens"),
        ("sglang", {"engine_args": {"num_speculative_tokens": 4}}, "engine_args.num_speculative_tokens"),
        ("sglang", {"engine_args": {"speculative_model": "a/b"}}, "engine_args.speculative_model"),
        ("sglang", {"engine_args": {"speculative_method": "suffix"}}, "engine_args.speculative_method"),
        (
            "sglang",
            {"engine_args": {"enable_chunked_prefill": False, "max_num_batched_tokens": 8}},
            "engine_args.enable_chunked_prefill",
        ),
        ("llamacpp", {**TWO, "parallelism": {"tp": 2}}, "parallelism.tp"),
        ("llamacpp", {**TWO, "parallelism": {"pp": 2}}, "parallelism.pp"),
        ("llamacpp", {**TWO, "parallelism": {"dp": 2}}, "parallelism.dp"),
        ("llamacpp", {**TWO, "parallelism": {"ep": 2}}, "parallelism.ep"),
        ("llamacpp", {"model_source.revision": "main"}, "model_source.revision"),
        ("llamacpp", {"model_source.tokenizer_path": "a/b"}, "model_source.tokenizer_path"),
        ("llamacpp", {"engine_args": {"gpu_memory_utilization": 0.5}}, "engine_args.gpu_memory_utilization"),
        ("llamacpp", {"engine_args": {"enable_chunked_prefill": False}}, "engine_args.enable_chunked_prefill"),
        ("llamacpp", {"engine_args": {"speculative_method": "eagle"}}, "engine_args.speculative_method"),
        ("llamacpp", {"engine_args": {"num_speculative_tokens": 4}}, "engine_args.num_speculative_tokens"),
        (
            "llamacpp",
            {"engine_args": {"speculative_method": "ngram_cache", "num_speculative_tokens": 4}},
            "engine_args.num_speculative_tokens",
        ),
        # 3 * 2^30 tokens in all: more than the engine's own number holds.
        ("llamacpp", {"engine_args": {"max_model_len": 2**29, "max_num_seqs": 6}}, "engine_args.max_model_len"),
        *(
            ("llamacpp", {"quantization.weight": weight}, "quantization.weight")
            for weight in ("fp8", "awq", "gptq", "int8", "bf16", "fp16")
        ),
        ("vllm", {"engine_args": {"hf_overrides": {"a": {1: 2}}}}, "engine_args.hf_overrides"),
        ("mock", {"engine_args": {"latency_ms": "soon"}}, "engine_args.latency_ms"),
        ("mock", {"engine_args": {"error-rate": 2}}, "engine_args.error-rate"),
        ("mock", {"engine_args": {"trust_remote_code": True}}, "engine_args.trust_remote_code"),
        ("mock", {"engine.serve_args": ["--latency-ms", "-1"]}, "engine.serve_args.latency_ms"),
        ("mock", {"engine.serve_args": ["--latency-ms"]}, "engine.serve_args"),
        ("mock", {"engine.serve_args": ["latency"]}, "engine.serve_args"),
        ("mock", {"engine.serve_args": ["--port-file", "/tmp/x"]}, "engine.serve_args.port_file"),
    ],
)
def test_the_field_is_named(engine: str, fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        check_renderable(template(engine, **fields))
    assert refused.value.context["param"] == SPEC + param
    assert SPEC + param in refused.value.message


def test_the_types_that_can_be_started_are_listed() -> None:
    with pytest.raises(InvalidArgument) as refused:
        arguments(template("trtllm"))
    assert refused.value.context["code"] == "invalid_value"
    assert "'trtllm'" in refused.value.message
    assert refused.value.message.endswith("llamacpp, mock, sglang, vllm.")


@pytest.mark.parametrize("name", ["--trust-remote-code", "-m", "", "a\x00b", "a\nb"])
@pytest.mark.parametrize("engine", ["vllm", "sglang", "llamacpp", "mock"])
def test_a_name_of_the_model_is_never_taken_for_a_flag(engine: str, name: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        arguments(template(engine), served_model=name)
    assert refused.value.context["param"] == "aibrix.model"
    with pytest.raises(InvalidArgument) as refused:
        arguments(template(engine), model=name)
    assert refused.value.context["param"] == SPEC + "model_source.uri"


def test_a_text_that_is_no_unicode_is_refused() -> None:
    with pytest.raises(InvalidArgument) as refused:
        arguments(template("vllm", engine_args={"x": "\ud800"}))
    assert refused.value.context["param"].startswith("aibrix.")


def test_values_are_not_repeated_in_messages() -> None:
    with pytest.raises(InvalidArgument) as refused:
        arguments(template("mock", engine_args={"api_key": "sk-very-secret"}))
    assert "secret" not in refused.value.message


@pytest.mark.parametrize("engine", ["vllm", "sglang", "llamacpp", "mock"])
def test_degrees_of_one_are_no_degrees(engine: str) -> None:
    spec = template(engine, parallelism={"tp": 1, "pp": 1, "dp": 1, "ep": 1, "sp": 4, "cp": 2})
    assert arguments(spec) == arguments(template(engine))
