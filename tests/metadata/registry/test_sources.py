"""Where a registry is read from: files and folders, as they come, change and go."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml

from services.metadata.registry import files
from tests.metadata.entries import SPEC, accelerator, entry, labels, problems, text, told
from tests.metadata.registry.conftest import put

# What is configured.


async def test_without_a_source_there_is_no_registry(over):
    async with over() as registry:
        assert (registry.catalog.templates, registry.catalog.profiles) == (None, None)
        assert registry.models() == []


@pytest.mark.parametrize(
    ("templates", "profiles"),
    [
        ("configmap:", ""),
        ("configmap:only-a-namespace", ""),
        ("configmap:Upper/case", ""),
        ("configmap:a/b/c/d", ""),
        ("", "console"),
        ("/no/such/folder/templates.yaml", ""),
    ],
)
async def test_a_source_that_can_never_work_stops_the_start(over, templates, profiles):
    with pytest.raises(
        ValueError, match=r"configmap:NAMESPACE/NAME|console has templates only|neither .* nor a folder"
    ):
        async with over(templates, profiles):
            pass


async def test_a_file_that_comes_later_is_waited_for(over, path, logs):
    async with over(path) as registry:
        assert labels(registry) == []
        assert told(logs) == [f"{path}: it cannot be read: No such file or directory"]
        await registry.reload()
        assert len(told(logs)) == 1
        put(path, text(entry("a")))
        await registry.reload()
        assert labels(registry) == ["a@v1"]
        assert problems() == 0


async def test_a_folder_with_a_link_that_leads_nowhere_is_read_again(over, path):
    path.mkdir()
    (path / "a.yaml").symlink_to("a.yaml")  # a circle
    async with over(path) as registry:
        assert labels(registry) == []
        (path / "a.yaml").unlink()
        put(path / "a.yaml", text(entry("a")))
        await registry.reload()
        assert labels(registry) == ["a@v1"]


# What changes.


async def test_a_file_that_is_replaced_holds_at_once(over, path):
    put(path, text(entry("a"), entry("b")))
    async with over(path) as registry:
        before = registry.catalog
        assert labels(registry) == ["a@v1", "b@v1"]
        put(path, text(entry("a", accelerator="H100"), entry("c")))
        await registry.reload()
        assert labels(registry) == ["a@v1", "c@v1"]
        assert accelerator(registry, "a") == "H100"
        assert before.templates.resolve("a", "v1").spec.accelerator.type == "A10"


async def test_a_change_that_leaves_size_and_time_as_they_were_is_seen(over, path):
    put(path, text(entry("a", accelerator="A10")))
    status = path.stat()
    async with over(path) as registry:
        path.write_text(text(entry("a", accelerator="A40")))
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        await registry.reload()
        assert accelerator(registry, "a") == "A40"


async def test_nothing_is_read_while_nothing_changes(over, path, monkeypatch):
    put(path, text(entry("a")))
    monkeypatch.setattr(files, "SETTLED_S", -1.0)  # any change is old enough
    async with over(path) as registry:
        before = registry.catalog
        monkeypatch.setattr(files, "_read_all", lambda found: pytest.fail("it was read"))
        await registry.reload()
        assert registry.catalog is before


async def test_a_young_file_is_read_again_and_changes_nothing(over, path):
    put(path, text(entry("a")))
    async with over(path) as registry:
        before = registry.catalog
        path.touch()
        await registry.reload()
        assert registry.catalog is before


# Folders.


async def test_the_files_of_a_folder_are_one(over, tmp_path, logs):
    folder = tmp_path / "registry"
    (folder / "deeper").mkdir(parents=True)
    put(folder / "b.yml", text(entry("b"), entry("a", accelerator="H100")))
    put(folder / "a.yaml", text(entry("a")))
    put(folder / "c.json", '{"name": "c", "spec": ' + yaml.safe_dump(SPEC, default_flow_style=True) + "}")
    for ignored in ("notes.txt", ".hidden.yaml", "deeper/d.yaml"):
        put(folder / ignored, text(entry("x")))
    async with over(folder) as registry:
        assert labels(registry) == ["a@v1", "b@v1", "c@v1.0.0"]
        assert accelerator(registry, "a") == "A10"
        assert told(logs) == [f"{folder / 'b.yml'}: a@v1 is in {folder / 'a.yaml'} already"]
        (folder / "a.yaml").unlink()
        await registry.reload()
        assert accelerator(registry, "a") == "H100"
        (folder / "b.yml").write_text("- [")
        (folder / "c.json").unlink()
        await registry.reload()
        assert labels(registry) == ["a@v1", "b@v1"]
        assert problems() == 1


async def test_a_folder_that_vanishes_stays_as_it_was(over, tmp_path):
    folder = tmp_path / "registry"
    folder.mkdir()
    put(folder / "a.yaml", text(entry("a")))
    async with over(folder) as registry:
        folder.rename(tmp_path / "elsewhere")
        await registry.reload()
        assert (labels(registry), problems()) == (["a@v1"], 1)


def mounted(folder: Path, revision: str, **data: str) -> None:
    """As the kubelet writes a ConfigMap: a new folder, and a link to it that is swapped."""
    inner = folder / f"..{revision}"
    inner.mkdir(parents=True)
    for name, content in data.items():
        (inner / f"{name}.yaml").write_text(content)
    (folder / "..data_tmp").symlink_to(inner.name)
    (folder / "..data_tmp").replace(folder / "..data")
    for name in data:
        if not (folder / f"{name}.yaml").is_symlink():
            (folder / f"{name}.yaml").symlink_to(f"..data/{name}.yaml")


@pytest.mark.parametrize("source", ["", "templates.yaml"], ids=["folder", "file"])
async def test_a_mounted_config_map_is_swapped(over, tmp_path, source):
    folder = tmp_path / "mount"
    folder.mkdir()
    async with over(folder / source) as registry:
        assert labels(registry) == []
        mounted(folder, "2026_01", templates=text(entry("a")))
        await registry.reload()
        assert labels(registry) == ["a@v1"]
        mounted(folder, "2026_02", templates=text(entry("b")))
        await registry.reload()
        assert labels(registry) == ["b@v1"]


@pytest.mark.parametrize(
    ("limit", "value", "why"),
    [("MOST_FILES", 1, "more than 1 files"), ("MOST_BYTES", 10, "the files hold more than 10 bytes")],
)
async def test_a_folder_has_limits(over, tmp_path, monkeypatch, logs, limit, value, why):
    for name in ("a", "b"):
        put(tmp_path / f"{name}.yaml", text(entry(name)))
    async with over(tmp_path) as registry:
        monkeypatch.setattr(files, limit, value)
        put(tmp_path / "c.yaml", text(entry("c")))
        await registry.reload()
        assert labels(registry) == ["a@v1", "b@v1"]
        assert told(logs) == [f"{tmp_path}: {why}"]
