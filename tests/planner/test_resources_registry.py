from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from services.kit.settings import Settings
from services.planner.domain import Machine, Offer
from services.planner.resource_manager import registry
from services.planner.resource_manager.base import Order, Probe, Ready
from services.planner.resource_manager.registry import close_all, load_providers
from services.planner.service import resources

MISSING = {"runpod": "RUNPOD_API_KEY", "lambdaCloud": "LAMBDA_CLOUD_API_KEY", "static": "AIBRIX_STATIC__ENDPOINTS"}


class Mine:
    name = "mine"
    target = "External"

    def __init__(self, settings: Settings) -> None:
        self.closed = False

    async def catalog(self) -> list[Offer]:
        return []

    async def launch(self, order: Order) -> Machine:
        return Machine(id="x", name=order.name)

    async def probe(self, machine: Machine) -> Probe:
        return Ready(machine)

    async def release(self, machine: Machine) -> bool:
        return True

    async def list(self) -> list[Machine]:
        return []

    async def close(self) -> None:
        self.closed = True


class Broken(Mine):
    async def close(self) -> None:
        raise RuntimeError("it does not want to")


class Nameless(Mine):
    name = "another"


class Half:
    name, target = "mine", "External"

    def __init__(self, settings: Settings) -> None:
        pass


class Keyless(Mine):
    def __init__(self, settings: Settings) -> None:
        raise ValueError("MINE_API_KEY is not set")


class Bug(Mine):
    def __init__(self, settings: Settings) -> None:
        raise KeyError("x")


class Entry:
    """What importlib.metadata finds of a package."""

    value, dist = "mine.module:Mine", None

    def __init__(self, name: str, loaded: Any) -> None:
        self.name, self.loaded = name, loaded

    def load(self) -> Any:
        return self.loaded


@pytest.fixture
def packages(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def have(*entries: Entry) -> None:
        monkeypatch.setattr(registry, "entry_points", lambda group: entries if group == registry.GROUP else ())

    have()
    return have


def settings(make_settings: Callable[..., Settings], names: str) -> Settings:
    return make_settings(provisioner=names)


def test_those_that_are_named_in_their_order(make_settings: Callable[..., Settings], packages: Any) -> None:
    given = make_settings(
        provisioner=" static, local ,kubernetes", static={"endpoints": [{"name": "a", "base_url": "http://a"}]}
    )
    found = load_providers(given)
    assert list(found) == ["static", "local", "kubernetes"]
    assert all(provider.name == name for name, provider in found.items())


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("", "PROVISIONER names no provider"),
        (" , ", "PROVISIONER names no provider"),
        ("local,local", "PROVISIONER names a provider twice"),
        ("RunPod", "there is no provider 'RunPod'; known are kubernetes, lambdaCloud, local, mine, runpod, static"),
        ("local,lambda", "there is no provider 'lambda'"),
    ],
)
def test_what_stops_the_start(make_settings: Callable[..., Settings], packages: Any, names: str, message: str) -> None:
    packages(Entry("mine", Mine))
    with pytest.raises(ValueError, match=message):
        load_providers(settings(make_settings, names))


@pytest.mark.parametrize(("name", "variable"), MISSING.items())
def test_a_missing_credential_stops_the_start_with_its_name(
    make_settings: Callable[..., Settings], packages: Any, name: str, variable: str
) -> None:
    with pytest.raises(ValueError, match=variable):
        load_providers(settings(make_settings, f"local,{name}"))


async def test_one_of_a_package(make_settings: Callable[..., Settings], packages: Any) -> None:
    packages(Entry("mine", Mine), Entry("other", Half))
    async with resources.opened(None, settings(make_settings, "mine,local")) as manager:  # type: ignore[arg-type]
        assert manager.targets() == {"mine": "External", "local": "Local"}
        mine = manager.providers["mine"]
        assert isinstance(mine, Mine)
    assert mine.closed


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([Entry("mine", Half)], "it lacks catalog, launch, probe, release, list, close"),
        ([Entry("mine", Nameless)], "its `name` or `target` is not what base.py says"),
        ([Entry("mine", Keyless)], "MINE_API_KEY is not set"),
        ([Entry("mine", Bug)], r"the provider mine \(mine\.module:Mine\) cannot be used"),
        ([Entry("mine", Mine), Entry("mine", Mine)], "two providers are called mine"),
        ([Entry("mine", Mine), Entry("local", Mine)], "two providers are called local: .*Local and mine.module:Mine"),
    ],
)
def test_a_package_that_cannot_be_used_stops_the_start(
    make_settings: Callable[..., Settings], packages: Any, entries: list[Entry], message: str
) -> None:
    packages(*entries)
    with pytest.raises(ValueError, match=message):
        load_providers(settings(make_settings, "mine,local"))


async def test_one_that_does_not_close_holds_up_no_other(make_settings: Callable[..., Settings]) -> None:
    given = make_settings()
    broken, mine = Broken(given), Mine(given)
    await close_all([broken, mine])
    assert mine.closed
