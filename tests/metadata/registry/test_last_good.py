"""What stays when an entry or a document turns bad, and what is said about it."""

from __future__ import annotations

import os

import pytest

from tests.metadata.entries import a_spec, accelerator, entry, labels, problems, text, told
from tests.metadata.registry.conftest import put


async def test_an_entry_that_turns_bad_stays_as_it_was_and_the_others_go_on(over, path, logs):
    put(path, text(entry("a"), entry("b"), entry("c")))
    async with over(path) as registry:
        bad = entry("a") | {"spec": a_spec(what=1)}
        put(path, text(bad, entry("b", accelerator="H100"), entry("new")))
        await registry.reload()
        assert labels(registry) == ["a@v1", "b@v1", "new@v1"]
        assert [accelerator(registry, name) for name in ("a", "b")] == ["A10", "H100"]
        (line,) = told(logs)
        assert line.startswith(f"{path}:")
        assert line.endswith(": templates[0].spec.what: there is no such field")
        assert [(log["name"], log["version"]) for log in logs if log["event"] == "registry problem"] == [("a", "v1")]
        assert problems() == 1
        put(path, text(entry("a", accelerator="L4")))
        await registry.reload()
        assert (labels(registry), accelerator(registry, "a")) == (["a@v1"], "L4")
        assert problems() == 0
        assert logs[-1]["event"] == "registry has no problems any more"


async def test_a_bad_entry_that_never_was_good_is_left_out(over, path):
    put(path, text(entry("a"), entry("b", what=1)))
    async with over(path) as registry:
        assert labels(registry) == ["a@v1"]
        assert problems() == 1


@pytest.mark.parametrize(
    ("bad", "kept"),
    [
        ({"name": "a", "version": "v1", "what": 1}, ["a@v1"]),
        ({"name": "a", "version": 1.10}, []),
        ({"name": "a", "version": ["v1"]}, ["a@v2", "a@v1"]),
        ({"version": "v2", "what": 1}, ["a@v2"]),
        ({"nme": "a"}, []),
        ("what", ["a@v2", "a@v1"]),
        ({"name": ["a"], "version": None}, ["a@v2", "a@v1"]),
    ],
)
async def test_what_a_bad_entry_may_have_been_stays(over, path, bad, kept):
    put(path, text(entry("a"), entry("a", "v2")))
    async with over(path) as registry:
        put(path, text(bad, entry("b")))
        await registry.reload()
        assert labels(registry) == [*kept, "b@v1"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_text(path.read_text()[:-20] + "'"),
        lambda path: path.write_text("- name: ["),
        lambda path: path.write_bytes(b"- name: \xff"),
        lambda path: path.write_text("what"),
        lambda path: path.unlink(),
        lambda path: (path.unlink(), os.mkfifo(path)),
        lambda path: (path.unlink(), path.symlink_to("nowhere")),
    ],
    ids=["cut", "broken", "bytes", "text", "gone", "pipe", "nowhere"],
)
async def test_a_document_that_cannot_be_read_stays_as_it_was(over, path, damage, logs):
    put(path, text(entry("a"), entry("b")))
    async with over(path) as registry:
        damage(path)
        for _ in range(3):
            await registry.reload()
        assert labels(registry) == ["a@v1", "b@v1"]
        assert len(told(logs)) == 1
        assert problems() == 1
        if path.is_symlink() or path.exists():
            path.unlink()
        put(path, text(entry("b")))
        await registry.reload()
        assert labels(registry) == ["b@v1"]


async def test_an_empty_file_is_an_empty_registry(over, path):
    put(path, text(entry("a")))
    async with over(path) as registry:
        path.write_text("")
        await registry.reload()
        assert (labels(registry), problems()) == ([], 0)


async def test_a_problem_is_told_once_and_again_when_it_changes(over, path, logs):
    put(path, text(entry("a", what=1)))
    async with over(path) as registry:
        for _ in range(3):
            path.touch()
            await registry.reload()
        assert len(told(logs)) == 1
        put(path, text(entry("a", other=1)))
        await registry.reload()
        assert [line.rpartition("templates[0].")[2] for line in told(logs)] == [
            "what: there is no such field",
            "other: there is no such field",
        ]


async def test_of_a_flood_of_problems_some_are_told(over, path, logs):
    put(path, text(*[entry(f"n{number}", what=1) for number in range(500)]))
    async with over(path):
        assert len(told(logs)) == 100
        assert logs[-1] == {"event": "more registry problems", "log_level": "error", "kind": "templates", "count": 400}
        assert problems() == 500


async def test_what_is_not_honoured_is_told_once_by_field(over, path, logs):
    put(path, text(entry("a", spec=a_spec(quantization={"weights_artifact_uri": "secret-id"})), entry("b")))
    async with over(path) as registry:
        put(path, text(entry("a", spec=a_spec(quantization={"weights_artifact_uri": "secret-id"})), entry("c")))
        await registry.reload()
    found = [log for log in logs if log["event"] == "accepted, not honoured"]
    assert [(log["kind"], log["name"], log["version"], log["fields"]) for log in found] == [
        ("templates", "a", "v1", ["quantization.weights_artifact_uri"])
    ]
    assert "secret-id" not in str(logs)
