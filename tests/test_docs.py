"""What the documents say is true: links lead somewhere, pictures and tables follow the code, the README's example runs."""

from __future__ import annotations

import asyncio
import copy
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel

from cli.main import app, keys, template
from cli.template import schema
from services.kit.engines.table import check_renderable
from services.kit.settings import environment_names
from services.kit.spec.template import (
    Accelerator,
    Engine,
    EngineArgs,
    ModelSource,
    Parallelism,
    Quantization,
    Template,
    TemplateSpec,
)
from services.kit.spec.versions import version_key
from services.metadata.states import LIFECYCLE
from services.runner.runtimes.registry import RUNTIMES
from tests.cli.support import PATIENCE_S, environment
from tests.cli.templates import FULL, TEMPLATE
from tests.e2e.processes import suite, witness

ROOT = Path(__file__).parents[1]
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
TEMPLATES = (ROOT / "docs" / "templates.md").read_text()
SOURCES = [path for folder in ("services", "gateway") for path in (ROOT / folder).rglob("*.py")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_paths_lead_somewhere(page: Path) -> None:
    text = page.read_text()
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[\w-]*)?\)", text):
        if "://" not in target:
            assert (page.parent / target).exists(), target
    for named in re.findall(r"`((?:services|gateway|cli|tests|protos|docs|deploy|benchmarks)/[\w./-]*)`", text):
        assert (ROOT / named).exists(), named


def test_anchors_exist() -> None:
    for page in PAGES:
        for target, anchor in re.findall(r"\]\(([^)#\s]*)#([\w-]+)\)", page.read_text()):
            if "://" not in target:
                there = page.parent / target if target else page
                titles = re.findall(r"^#+ (.*)$", there.read_text(), re.MULTILINE)
                assert anchor in {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_settings_that_are_named_exist(page: Path) -> None:
    known = environment_names()
    for name in re.findall(r"\bAIBRIX_[A-Z0-9_]+\b(?![<*])", page.read_text()):
        if not name.startswith("AIBRIX_ENDPOINT_KEY_") and not name.endswith("_"):
            assert name in known, name


def test_the_picture_of_the_life_of_a_batch_is_the_table() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text()
    drawn = set(re.findall(r"^ +([A-Z_]+) --> ([A-Z_]+): (\w+)$", text, re.MULTILINE))
    legal = {
        (str(source), str(move.target), str(event))
        for event, move in LIFECYCLE.moves.items()
        for source in move.sources
    }
    assert drawn == legal


def test_every_error_code_is_explained() -> None:
    page = (ROOT / "docs" / "errors.md").read_text()
    source = "\n".join(path.read_text() for path in SOURCES)
    used = set(re.findall(r"""(?:code=|Fault\(|_invalid\([^)]*?, )"([a-z]+(?:_[a-z]+)+)\"""", source))
    explained = set(re.findall(r"`([a-z]+(?:_[a-z]+)+)`", page))
    assert used - explained == set()
    assert {code for code in explained if f'"{code}"' not in source and f"{code}_" not in source} <= {
        "max_retries",
        "no_endpoint_max_retries",
        "invalid_request_error",
        "custom_id",
        "integer_above_max_value",
        "integer_below_min_value",
    }


def test_every_command_and_runtime_is_described() -> None:
    page = (ROOT / "docs" / "cli.md").read_text()
    names = [command.name or command.callback.__name__ for command in app.registered_commands if command.callback]
    names += [f"keys {command.name}" for command in keys.registered_commands]
    names += [f"template {command.name}" for command in template.registered_commands]
    assert [name for name in names if f"| `{name}` |" not in page] == []
    runtimes = (ROOT / "docs" / "runtimes.md").read_text()
    assert [name for name in RUNTIMES if f"| `{name}` |" not in runtimes] == []


SECTIONS: dict[str, type[BaseModel]] = {
    "Template": Template,
    "spec": TemplateSpec,
    "spec.engine": Engine,
    "spec.model_source": ModelSource,
    "spec.accelerator": Accelerator,
    "spec.parallelism": Parallelism,
    "spec.engine_args": EngineArgs,
    "spec.quantization": Quantization,
}


def fields_of(section: str) -> Iterator[list[str]]:
    """The rows of its table, cell by cell."""
    text = TEMPLATES.partition(f"\n### {section}\n")[2].partition("\n#")[0]
    for row in re.findall(r"^\| `.*\|$", text, re.MULTILINE):
        yield [cell.strip() for cell in row.strip("|").split("|")]


@pytest.mark.parametrize("section", SECTIONS)
def test_every_field_of_templates_is_described(section: str) -> None:
    fields = SECTIONS[section].model_fields
    found = {name.strip("`"): (kind, default) for name, kind, default, *_ in fields_of(section)}
    assert list(found) == list(fields)
    for name, field in fields.items():
        kind, default = found[name]
        if field.is_required():
            assert default == "required"
        elif field.default_factory is None:
            assert default == ("none" if field.default is None else f"`{field.default}`"), name
        rule = json.dumps(json.loads(schema(profile=False))["$defs"][SECTIONS[section].__name__]["properties"][name])
        for word in re.findall(r"`([^`]+)`", kind):
            assert f'"{word}"' in rule, (name, word)


def test_fields_of_templates_that_nobody_honours_are_named() -> None:
    said = {
        f"{section.partition('.')[2]}.{name}".strip(".").replace("`", "")
        for section in SECTIONS
        for name, *_, honoured in fields_of(section)
        if honoured == "nobody"
    }
    everything = copy.deepcopy(FULL)
    everything["spec"]["parallelism"] |= {"sp": 2, "cp": 2}
    assert set(Template.model_validate(everything).spec.ignored_fields()) == said


def test_the_example_of_a_template_can_be_started() -> None:
    template = Template.model_validate(TEMPLATE)
    check_renderable(template.spec)
    assert template.spec.ignored_fields() == []
    override = json.loads(re.findall(r"```json\n(.*?)```", TEMPLATES, re.DOTALL)[0])
    args = template.with_engine_args(override["overrides"]["engine_args"]).spec.engine_args
    assert args.max_num_seqs == 32
    assert args.others() == {}


def test_the_order_of_versions_is_the_one_that_is_described() -> None:
    (line,) = re.findall(r"```\n(stable .*)\n```", TEMPLATES)
    assert line.split() == sorted(line.split(), key=version_key)


async def test_the_example_of_the_readme_runs(tmp_path: Path) -> None:
    block = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert block is not None
    async with witness() as engine, suite(tmp_path, "all", AIBRIX_DEFAULT_ENDPOINT=engine.url) as platform:
        script = tmp_path / "example.py"
        script.write_text(block[1].replace("http://127.0.0.1:8080", platform.url))
        process = await asyncio.create_subprocess_exec(
            sys.executable, str(script), env=environment(), stdout=asyncio.subprocess.PIPE
        )
        async with asyncio.timeout(PATIENCE_S):
            said, _ = await process.communicate()
    assert process.returncode == 0
    lines = said.decode().splitlines()
    assert lines[0].startswith("completed ")
    assert len(lines) == 4
    assert len(engine.seen) == 100
