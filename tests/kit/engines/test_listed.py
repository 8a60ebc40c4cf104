"""A template that a batch brings along sets listed flags only, however they are spelled."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.kit.engines.listed import HOST, SERVED, Integer, Kind, OneOf, Real, Switch
from services.kit.engines.table import ADAPTERS, check_listed_args, check_listed_flags, check_listed_model
from services.kit.errors import InvalidArgument
from services.kit.spec.template import EngineArgs
from tests.kit.engines.support import REAL, published, takes_value, template

SERVE_ARGS = ("aibrix", "model_template", "spec", "engine", "serve_args")
ENGINE_ARGS = ("aibrix", "model_template", "spec", "engine_args")


@pytest.mark.parametrize(
    ("engine", "words"),
    [
        ("vllm", ["--gpu-memory-utilization", "0.90"]),
        ("vllm", ["--max-model-len", "8192", "--enable-prefix-caching", "--kv-cache-dtype", "fp8_e4m3"]),
        ("vllm", ["--dtype=bfloat16", "--seed=7", "--tensor-parallel-size", "2", "-tp", "4"]),
        ("vllm", ["--enforce-eager", "--swap-space", "4", "--block-size", "16", "--no-enable-chunked-prefill"]),
        ("vllm", ["--served-model-name", "meta-llama/Llama-3.1-8B", "--host", "0.0.0.0", "--port", "8000"]),
        ("vllm", []),
        ("sglang", ["--mem-fraction-static=0.8", "--tp-size", "2", "--disable-radix-cache"]),
        ("llamacpp", ["-c", "4096", "-np", "4", "--n-gpu-layers", "all", "--flash-attn", "on", "--no-warmup"]),
        ("mock", ["--latency-ms", "20", "--seed=3"]),
        ("trtllm", ["--anything"]),
    ],
)
def test_listed_flags_pass(engine: str, words: list[str]) -> None:
    check_listed_flags(engine, words, SERVE_ARGS)


@pytest.mark.parametrize(
    ("engine", "words"),
    [
        ("vllm", ["--trust-remote-code"]),
        ("vllm", ["--trust-remote"]),
        ("vllm", ["--trust_remote_code"]),
        ("vllm", ["--Trust-Remote-Code"]),
        ("vllm", ["--middleware", "os.system"]),
        ("vllm", ["--middleware=os.system"]),
        ("vllm", ["--seed", "1", "--config", "/etc/passwd"]),
        ("vllm", ["--hf-overrides.trust_remote_code", "true"]),
        ("vllm", ["-O3"]),
        ("vllm", ["-tp2"]),
        ("vllm", ["/models/other"]),
        ("vllm", ["--"]),
        ("vllm", [""]),
        ("vllm", ["="]),
        ("vllm", ["--distributed-executor-backend", "my.module.Executor"]),
        ("vllm", ["--load-format", "pt"]),
        ("vllm", ["--generation-config", "/etc"]),
        ("vllm", ["--tool-call-parser", "/tmp/plugin.py"]),
        ("vllm", ["--attention-backend", "my.module.Backend"]),
        ("vllm", ["--gpu-memory-utilization"]),
        ("vllm", ["--gpu-memory-utilization="]),
        ("vllm", ["--gpu-memory-utilization", "1.5"]),
        ("vllm", ["--gpu-memory-utilization", "nan"]),
        ("vllm", ["--max-model-len", "--trust-remote-code"]),
        ("vllm", ["--max-model-len", "-1"]),
        ("vllm", ["--max-model-len", "1_000"]),
        ("vllm", ["--max-model-len", "٣"]),
        ("vllm", ["--max-model-len", "8 --trust-remote-code"]),
        ("vllm", ["--served-model-name", "--trust-remote-code"]),
        ("vllm", ["--enforce-eager=true"]),
        ("vllm", ["--enforce-eager", "true"]),
        ("sglang", ["--file-storage-path", "/etc"]),
        ("sglang", ["--load-format", "remote"]),
        ("llamacpp", ["--tools", "all"]),
        ("llamacpp", ["--ctx-size=4096"]),
        ("llamacpp", ["--ctx_size", "4096"]),
        ("llamacpp", ["--slot-save-path", "/tmp"]),
        ("llamacpp", ["-m", "/etc/passwd"]),
        ("mock", ["--port-file", "/tmp/x"]),
        ("mock", ["--error-rate", "2"]),
    ],
)
def test_anything_else_is_refused(engine: str, words: list[str]) -> None:
    with pytest.raises(InvalidArgument) as refused:
        check_listed_flags(engine, words, SERVE_ARGS)
    assert refused.value.context["param"] == "aibrix.model_template.spec.engine.serve_args"
    assert len(refused.value.message) < 300


def test_the_message_says_who_may_set_it() -> None:
    with pytest.raises(InvalidArgument, match=r"'--trust-remote-code' is not a flag .* the operator's registry may"):
        check_listed_flags("vllm", ["--trust-remote-code=sk-secret"], SERVE_ARGS)
    with pytest.raises(InvalidArgument, match="argument 2 is not a flag") as refused:
        check_listed_flags("vllm", ["--enforce-eager", "sk-secret"], SERVE_ARGS)
    assert "secret" not in refused.value.message


@pytest.mark.parametrize(
    ("engine", "args"),
    [
        ("vllm", {"max_num_seqs": 8, "max_model_len": 4096, "gpu_memory_utilization": 0.9}),
        ("vllm", {"enforce_eager": True, "enable-expert-parallel": False, "seed": 0}),
        ("vllm", {"speculative_method": "eagle3", "speculative_model": "org/eagle", "num_speculative_tokens": 3}),
        ("sglang", {"speculative_method": "EAGLE3"}),
        ("mock", {"latency_ms": 20, "max_num_seqs": 8}),
        ("lmdeploy", {"anything": 1}),
    ],
)
def test_listed_engine_args_pass(engine: str, args: dict[str, Any]) -> None:
    check_listed_args(engine, args, ENGINE_ARGS)


@pytest.mark.parametrize(
    ("engine", "key", "value"),
    [
        ("vllm", "trust_remote_code", True),
        ("vllm", "trust-remote-code", False),
        ("vllm", "trust_remote", True),
        ("vllm", "seed", "--trust-remote-code"),
        ("vllm", "seed", -1),
        ("vllm", "seed", True),
        ("vllm", "seed", ["1", "--trust-remote-code"]),
        ("vllm", "seed", {"a": 1}),
        ("vllm", "enforce_eager", "yes"),
        ("vllm", "middleware", ["os.system"]),
        ("vllm", "hf_overrides", {"architectures": ["X"]}),
        ("vllm", "speculative_config", {"method": "custom_class"}),
        ("vllm", "speculative_method", "custom_class"),
        ("vllm", "speculative_model", "/etc"),
        ("llamacpp", "slot_save_path", "/tmp"),
        ("mock", "port_file", "/tmp/x"),
    ],
)
def test_other_engine_args_are_refused(engine: str, key: str, value: Any) -> None:
    with pytest.raises(InvalidArgument) as refused:
        check_listed_args(engine, {"max_num_seqs": 8, key: value}, ENGINE_ARGS)
    assert refused.value.context["param"] == f"aibrix.model_template.spec.engine_args.{key}"


@pytest.mark.parametrize(
    ("field", "value", "passes"),
    [
        ("tokenizer_path", "meta-llama/Llama-3.1-8B", True),
        ("tokenizer_path", "/etc", False),
        ("tokenizer_path", "../../etc/passwd", False),
        ("chat_template_path", "/etc/passwd", False),
    ],
)
def test_files_beside_the_model_are_the_operators_to_name(field: str, value: str, passes: bool) -> None:
    source = template("vllm", **{f"model_source.{field}": value}).model_source
    path = ("aibrix", "model_template", "spec", "model_source")
    check_listed_model("trtllm", source, path)
    if passes:
        check_listed_model("vllm", source, path)
        return
    with pytest.raises(InvalidArgument) as refused:
        check_listed_model("vllm", source, path)
    assert refused.value.context["param"] == f"aibrix.model_template.spec.model_source.{field}"


def right_value(kind: Kind) -> st.SearchStrategy[str]:
    match kind:
        case Integer():
            return st.integers(kind.least, kind.most).map(str)
        case Real():
            return st.floats(kind.least, kind.most).map(lambda number: f"{number:.3f}").filter(kind.accepts)
        case OneOf():
            return st.sampled_from(kind.words)
    names = st.sampled_from(["a", "fp8_e4m3", "qwen3-coder"])
    return names | st.just("org/m:1.5") if kind == SERVED else names | st.just("::") if kind == HOST else names


@st.composite
def right_words(draw: st.DrawFn, engine: str) -> list[str]:
    flag = draw(st.sampled_from(sorted(ADAPTERS[engine].listed)))
    kind = ADAPTERS[engine].listed[flag]
    if isinstance(kind, Switch):
        return [flag]
    value = draw(right_value(kind).filter(kind.accepts))
    return [f"{flag}={value}"] if ADAPTERS[engine].equals and draw(st.booleans()) else [flag, value]


@st.composite
def any_words(draw: st.DrawFn, engine: str) -> list[str]:
    """Flags of the engine, cut short or respelled, and whatever else stands on a command line."""
    flag = draw(st.sampled_from(sorted(takes_value(engine))))
    respelled = draw(st.sampled_from([flag, flag[: max(3, len(flag) - 3)], flag.replace("-", "_"), flag.upper()]))
    value = draw(st.sampled_from(["1", "0.5", "auto", "/etc/passwd", "-1", "--", "", "a=b", "--seed", "x.y", "²"]))
    return draw(st.sampled_from([[respelled], [respelled, value], [f"{respelled}={value}"], [value]]))


class Seen(argparse.Action):
    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        namespace.seen |= set(self.option_strings)


def flags_by_argparse(engine: str, words: Sequence[str]) -> set[str]:
    """What Python's own parser, with abbreviations, makes of them: a flag is there in all its spellings."""
    parser = argparse.ArgumentParser(add_help=False, exit_on_error=False)
    for names, valued in published(engine):
        parser.add_argument(*names, action=Seen, nargs=None if valued else 0, dest=names[0].strip("-"))
    space = parser.parse_args(list(words), argparse.Namespace(seen=set()))
    found: set[str] = space.seen
    return found


def flags_in_turn(engine: str, words: Sequence[str]) -> set[str]:
    """As llama.cpp reads them: one after the other, underscores for dashes."""
    spellings = {name: (set(names), valued) for names, valued in published(engine) for name in names}
    found: set[str] = set()
    rest = list(words)
    while rest:
        word = rest.pop(0)
        names, valued = spellings[word.replace("_", "-") if word.startswith("--") else word]
        found |= names
        if valued:
            rest.pop(0)
    return found


@pytest.mark.parametrize("engine", REAL)
@settings(max_examples=600)
@given(data=st.data())
def test_no_unlisted_flag_passes(engine: str, data: st.DataObject) -> None:
    groups = data.draw(st.lists(st.one_of(right_words(engine), right_words(engine), any_words(engine)), max_size=5))
    words = [word for group in groups for word in group]
    try:
        check_listed_flags(engine, words, SERVE_ARGS)
    except InvalidArgument:
        return
    seen = flags_in_turn(engine, words) if engine == "llamacpp" else flags_by_argparse(engine, words)
    listed = {name for names, _ in published(engine) if ADAPTERS[engine].listed.keys() & set(names) for name in names}
    assert seen <= listed
    assert len(seen) > 0 or not words


@pytest.mark.parametrize("engine", REAL)
@settings(max_examples=100)
@given(data=st.data())
def test_what_is_listed_passes(engine: str, data: st.DataObject) -> None:
    groups = data.draw(st.lists(right_words(engine), max_size=6))
    check_listed_flags(engine, [word for group in groups for word in group], SERVE_ARGS)


@settings(max_examples=300)
@given(key=st.from_regex(r"[a-z][a-z_-]{0,20}", fullmatch=True), value=st.text(max_size=20) | st.booleans())
def test_an_unknown_key_never_passes(key: str, value: str | bool) -> None:
    flag = "--" + key.replace("_", "-")
    spellings = {flag, "--no-" + flag[2:]}
    if key in EngineArgs.model_fields or spellings & ADAPTERS["vllm"].listed.keys():
        return
    with pytest.raises(InvalidArgument):
        check_listed_args("vllm", {key: value}, ENGINE_ARGS)


@pytest.mark.parametrize("nothing", [None, False, []])
def test_what_an_operator_gave_is_not_taken_away(nothing: Any) -> None:
    """An override without words removes a flag, so it needs the same leave as one that sets it."""
    check_listed_args("vllm", {"enforce_eager": None}, ENGINE_ARGS)
    with pytest.raises(InvalidArgument) as refused:
        check_listed_args("vllm", {"allowed_media_domains": nothing}, ENGINE_ARGS)
    assert refused.value.context["param"].endswith("engine_args.allowed_media_domains")
