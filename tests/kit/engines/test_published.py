"""Every flag that an adapter emits or lists exists, by what the engine's own project publishes (tests/kit/engines/published)."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from services.kit.engines.listed import Switch
from services.kit.engines.table import ADAPTERS
from services.kit.spec.template import EngineArgs, ModelSource, Parallelism, Quantization
from services.runner.engines.mock import parse_arguments
from tests.conftest import unavailable
from tests.kit.engines.support import REAL, published, takes_value

DOCUMENT = Path(__file__).parents[3] / "docs" / "engines.md"
# Flags that import code, read or write files, or open addresses.
DANGEROUS = {
    "vllm": (
        "--middleware --tool-parser-plugin --reasoning-parser-plugin --trust-remote-code --config --chat-template "
        "--allowed-local-media-path --lora-modules --ssl-keyfile --ssl-certfile --ssl-ca-certs --download-dir "
        "--worker-cls --worker-extension-cls --logits-processors --scheduler-cls --hf-overrides --hf-config-path "
        "--io-processor-plugin --model-loader-extra-config --kv-transfer-config --otlp-traces-endpoint --tool-server "
        "--log-config-file --speculative-config --compilation-config --api-key --hf-token --model --tokenizer --uds"
    ),
    "sglang": (
        "--trust-remote-code --chat-template --tool-server --file-storage-path --crash-dump-folder --config --lora-paths "
        "--model-path --model --tokenizer-path --download-dir --custom-weight-loader --forward-hooks --ssl-keyfile "
        "--json-model-override-args --api-key --admin-api-key --sidecar --log-requests --export-metrics-to-file-dir "
        "--enable-custom-logit-processor --debug-tensor-dump-output-folder --kv-events-config --msprobe-dump-config"
    ),
    "llamacpp": (
        "--model --model-url --hf-repo --hf-file --docker-repo --lora --mmproj --grammar-file --json-schema-file "
        "--log-file --slot-save-path --path --media-path --rpc --tools --tools-runtime --mcp-servers-config --agent "
        "--mcp-servers-json --api-key --api-key-file --ssl-key-file --chat-template --chat-template-file --props "
        "--log-prompts-dir --lookup-cache-dynamic --models-dir --models-preset --control-vector --video-ffmpeg-dir"
    ),
}


@pytest.mark.parametrize("engine", REAL)
def test_emitted_flags_exist(engine: str) -> None:
    adapter = ADAPTERS[engine]
    assert adapter.flags()
    assert adapter.flags() <= takes_value(engine).keys()
    assert adapter.served_model_flags <= takes_value(engine).keys()


@pytest.mark.parametrize("engine", REAL)
def test_listed_flags_exist_and_take_a_value_or_none(engine: str) -> None:
    listed = ADAPTERS[engine].listed
    assert len(listed) >= 40
    known = takes_value(engine)
    assert listed.keys() <= known.keys()
    for flag, kind in listed.items():
        assert known[flag] is not isinstance(kind, Switch), flag


@pytest.mark.parametrize("engine", REAL)
def test_dangerous_flags_exist_and_are_not_listed(engine: str) -> None:
    """In no spelling: an engine's project names them, so that this test notices when one is renamed."""
    listed = ADAPTERS[engine].listed.keys()
    spellings = {name: names for names, _ in published(engine) for name in names}
    for flag in DANGEROUS[engine].split():
        assert flag in spellings
        assert not listed & set(spellings[flag]), flag


def test_the_compiled_parser_of_llama_cpp_has_the_flags() -> None:
    """Its names stand, each with a zero byte behind it, in the library that the package brings."""
    found = importlib.util.find_spec("xllamacpp")
    if found is None or not found.submodule_search_locations:
        unavailable("xllamacpp is not installed")
    (library,) = Path(found.submodule_search_locations[0]).glob("xllamacpp*.so")
    compiled = library.read_bytes()
    adapter = ADAPTERS["llamacpp"]
    for flag in adapter.flags() | adapter.listed.keys() | takes_value("llamacpp").keys():
        assert flag.encode() + b"\0" in compiled, flag


def test_the_mock_engine_itself_takes_its_flags() -> None:
    adapter = ADAPTERS["mock"]
    assert adapter.flags() == frozenset()
    for flag in adapter.listed:
        assert parse_arguments([flag, "1"])


@pytest.mark.parametrize("engine", [*REAL, "mock"])
def test_no_field_of_a_template_is_forgotten(engine: str) -> None:
    adapter = ADAPTERS[engine]
    files = ModelSource.model_fields.keys() - {"type", "auth_secret_ref"}
    assert adapter.model.keys() >= files
    # Advice of the scheduler's, without a flag.
    assert adapter.parallelism.keys() >= Parallelism.model_fields.keys() - {"sp", "cp"}
    typed = {name for name in EngineArgs.model_fields if "speculative" not in name}
    assert adapter.engine_args.keys() >= typed
    assert adapter.quantization.keys() >= Quantization.model_fields.keys() - {"weights_artifact_uri"}


@pytest.mark.parametrize("engine", [*REAL, "mock"])
def test_the_document_lists_what_is_listed(engine: str) -> None:
    """One row a kind of value: `| flags | what stands behind them |`."""
    section = DOCUMENT.read_text().split(f"\n### {engine}\n")[1].split("\n#")[0]
    rows = dict(re.findall(r"^\| (`-.*`) \| (.*) \|$", section, re.MULTILINE))
    shown = {flag: kind for flags, kind in rows.items() for flag in re.findall(r"`(-[\w-]+)`", flags)}
    assert shown == {flag: kind.shown for flag, kind in ADAPTERS[engine].listed.items()}


@pytest.mark.parametrize("engine", REAL)
def test_the_document_names_every_emitted_flag(engine: str) -> None:
    named = set(re.findall(r"--[a-z][\w-]*", DOCUMENT.read_text()))
    assert ADAPTERS[engine].flags() <= named
