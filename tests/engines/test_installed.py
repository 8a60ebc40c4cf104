"""From a template to what is started on this machine."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from services.kit.engines.sglang import SGLANG
from services.kit.engines.vllm import VLLM
from services.kit.errors import InvalidArgument
from services.kit.spec.template import TemplateSpec
from services.runner.engines.installed import ROOT, Place, command, program_of
from services.runner.engines.mock import parse_arguments

PLACE = Place(host="127.0.0.1", port=1234, port_file=Path("/run/engine.port"))


def template(engine_args: dict[str, Any] | None = None, **engine: Any) -> TemplateSpec:
    return TemplateSpec.model_validate(
        {
            "engine": {"type": "mock", **engine},
            "model_source": {"type": "local", "uri": "none"},
            "accelerator": {"type": "cpu", "count": 1},
            "supported_endpoints": ["/v1/chat/completions"],
            "engine_args": engine_args or {},
        }
    )


def test_flags_arrive_as_the_mock_engine_reads_them() -> None:
    spec = template({"latency_ms": 5, "seed": 7}, serve_args=["--seed=8", "--error-rate", "0.25"])
    built = command(spec, PLACE, served_model="acme/tiny")
    assert built.reports_port
    assert built.arguments[:3] == (sys.executable, "-m", "services.runner.engines.mock")
    options = parse_arguments(built.arguments[3:])
    assert (options.latency_ms, options.seed, options.error_rate) == (5, 8, 0.25)
    assert (options.host, options.port, options.port_file) == ("127.0.0.1", 0, "/run/engine.port")


@pytest.mark.parametrize(
    ("spec", "param"),
    [
        (template({"latency_ms": "5"}), "engine_args.latency_ms"),
        (template({"capacity": 0}), "engine_args.capacity"),
        (template({"port": 80}), "engine_args.port"),
        (template(serve_args=["--host", "0.0.0.0"]), "engine.serve_args.host"),
        (template(serve_args=["--seed", "x"]), "engine.serve_args.seed"),
        (template(serve_args=["seed", "1"]), "engine.serve_args"),
        (template(serve_args=["--seed"]), "engine.serve_args"),
        (template(type="lmdeploy"), "engine.type"),
    ],
)
def test_other_flags_and_engines_are_refused_with_their_path(spec: TemplateSpec, param: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        command(spec, PLACE)
    assert refused.value.context["param"] == f"aibrix.model_template.spec.{param}"


def test_our_own_llama_server_is_started_where_there_is_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "xllamacpp.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PATH", "")
    built = command(template(type="llamacpp"), PLACE, served_model="acme/tiny")
    module = (sys.executable, "-m", "services.runner.engines.llama_server")
    given = ("--model", "none", "--alias", "acme/tiny")
    assert built.arguments == (*module, *given, "--host", "127.0.0.1", "--port", "1234")
    assert (built.folder, built.reports_port) == (ROOT, False)


def test_a_program_beside_this_python_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment that nobody activated. What is on the path comes first."""
    beside, other = tmp_path / "beside", tmp_path / "other"
    for folder in (beside, other):
        folder.mkdir()
        (folder / "vllm").touch(0o755)
    monkeypatch.setattr(sys, "executable", str(beside / "python"))
    monkeypatch.setenv("PATH", "")
    assert program_of(VLLM) == (str(beside / "vllm"), "serve")
    monkeypatch.setenv("PATH", str(other))
    assert program_of(VLLM) == (str(other / "vllm"), "serve")


def test_a_relative_entry_of_the_path_becomes_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine has a working directory of its own."""
    (tmp_path / "vllm").touch(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", ".")
    assert program_of(VLLM)[0] == str(tmp_path / "vllm")


def test_looking_for_a_module_does_not_import_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sglang").mkdir()
    (tmp_path / "sglang" / "__init__.py").write_text("raise AssertionError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    assert program_of(SGLANG) == (sys.executable, "-m", "sglang.launch_server")
