"""Runtimes of other packages, installed the way packages are."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.kit.settings import Settings
from services.runner.runtimes.registry import RUNTIMES, load_runtimes

SOURCE = """
class Acme:
    target = "{target}"

    def __init__(self, settings):
        {body}

    async def list(self):
        return []
"""


def install(
    folder: Path, name: str, *, target: str, body: str = "self.settings = settings", object_: str = "Acme"
) -> None:
    """What an installer leaves of a package: the module, and its dist-info with the entry point."""
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (folder / f"{name}.py").write_text(SOURCE.format(target=target, body=body))
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[aibrix_batch.runtimes]\n{name} = {name}:{object_}\n")


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    return folder


def test_ours_are_there(tmp_path: Path) -> None:
    runtimes = load_runtimes(Settings(data_dir=tmp_path))
    assert set(runtimes) == set(RUNTIMES)
    assert all(runtime.target == target for target, runtime in runtimes.items())


def test_runtime_of_another_package_is_found(packages: Path) -> None:
    install(packages, "acme_found", target="Acme")
    settings = Settings(data_dir=packages)
    acme = load_runtimes(settings)["Acme"]
    assert acme.settings is settings  # type: ignore[attr-defined]


def test_broken_ones_are_left_out(packages: Path, capsys: pytest.CaptureFixture[str]) -> None:
    install(packages, "acme_raises", target="A", body="raise OSError('no driver')")
    install(packages, "acme_absent", target="B", object_="Missing")
    install(packages, "acme_nameless", target="")
    install(packages, "acme_well", target="Well")
    assert set(load_runtimes(Settings(data_dir=packages))) == {*RUNTIMES, "Well"}
    logged = capsys.readouterr()
    for name in ("acme_raises", "acme_absent", "acme_nameless"):
        assert name in logged.out + logged.err


def test_name_that_is_taken_stops_the_start(packages: Path) -> None:
    install(packages, "acme_impostor", target="External")
    with pytest.raises(ValueError, match=r"External.*acme_impostor"):
        load_runtimes(Settings(data_dir=packages))
