"""Whole command lines: a template in, the argument list out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from services.kit.engines.table import adapter_of, arguments, check_renderable, flags
from services.kit.spec.template import TemplateSpec
from tests.kit.engines.support import HERE, template

FILES = sorted((HERE / "golden").glob("*.json"))


def read(path: Path) -> tuple[TemplateSpec, dict[str, Any], tuple[str, ...]]:
    content = json.loads(path.read_text())
    spec = TemplateSpec.model_validate(content.pop("spec"))
    return spec, content, tuple(content.pop("arguments"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_command_line_is_the_recorded_one(path: Path) -> None:
    spec, given, expected = read(path)
    assert arguments(spec, **given) == expected
    check_renderable(spec)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_flags_stand_between_model_and_serve_args(path: Path) -> None:
    spec, _, expected = read(path)
    middle = flags(spec)
    tail = tuple(spec.engine.serve_args)
    assert expected[len(expected) - len(middle) - len(tail) :] == middle + tail


def test_there_is_a_file_for_each_engine() -> None:
    assert {path.stem.partition("-")[0] for path in FILES} == {"vllm", "sglang", "llamacpp", "mock"}


@pytest.mark.parametrize(
    ("engine", "program"),
    [
        ("vllm", ("vllm", "serve")),
        ("sglang", ("python", "-m", "sglang.launch_server")),
        ("llamacpp", ("llama-server",)),
        ("mock", ("python", "-m", "services.runner.engines.mock")),
    ],
)
def test_the_program(engine: str, program: tuple[str, ...]) -> None:
    assert adapter_of(template(engine)).program == program


def test_a_name_that_serve_args_only_mention_as_a_value_is_no_name() -> None:
    spec = template("vllm", **{"engine.serve_args": ["--tool-call-parser", "served-model-name"]})
    assert "--served-model-name" in arguments(spec, served_model="m")


def test_an_override_that_is_null_takes_a_flag_away() -> None:
    assert flags(template("vllm", engine_args={"max_num_seqs": None, "seed": None})) == ()
