"""The image: what its file promises, as far as that can be checked without an engine to build it."""

from __future__ import annotations

import re
import tomllib

import pytest

from cli.main import app
from services.__main__ import ROLES
from services.kit.settings import environment_names
from tests.deploy.files import ROOT, dockerfile

BUILD, FINAL = dockerfile()
# Instructions that Docker knows.
KNOWN = {
    "ARG",
    "CMD",
    "COPY",
    "ENTRYPOINT",
    "ENV",
    "EXPOSE",
    "HEALTHCHECK",
    "LABEL",
    "RUN",
    "STOPSIGNAL",
    "USER",
    "VOLUME",
    "WORKDIR",
}


def test_two_stages_of_slim_images() -> None:
    assert BUILD.name == "build"
    for stage in (BUILD, FINAL):
        assert re.fullmatch(r"python:3\.\d+-slim-\w+", stage.base)
        assert {one.name for one in stage.instructions} <= KNOWN


def test_only_what_was_built_gets_into_the_image() -> None:
    copies = FINAL.all("COPY")
    assert [one.flags()["from"] for one in copies] == ["build"]
    assert not any("pip" in one.text for one in FINAL.all("RUN"))


def test_the_python_is_one_that_the_project_supports() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    minimum = tuple(map(int, project["requires-python"].removeprefix(">=").split(".")))
    version = re.match(r"python:(\d+)\.(\d+)", FINAL.base)
    assert version is not None
    assert tuple(map(int, version.groups())) >= minimum


def test_dependencies_come_by_hash() -> None:
    installs = [part for one in BUILD.all("RUN") for part in one.text.split("&&") if "pip install" in part]
    assert len(installs) == 3
    for install in installs:
        assert "--require-hashes" in install or "--no-deps" in install
    assert not any("==" in one.text for one in BUILD.all("RUN"))


def test_what_is_copied_exists_and_is_not_ignored() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert ignored[0] == "*"
    for copy in BUILD.all("COPY"):
        for source in copy.words()[:-1]:
            assert (ROOT / source).exists(), source
            assert f"!{source}" in ignored, source


def test_the_packages_of_the_wheel_are_copied() -> None:
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    copied = [source for one in BUILD.all("COPY") for source in one.words()[:-1]]
    for package in packages["packages"]:
        assert any(package == source or package.startswith(f"{source}/") for source in copied), package


def test_it_does_not_run_as_root() -> None:
    (user,) = FINAL.all("USER")
    uid, gid = map(int, user.text.split(":"))
    assert uid >= 1000
    assert gid >= 1000
    assert FINAL.instructions.index(user) < FINAL.instructions.index(FINAL.all("ENTRYPOINT")[0])


def test_the_role_is_the_argument() -> None:
    (entrypoint,) = FINAL.all("ENTRYPOINT")
    assert entrypoint.words() == ["aibrix-batch", "serve"]
    assert FINAL.all("CMD") == []
    assert FINAL.all("STOPSIGNAL")[0].text == "SIGTERM"


def test_the_health_check_is_a_command_that_exists() -> None:
    (check,) = FINAL.all("HEALTHCHECK")
    assert '["aibrix-batch", "health"]' in check.text
    assert "health" in [command.callback.__name__ for command in app.registered_commands if command.callback]


def test_its_settings_exist_and_every_role_listens_everywhere() -> None:
    env = FINAL.env()
    assert {name for name in env if name.startswith("AIBRIX_")} <= environment_names().keys()
    listens = {role: env[f"AIBRIX_{role.upper()}__LISTEN"] for role in ROLES}
    assert all(listen.startswith("0.0.0.0:") for listen in listens.values())
    (expose,) = FINAL.all("EXPOSE")
    assert set(expose.words()) == {listen.rpartition(":")[2] for listen in listens.values()}


@pytest.mark.parametrize("lock", ["requirements.lock", "requirements-dev.lock", "requirements-build.lock"])
def test_lock_files_name_no_place(lock: str) -> None:
    text = (ROOT / lock).read_text()
    assert not re.search(r"https?:|file:|^-|^/", text, re.MULTILINE)
    packages = re.findall(r"^([\w.-]+)==[^\n]*\n    --hash=sha256:[0-9a-f]{64}", text, re.MULTILINE)
    assert packages == sorted(packages)
    assert packages == re.findall(r"^([\w.-]+)", text, re.MULTILINE), "a package without version or hash"


def test_lock_files_hold_what_the_project_asks_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

    def names(requirements: list[str]) -> set[str]:
        return {re.split(r"[\[<>=; ]", one)[0].lower() for one in requirements}

    def locked(file: str) -> dict[str, str]:
        return dict(re.findall(r"^([\w.-]+)==([\w.]+)", (ROOT / file).read_text(), re.MULTILINE))

    run, dev, build = (locked(f"requirements{kind}.lock") for kind in ("", "-dev", "-build"))
    assert names(project["dependencies"]) <= run.keys()
    assert names(project["optional-dependencies"]["dev"]) <= dev.keys()
    assert run.items() <= dev.items()
    assert "hatchling" in build
    assert build.items() <= dev.items()
