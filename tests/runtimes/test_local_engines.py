"""Engines of templates, started by the Local runtime: programs in the place of the real ones, which nobody installs for a test."""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from services.__main__ import ROLES, together
from services.kit.settings import Gateway, Settings
from services.runner.runtimes.base import Handle, RuntimeFailed, Spec
from services.runner.runtimes.local import Local
from tests.runtimes.support import local_spec, settings, template, until_ready

FAKE = Path(__file__).with_name("fake_engine.py")


class Machine:
    """A folder of programs on the path, a folder of models, and what the engine wrote down."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.programs = folder / "bin"
        self.packages = folder / "packages"
        self.models = folder / "models"
        self.record = folder / "argv.json"
        for each in (self.programs, self.packages, self.models):
            each.mkdir()
        self.runtimes: list[Local] = []

    def install_program(self, name: str) -> Path:
        path = self.programs / name
        path.write_text(f"#!{sys.executable}\nimport runpy\nrunpy.run_path({str(FAKE)!r}, run_name='__main__')\n")
        path.chmod(0o755)
        return path

    def install_module(self, package: str, module: str) -> None:
        (self.packages / package).mkdir()
        (self.packages / package / "__init__.py").write_text("")
        (self.packages / package / f"{module}.py").write_text(FAKE.read_text())

    def runtime(self, models_dir: str = "") -> Local:
        self.runtimes.append(Local(settings(self.folder, models_dir), grace_s=2.0))
        return self.runtimes[-1]

    async def started(self, spec: Spec, models_dir: str = "") -> tuple[Handle, list[str]]:
        """The handle of an engine that is ready, and its words without the program."""
        runtime = self.runtime(models_dir)
        handle = await runtime.launch(spec)
        ready = await until_ready(runtime, spec, handle)
        assert ready.endpoints[0].base_url == f"http://127.0.0.1:{handle['port']}"
        return handle, json.loads(self.record.read_text())[1:]


@pytest.fixture
async def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Machine]:
    found = Machine(tmp_path)
    monkeypatch.setenv("PATH", str(found.programs))
    monkeypatch.setenv("PYTHONPATH", str(found.packages))
    monkeypatch.syspath_prepend(found.packages)
    monkeypatch.setenv("FAKE_RECORD", str(found.record))
    monkeypatch.setenv("FAKE_HEALTH", "/health")
    yield found
    for runtime in found.runtimes:
        await runtime.close()


def hub(engine: str, *serve_args: str, **fields: Any) -> dict[str, Any]:
    """A template of a model on the hub."""
    source = {"type": "huggingface", "uri": "acme/tiny"}
    return template(engine, serve_args=list(serve_args), spec={"model_source": source, **fields})


async def test_vllm_and_a_port_of_the_template_that_has_no_effect(machine: Machine) -> None:
    machine.install_program("vllm")
    given = hub("vllm", "--port", "1", "--host=0.0.0.0", "--seed", "7", engine_args={"max_num_seqs": 8})
    handle, words = await machine.started(local_spec("b", model_template=given))
    assert words == [
        *("serve", "acme/tiny", "--served-model-name", "acme/tiny", "--max-num-seqs", "8"),
        *("--port", "1", "--host=0.0.0.0", "--seed", "7"),
        *("--host", "127.0.0.1", "--port", str(handle["port"])),
    ]


async def test_sglang_is_a_module_of_the_runners_python(machine: Machine) -> None:
    machine.install_module("sglang", "launch_server")
    handle, words = await machine.started(local_spec("b", model_template=hub("sglang")))
    assert words == [
        *("--model-path", "acme/tiny", "--served-model-name", "acme/tiny"),
        *("--host", "127.0.0.1", "--port", str(handle["port"])),
    ]
    assert "sglang" not in sys.modules


async def test_llama_server_on_the_path_comes_before_the_package(machine: Machine) -> None:
    machine.install_program("llama-server")
    (machine.models / "tiny.gguf").touch()
    given = template("llamacpp", spec={"model_source": {"type": "local", "uri": "tiny.gguf"}})
    handle, words = await machine.started(local_spec("b", model_template=given), str(machine.models))
    assert words == [
        *("--model", str(machine.models / "tiny.gguf"), "--alias", "acme/tiny"),
        *("--host", "127.0.0.1", "--port", str(handle["port"])),
    ]


async def test_llama_server_downloads_by_itself(machine: Machine) -> None:
    machine.install_program("llama-server")
    _, words = await machine.started(local_spec("b", model_template=hub("llamacpp")))
    assert words[:2] == ["--hf-repo", "acme/tiny"]


async def test_health_is_asked_where_the_template_says(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_HEALTH", "/up")
    machine.install_program("vllm")
    given = hub("vllm")
    given["spec"]["engine"]["health_endpoint"] = "/up"
    await machine.started(local_spec("b", model_template=given))


@pytest.mark.parametrize(
    ("engine", "words"),
    [
        ("vllm", "pip install vllm"),
        ("sglang", "pip install sglang"),
        ("llamacpp", "aibrix-batch[llamacpp]"),
    ],
)
async def test_engine_that_is_not_installed(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, engine: str, words: str
) -> None:
    monkeypatch.setattr(sys, "executable", str(machine.programs / "python"))
    for package in ("sglang", "xllamacpp"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(RuntimeFailed) as failed:
        await machine.runtime().launch(local_spec("b", model_template=hub(engine)))
    assert words in failed.value.why
    assert f"the engine {engine} is not installed" in failed.value.why
    assert not failed.value.retryable


async def test_the_package_of_llama_cpp_does_not_download(machine: Machine) -> None:
    machine.install_module("xllamacpp", "nothing")
    with pytest.raises(RuntimeFailed, match=r"model_source.type local") as failed:
        await machine.runtime().launch(local_spec("b", model_template=hub("llamacpp")))
    assert not failed.value.retryable


@pytest.mark.parametrize("models_dir", ["", "models"])
async def test_a_users_template_names_files_of_the_folder_only(machine: Machine, models_dir: str) -> None:
    machine.install_program("vllm")
    outside = machine.folder / "outside"
    given = template("vllm", spec={"model_source": {"type": "local", "uri": str(outside)}})
    runtime = machine.runtime(str(machine.folder / models_dir) if models_dir else "")
    said = []
    for exists in (False, True):
        if exists:
            outside.mkdir()
        with pytest.raises(RuntimeFailed, match="AIBRIX_LOCAL__MODELS_DIR") as failed:
            await runtime.launch(local_spec("b", model_template=given))
        assert "aibrix.model_template.spec.model_source.uri" in failed.value.why
        assert not failed.value.retryable
        said.append(failed.value.why)
    assert said[0] == said[1]
    assert await runtime.list() == []


async def test_an_operators_template_names_any_file(machine: Machine) -> None:
    machine.install_program("vllm")
    given = template("vllm", spec={"model_source": {"type": "local", "uri": "/outside"}})
    _, words = await machine.started(local_spec("b", source="registry", model_template=given))
    assert words[:2] == ["serve", "/outside"]


def test_one_users_server_is_not_bound() -> None:
    assert together(Settings(), tuple(ROLES)).local.models_dir == "*"
    assert together(Settings(), tuple(ROLES)).templates.inline_flags == "any"
    chosen = Settings.model_validate({"local": {"models_dir": "/m"}, "templates": {"inline_flags": "listed"}})
    kept = together(chosen, tuple(ROLES))
    assert (kept.local.models_dir, kept.templates.inline_flags, kept.external.allowed_hosts) == ("/m", "listed", "*")
    for shared in ({"gateway": Gateway(listen="0.0.0.0:80")}, {"api_keys_file": "keys"}):
        bound = together(Settings.model_validate(shared), tuple(ROLES))
        assert (bound.local.models_dir, bound.templates.inline_flags) == ("", "listed")
