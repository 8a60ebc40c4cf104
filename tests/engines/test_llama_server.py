"""The flags of our own llama.cpp server: those of `llama-server` that a template can lead to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from services.kit.engines.llamacpp import LLAMACPP
from services.kit.engines.table import arguments
from services.kit.spec.template import TemplateSpec
from services.runner.engines.llama_server import SWITCHES, VALUES, fields_of, parse_arguments

# The package starts from a file; services/runner/engines/installed.py says so before it is started.
NEEDS_A_DOWNLOAD = {"--hf-repo"}


def known() -> set[str]:
    switches = {name for names in SWITCHES.values() for name in names}
    values = {name for _, *names in VALUES.values() for name in names}
    return values | switches | {"--no-" + name[2:] for name in switches if name.startswith("--")}


def test_every_flag_of_the_adapter_is_known() -> None:
    assert (LLAMACPP.flags() | set(LLAMACPP.listed)) - known() == NEEDS_A_DOWNLOAD


def test_a_template_arrives(tmp_path: Path) -> None:
    chat = tmp_path / "chat.jinja"
    chat.write_text("{{ messages }}")
    spec = TemplateSpec.model_validate(
        {
            "engine": {"type": "llamacpp", "serve_args": ["--parallel", "8", "--port", "1"]},
            "model_source": {"type": "local", "uri": "m.gguf", "chat_template_path": str(chat)},
            "accelerator": {"type": "cpu", "count": 1},
            "supported_endpoints": ["/v1/chat/completions"],
            "engine_args": {
                "max_num_seqs": 4,
                "max_model_len": 512,
                "max_num_batched_tokens": 256,
                "enable_prefix_caching": False,
                "seed": -1,
                "warmup": False,
                "flash_attn": "off",
                "speculative_model": "draft.gguf",
                "num_speculative_tokens": 5,
            },
            "quantization": {"kv_cache": "q8_0"},
        }
    )
    words = (*arguments(spec, served_model="acme/tiny"), "--host", "127.0.0.1", "--port", "9")
    assert parse_arguments(words) == {
        "model.path": "m.gguf",
        "model_alias": {"acme/tiny"},
        "chat_template_file": "{{ messages }}",
        "n_parallel": 8,
        "n_ctx": 2048,
        "n_batch": 256,
        "cache_prompt": False,
        "sampling.seed": 2**32 - 1,
        "warmup": False,
        "flash_attn_type": "off",
        "speculative.type": "draft-simple",
        "speculative.draft.mparams.path": "draft.gguf",
        "speculative.draft.n_max": 5,
        "cache_type_k": "q8_0",
        "cache_type_v": "q8_0",
        "hostnames": ["127.0.0.1"],
        "port": 9,
    }


@pytest.mark.parametrize(
    ("flags", "fields"),
    [
        ((), {"n_parallel": 4, "kv_unified": True, "verbosity": 1}),
        (("--no-kv-unified",), {"n_parallel": 4, "kv_unified": False}),
        (("-np", "2"), {"n_parallel": 2, "kv_unified": None}),
        (("--reranking",), {"embedding": True, "pooling_type": "rank", "reranking": None}),
        (("--timeout", "5"), {"timeout_read": 5, "timeout_write": 5, "timeout": None}),
        (("--no-kv-offload", "--perf"), {"no_kv_offload": True, "no_perf": False, "perf": None}),
        (("--fit", "off", "--rope-scale", "4"), {"fit_params": False, "rope_scale": 0.25}),
        (("-ngl", "auto"), {"n_gpu_layers": -1}),
        (
            ("--chat-template-kwargs", '{"enable_thinking": false}'),
            {"default_template_kwargs": {"enable_thinking": "false"}},
        ),
    ],
)
def test_flags_that_are_not_one_field(flags: tuple[str, ...], fields: dict[str, Any]) -> None:
    found = fields_of(parse_arguments(("--model", "m.gguf", *flags)))
    assert {name: found.get(name) for name in fields} == fields


@pytest.mark.parametrize(
    "flags",
    [
        ("--tools", "all"),
        ("--mcp-servers-json", "{}"),
        ("--slot-save-path", "/tmp"),
        ("--log-file", "/tmp/x"),
        ("--hf-repo", "acme/tiny"),
        ("--ctx", "5"),
        ("--ctx-size", "many"),
        ("--fit", "maybe"),
        ("--rope-scale", "0"),
        ("--cache-type-k", "q9"),
        ("--chat-template-kwargs", "[]"),
        ("--chat-template-file", "/nonexistent"),
        ("stray",),
    ],
)
def test_others_are_refused_by_name(flags: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        parse_arguments(("--model", "m.gguf", *flags))
    assert refused.value.code == 2
    assert flags[0] in capsys.readouterr().err
