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

    async def launch(self, spec):
        return {{}}

    probe = release = list = close = launch
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
    install(packages, "acme_long", target="n" * 129)
    install(packages, "acme_two_lines", target=r"A\nB")
    install(packages, "acme_padded", target="Local ")
    install(packages, "acme_leaves", target="C", body="raise SystemExit(0)")
    install(packages, "acme_incomplete", target="D", body="self.probe = None; self.close = 1")
    install(packages, "acme_well", target="Well")
    assert set(load_runtimes(Settings(data_dir=packages))) == {*RUNTIMES, "Well"}
    logged = capsys.readouterr()
    said = logged.out + logged.err
    for folder in packages.glob("*.dist-info"):
        name = folder.name.removesuffix("-1.0.dist-info")
        assert (f"of the package {name}" in said) == (name != "acme_well")
    assert "it lacks probe, close" in said


def test_name_that_is_taken_stops_the_start(packages: Path) -> None:
    install(packages, "acme_impostor", target="External")
    with pytest.raises(ValueError, match=r"called External: .*external:External and .* of the package acme_impostor"):
        load_runtimes(Settings(data_dir=packages))


def test_two_packages_with_one_name_stop_the_start(packages: Path) -> None:
    install(packages, "acme_one", target="Same")
    install(packages, "acme_two", target="Same")
    with pytest.raises(ValueError, match=r"called Same: .*acme_(one|two).* and .*acme_(one|two)"):
        load_runtimes(Settings(data_dir=packages))
