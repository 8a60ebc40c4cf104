"""`template validate`: every error with its line, warnings that are only warnings, and what a file holds."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.cli.support import COMMAND, PATIENCE_S, cli, environment
from tests.cli.templates import PROFILES, ROOT, TEMPLATE, changed, write


@pytest.mark.parametrize("command", [(), ("schema",), ("validate",)], ids=" ".join)
def test_help(command: tuple[str, ...]) -> None:
    done = cli("template", *command, "--help")
    assert done.returncode == 0
    assert "Usage" in done.stdout


def test_good_files(tmp_path: Path) -> None:
    versions = [changed("version", version) for version in ("v1.9.0", "v1.10.0")]
    draft = changed("status", "draft", changed("version", "v2.0.0"))
    other = changed("name", "other", changed("version", ...))
    one, two = write(tmp_path / "one.yaml", *versions, draft), write(tmp_path / "two.yaml", other)
    done = cli("template", "validate", one, two)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        f"{one}: 3 templates:",
        "  llama3-8b-a10@v2.0.0   draft",
        "  llama3-8b-a10@v1.10.0  active, used where no version is named",
        "  llama3-8b-a10@v1.9.0   active",
        f"{two}: 1 template:",
        "  other@v1.0.0  active",
    ]


def test_every_error_has_its_line(tmp_path: Path) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(
        "- name: good\n"
        "  spec:\n"
        "    engine: {type: mock}\n"
        "    model_source: {type: local, uri: m}\n"
        "    accelerator: {type: cpu, count: 1}\n"
        "    supported_endpoints: [/v1/completions]\n"
        "- name: bad\n"
        "  version: 1.0\n"
        "  colour: red\n"
        "  spec:\n"
        "    engine:\n"
        "      type: vlllm\n"
        "    model_source: {type: local}\n"
        "    accelerator: {type: A10, count: 4}\n"
        "    supported_endpoints:\n"
        "      - /v1/completions\n"
        "      - /v1/nope\n"
        "    parallelism:\n"
        "      tp: 2\n"
    )
    done = cli("template", "validate", file)
    assert (done.returncode, done.stderr) == (1, "")
    lines = done.stdout.splitlines()
    places = [re.match(rf"{re.escape(str(file))}:(\d+): error: (\S+): \S", one) for one in lines[:-1]]
    assert [(int(found[1]), found[2]) for found in places if found] == [
        (8, "templates[1].version"),
        (9, "templates[1].colour"),
        (12, "templates[1].spec.engine.type"),
        (13, "templates[1].spec.model_source.uri"),
        (17, "templates[1].spec.supported_endpoints[1]"),
        (18, "templates[1].spec.parallelism"),
    ]
    assert lines[-1] == f"{file}: 6 errors, 1 good template"
    assert 'write it in quotes: "1.0"' in lines[0]


def test_thirty_errors_are_thirty_lines(tmp_path: Path) -> None:
    wrong = [changed("spec.engine.type", "x" * 300, changed("name", f"t{n}")) for n in range(30)]
    file = write(tmp_path / "many.yaml", *wrong)
    done = cli("template", "validate", file, COLUMNS="40")
    lines = done.stdout.splitlines()
    assert len(lines) == 31
    assert all(f"templates[{n}].spec.engine.type: " in one for n, one in enumerate(lines[:-1]))
    assert lines[-1] == f"{file}: 30 errors, 0 good templates"
    assert "xxx" not in done.stdout  # values are not repeated


def test_warnings_change_no_exit_code(tmp_path: Path) -> None:
    ignored = changed("spec.parallelism.sp", 2, changed("spec.parallelism.cp", 2))
    homeless = changed("spec.engine.type", "trtllm", changed("name", "trt"))
    file = write(tmp_path / "t.yaml", ignored, homeless)
    done = cli("template", "validate", file)
    assert done.returncode == 0
    first, second, *rest = done.stdout.splitlines()
    assert first == (
        f"{file}: warning: llama3-8b-a10@v1.10.0: spec.parallelism.sp, spec.parallelism.cp are accepted and not honoured"
    )
    assert second.startswith(f"{file}: warning: trt@v1.10.0: it cannot be started: spec.engine.type: 'trtllm' ")
    assert "llamacpp, mock, sglang, vllm" in second
    assert rest[0] == f"{file}: 2 templates:"


def test_the_same_one_in_two_files_is_a_warning(tmp_path: Path) -> None:
    one, two = write(tmp_path / "one.yaml", TEMPLATE), write(tmp_path / "two.yaml", TEMPLATE)
    done = cli("template", "validate", one, two)
    assert done.returncode == 0
    assert f"{two}: warning: llama3-8b-a10@v1.10.0: {one} has it too" in done.stdout
    twice = cli("template", "validate", write(tmp_path / "twice.yaml", TEMPLATE, TEMPLATE))
    assert twice.returncode == 1
    assert ": 1 error, 1 good template" in twice.stdout


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    good, bad = write(tmp_path / "good.yaml", TEMPLATE), write(tmp_path / "bad.yaml", {"name": "x"})
    latin = tmp_path / "latin.yaml"
    latin.write_bytes(b"# \xe9\n")
    done = cli("template", "validate", tmp_path / "none.yaml", bad, tmp_path, latin, good)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        f"error: {tmp_path / 'none.yaml'} cannot be read: No such file or directory",
        f"error: {tmp_path} cannot be read: Is a directory",
        f"error: {latin} cannot be read: it is not UTF-8",
    ]
    assert f"{bad}: 1 error, 0 good templates" in done.stdout
    assert f"{good}: 1 template:" in done.stdout
    assert cli("template", "validate").returncode == 2


@pytest.mark.parametrize(
    ("text", "code", "said"),
    [
        ("\ufeff" + yaml.safe_dump([TEMPLATE]), 0, "<stdin>: 1 template:\n  llama3-8b-a10@v1.10.0  active\n"),
        (json.dumps([TEMPLATE]), 0, "<stdin>: 1 template:\n  llama3-8b-a10@v1.10.0  active\n"),
        ("", 0, "<stdin>: warning: there is no template in it\n<stdin>: 0 templates\n"),
        ("a: [", 1, None),
        ("7", 1, None),
    ],
    ids=["yaml", "json", "empty", "no yaml", "no list"],
)
def test_standard_input(text: str, code: int, said: str | None) -> None:
    words = [*COMMAND, "template", "validate", "-"]
    done = subprocess.run(words, env=environment(), input=text.encode(), capture_output=True, timeout=PATIENCE_S)
    assert done.returncode == code
    assert said is None or done.stdout.decode() == said
    assert done.stdout.startswith(b"<stdin>:")


def test_profile_files(tmp_path: Path) -> None:
    file = tmp_path / "profiles.yaml"
    file.write_text(yaml.safe_dump(PROFILES))
    done = cli("template", "validate", "--profile", file)
    assert (done.returncode, done.stdout) == (0, f"{file}: 2 profiles:\n  nightly  default\n  plain\n")
    file.write_text("default: none\nitems:\n- name: a\n  spec: {scheduling: {allow_spot: true, priority: urgent}}\n")
    done = cli("template", "validate", "--profile", file)
    assert done.returncode == 1
    assert f"{file}:1: error: default: " in done.stdout
    assert f"{file}:4: error: items[0].spec.scheduling.priority: " in done.stdout
    file.write_text("items:\n- name: a\n  spec: {scheduling: {allow_spot: true}}\n")
    done = cli("template", "validate", "--profile", file)
    assert done.returncode == 0
    assert f"{file}: warning: a: spec.scheduling.allow_spot is accepted and not honoured" in done.stdout
    assert cli("template", "validate", file).returncode == 1  # no templates


def test_the_output_that_the_page_of_commands_shows(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "cli.md").read_text()
    shown = re.search(r"```\n(templates/llama\.yaml:.*?)```", page, re.DOTALL)
    assert shown is not None
    folder = tmp_path / "templates"
    folder.mkdir()
    tiny = changed("spec.engine", {"type": "mock"}, changed("name", "tiny", changed("version", ...)))
    old = changed("status", "deprecated", changed("version", "v0.9.0", tiny))
    write(folder / "tiny.yaml", changed("spec.parallelism.sp", 2, tiny), old)
    (folder / "llama.yaml").write_text(
        "# yaml-language-server: $schema=docs/template.schema.json\n"
        "\n"
        "- name: llama\n"
        "  version: v2.0.0\n"
        "  status: draft\n"
        "  spec:\n"
        "    engine:\n"
        "      type: vlllm\n"
        "    model_source: {type: local, uri: m}\n"
        "    accelerator:\n"
        "      type: A10\n"
        "      count: 4\n"
        "    supported_endpoints: [/v1/completions]\n"
        "    parallelism:\n"
        "      tp: 2\n" + yaml.safe_dump([TEMPLATE])
    )
    words = [*COMMAND, "template", "validate", "templates/llama.yaml", "templates/tiny.yaml"]
    path = f"{ROOT}:{ROOT / 'protos/gen'}"
    done = subprocess.run(
        words, env=environment(PYTHONPATH=path), cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert done.stdout == shown[1]
