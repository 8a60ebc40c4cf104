"""The generated code is what protos/ says, and a package is its folder."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import google.api
import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "protos").rglob("*.proto"))


def texts(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*.py*") if path.suffix != ".pyc"}


def test_generating_again_changes_nothing(tmp_path: Path) -> None:
    outputs = (f"--python_out={tmp_path}", f"--grpc_python_out={tmp_path}")
    stubs = (f"--mypy_out=quiet:{tmp_path}", f"--mypy_grpc_out=quiet:{tmp_path}")
    annotations = Path(next(iter(google.api.__path__))).parents[1]
    folders = ("-I", "protos", "-I", str(annotations))
    command = (sys.executable, "-m", "grpc_tools.protoc", *folders, *outputs, *stubs)
    # The plugins for type stubs stand beside the interpreter.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    relative = [str(path.relative_to(ROOT)) for path in SOURCES]
    subprocess.run([*command, *relative], cwd=ROOT, env={**os.environ, "PATH": path}, check=True)
    assert texts(tmp_path) == texts(ROOT / "protos" / "gen"), "run: make protos"


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: str(path.relative_to(ROOT / "protos")))
def test_the_package_is_the_folder(source: Path) -> None:
    package = re.search(r"^package (.*);$", source.read_text(), re.MULTILINE)
    assert package is not None
    assert package[1].split(".") == list(source.parent.relative_to(ROOT / "protos").parts)
