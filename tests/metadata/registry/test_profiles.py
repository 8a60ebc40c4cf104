"""Profiles of a registry, and the one that holds where a batch names none."""

from __future__ import annotations

import pytest

from services.kit.errors import InvalidArgument
from tests.metadata.entries import profiles, told
from tests.metadata.registry.conftest import put


async def test_profiles_and_their_default(over, path, logs):
    big = {"name": "big", "spec": {"quota": {"max_requests_per_batch": 9}, "scheduling": {"allow_spot": True}}}
    put(path, profiles({"name": "small"}, big, default="small"))
    async with over(profiles=path) as registry:
        held = registry.catalog.profiles
        assert held.default_profile().name == "small"
        assert held.resolve("big").spec.quota.max_requests_per_batch == 9
        assert registry.catalog.templates is None
        assert [log["fields"] for log in logs if log["event"] == "accepted, not honoured"] == [
            ["scheduling.allow_spot"]
        ]
        with pytest.raises(InvalidArgument, match="Known profiles are: 'big', 'small'"):
            held.resolve("none")


@pytest.mark.parametrize(
    ("content", "names", "default"),
    [
        (profiles({"name": "a", "what": 1}, {"name": "b"}, default="a"), ["a", "b"], "a"),
        (profiles({"name": "b"}, default="a"), ["b"], None),
        (profiles({"name": "a"}, {"name": "b"}, default="c"), ["a", "b"], "a"),
        (profiles({"name": "a"}, {"name": "b"}, default=7), ["a", "b"], "a"),
        (profiles({"name": "a"}, {"name": "b"}, default="b"), ["a", "b"], "b"),
        (profiles({"name": "a"}, {"name": "b"}), ["a", "b"], None),
        ("itmes: []", ["a", "b"], "a"),
        ("items: [", ["a", "b"], "a"),
        ("items: []", [], None),
    ],
)
async def test_the_last_good_profiles_and_default_stay(over, path, content, names, default):
    put(path, profiles({"name": "a"}, {"name": "b"}, default="a"))
    async with over(profiles=path) as registry:
        put(path, content)
        await registry.reload()
        held = registry.catalog.profiles
        assert (sorted(held.by_name), held.default) == (names, default)


async def test_of_two_defaults_in_a_folder_the_first_holds(over, tmp_path, logs):
    put(tmp_path / "a.yaml", profiles({"name": "a"}, default="a"))
    put(tmp_path / "b.yaml", profiles({"name": "b"}, default="b"))
    async with over(profiles=tmp_path) as registry:
        assert registry.catalog.profiles.default == "a"
        assert told(logs) == [f"{tmp_path / 'b.yaml'}: default: another document names a default already"]
