"""A runtime in a package of its own: built and installed by pip, found by its entry point, used through the official SDK."""

from __future__ import annotations

import inspect
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import openai
import pytest

from services.kit.settings import Settings
from services.metadata.service.requests import BUILT_IN_TARGETS
from services.runner.runtimes.registry import load_runtimes
from tests.cli.support import cli
from tests.contracts import test_runtime as contract
from tests.e2e.processes import Suite, eventually, suite
from tests.e2e.test_sdk import ended, jsonl, line, lines_of, run
from tests.runtimes.support import Spec, parse_block

SHELF = Path(__file__).with_name("third_party")
PIP = (sys.executable, "-m", "pip", "--isolated", "--disable-pip-version-check", "--no-cache-dir", "install")
OFFLINE = ("--no-index", "--no-deps", "--no-build-isolation")


def install(place: Path, *packages: Path) -> Path:
    """Build the packages and install them into a folder of their own, without a network."""
    argv = [*PIP, *OFFLINE, "--target", str(place), *map(str, packages)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
    return place


def copied(to: Path, name: str, **changes: str) -> Path:
    """The package under another name, with its code changed."""
    shutil.copytree(SHELF, to, ignore=shutil.ignore_patterns("__pycache__"))
    project, module = to / "pyproject.toml", to / f"{name}.py"
    code = (to / "aibrix_shelf.py").rename(module).read_text()
    for old, new in changes.items():
        assert old in code
        code = code.replace(old, new)
    module.write_text(code)
    project.write_text(project.read_text().replace("aibrix_shelf", name).replace("aibrix-shelf", name))
    return to


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the package is installed, beside two that cannot be used: a wrong import, and a program that ends itself."""
    folder = tmp_path_factory.mktemp("packages")
    unloadable = copied(folder / "a", "shelf_unloadable", aiohttp="no_such_library")
    leaving = copied(folder / "b", "shelf_leaving", **{"self._engines: dict": "raise SystemExit(3)\n        x: dict"})
    clean = shutil.copytree(SHELF, folder / "c", ignore=shutil.ignore_patterns("__pycache__"))
    return install(folder / "site", clean, unloadable, leaving)


def python_path(*places: Path) -> str:
    return os.pathsep.join([*map(str, places), os.environ.get("PYTHONPATH", "")])


@pytest.fixture
async def platform(tmp_path: Path, site: Path) -> AsyncIterator[Suite]:
    async with suite(tmp_path, "all", PYTHONPATH=python_path(site)) as running:
        yield running


def sdk(platform: Suite) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{platform.url}/v1", api_key="any", max_retries=8)


async def asked(client: openai.AsyncOpenAI, target: str, input_file_id: str = "file-none") -> openai.types.Batch:
    return await client.batches.create(
        input_file_id=input_file_id,
        endpoint="/v1/chat/completions",
        completion_window="24h",
        extra_body={"aibrix": {"runtime": {"target": target}}},
    )


async def test_batches_run_on_it(platform: Suite) -> None:
    async with sdk(platform) as client:
        block = {"runtime": {"target": "Shelf", "options": {"title": "Emma"}}}
        batch = await run(client, jsonl(*(line(f"page {n}") for n in range(50))), extra_body={"aibrix": block})
        assert batch.status == "completed", batch.errors
        assert batch.to_dict()["aibrix"] == block
        assert batch.usage is not None
        assert batch.usage.total_tokens == 150
        answers = {
            one["custom_id"]: one["response"]["body"]["choices"][0]["message"]["content"]
            for one in await lines_of(client, batch.output_file_id)
        }
        assert answers == {f"page {n}": f"Emma: page {n}" for n in range(50)}

        # Its options are its own business: what it refuses ends the batch, with its words.
        wrong: dict[str, Any] = {"runtime": {"target": "Shelf", "options": {"title": 7}}}
        batch = await run(client, jsonl(line("x")), extra_body={"aibrix": wrong})
        assert batch.status == "failed"
        assert batch.errors is not None
        assert batch.errors.data is not None
        assert ["aibrix.runtime.options.title must be a text" in str(one.message) for one in batch.errors.data] == [
            True
        ]

        with pytest.raises(openai.BadRequestError) as caught:
            await asked(client, "Shelves")
        assert (caught.value.param, caught.value.code) == ("aibrix.runtime.target", "invalid_value")
        said, _, known = caught.value.message.partition(". Known targets are: ")
        assert said.endswith("'Shelves'")
        assert set(known.removesuffix(".").split(", ")) == {f"'{name}'" for name in (*BUILT_IN_TARGETS, "Shelf")}
    assert platform.log("all").count("runtime not loaded") == 2
    assert "No module named 'no_such_library'" in platform.log("all")
    assert await platform.stop() == {"all": 0}


async def test_it_is_known_for_a_while_after_its_runner_went_away(tmp_path: Path, site: Path) -> None:
    async with (
        suite(tmp_path, "metadata", "runner", "gateway", PYTHONPATH=python_path(site)) as platform,
        sdk(platform) as client,
    ):
        # A role serves a moment before its first report.
        await eventually(lambda: accepted(client), "the runner reports its targets")
        await platform.kill("runner")
        uploaded = await client.files.create(file=("in.jsonl", jsonl(line("x"))), purpose="batch")
        waiting = await asked(client, "Shelf", uploaded.id)
        await platform.start("runner")
        assert (await ended(client, waiting.id)).status == "completed"

        await platform.kill("runner")
        await platform.kill("metadata")
        platform.env["AIBRIX_METADATA__RUNNER_MEMORY_S"] = "0.1"
        await platform.start("metadata")

        async def refused() -> bool:
            return not await accepted(client)

        await eventually(refused, "the target is forgotten")
        with pytest.raises(openai.BadRequestError) as caught:
            await asked(client, "Shelf")
        assert caught.value.param == "aibrix.runtime.target"
        assert "'Local'" in caught.value.message


async def accepted(client: openai.AsyncOpenAI) -> bool:
    try:
        await asked(client, "Shelf")
    except openai.BadRequestError:
        return False
    return True


def test_two_of_one_name_stop_the_start(tmp_path: Path, site: Path) -> None:
    twin = install(tmp_path / "site", copied(tmp_path / "twin", "shelf_twin"))
    done = cli("serve", "--role", "runner", "--data-dir", tmp_path / "data", PYTHONPATH=python_path(site, twin))
    assert done.returncode == 1
    said = done.stdout + done.stderr
    assert "the runner role did not start: two runtimes are called Shelf: " in said
    for package in ("aibrix-shelf", "shelf_twin"):
        assert f"of the package {package}" in said
    assert "uninstall one of them" in said


CHECKS = [check for name, check in vars(contract).items() if name.startswith("test_") and inspect.isfunction(check)]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__.removeprefix("test_"))
async def test_it_keeps_the_contract_of_a_runtime(
    check: Callable[..., Any], site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(site)
    runtime = load_runtimes(Settings(data_dir=tmp_path))["Shelf"]
    assert Path(inspect.getfile(type(runtime))).is_relative_to(site)
    spec = Spec(key="batch_1", block=parse_block('{"runtime": {"target": "Shelf"}}'))
    try:
        await check(contract.Case(runtime, spec, starts=True))
    finally:
        await runtime.close()
