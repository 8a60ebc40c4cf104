"""How each type of engine is started on this machine, and what to install where it is missing. There is never a shell."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from services.kit.engines.base import Adapter
from services.kit.engines.table import adapter_of, arguments
from services.kit.spec.template import TemplateSpec
from services.runner.runtimes.base import RuntimeFailed

# Where `-m services...` is found, whatever the working directory of the runner.
ROOT = Path(__file__).resolve().parents[3]
LLAMA_PACKAGE = "xllamacpp"
LLAMA_SERVER = "services.runner.engines.llama_server"
INSTALL = {
    "vllm": "`pip install vllm` (it needs a GPU), so that `vllm` is on the runner's path",
    "sglang": "`pip install sglang` (it needs a GPU) into the runner's Python",
    "llamacpp": "`pip install \"aibrix-batch[llamacpp]\"`, or put llama.cpp's `llama-server` on the runner's path",
}


@dataclass(frozen=True, kw_only=True)
class Command:
    """What is to be started on this machine."""

    arguments: tuple[str, ...]
    folder: Path | None = None
    """Working directory; None: a folder of its own."""
    reports_port: bool = False
    """It binds a free port itself and writes it to the port file. Otherwise the port is chosen for it."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where it listens."""

    host: str
    port: int
    port_file: Path


def command(spec: TemplateSpec, place: Place, *, served_model: str | None = None) -> Command:
    """Host and port stand behind everything else, so that those of a template have no effect.

    Error: InvalidArgument with the path in the template of what cannot be said to the engine, RuntimeFailed if it is not
    installed.
    """
    adapter = adapter_of(spec)
    words = arguments(spec, served_model=served_model)
    program = program_of(adapter)
    if LLAMA_SERVER in program and "--hf-repo" in words:
        raise RuntimeFailed(
            "llama.cpp from the Python package starts from a file: give model_source.type local, "
            "or put llama.cpp's `llama-server`, which downloads, on the runner's path",
            retryable=False,
        )
    ours = program[0] == sys.executable and program[2].startswith("services.")
    reports_port = adapter.engine == "mock"
    port = ("--port", "0", "--port-file", str(place.port_file)) if reports_port else ("--port", str(place.port))
    return Command(
        arguments=(*program, *words, "--host", place.host, *port),
        folder=ROOT if ours else None,
        reports_port=reports_port,
    )


def program_of(adapter: Adapter) -> tuple[str, ...]:
    """The words that start it. Error: RuntimeFailed that says what to install."""
    first, *rest = adapter.program
    if first == "python":
        if _has_module(rest[1]):
            return (sys.executable, *rest)
    elif found := _on_path(first):
        return (found, *rest)
    if adapter.engine == "llamacpp" and _has_module(LLAMA_PACKAGE):
        return (sys.executable, "-m", LLAMA_SERVER)
    raise RuntimeFailed(
        f"the engine {adapter.engine} is not installed where the runner is: {INSTALL[adapter.engine]}", retryable=False
    )


def _has_module(name: str) -> bool:
    """Without importing it, which would take seconds, and memory for good."""
    return importlib.util.find_spec(name.partition(".")[0]) is not None


def _on_path(program: str) -> str | None:
    """Also beside this Python: a runner is often started without its environment being activated."""
    found = shutil.which(program) or shutil.which(program, path=os.path.dirname(sys.executable))
    return os.path.abspath(found) if found else None
