"""The registry over the Kubernetes API: the official client against an emulated API server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
import structlog
from kubernetes.aio import config
from kubernetes.aio.config import incluster_config

from services.kit.errors import InvalidArgument, Unavailable
from services.kit.kubernetes import backoff
from services.kit.spec.block import parse_block
from services.kit.spec.profile import Quota
from services.kit.spec.resolved import Resolved, resolve
from services.metadata.registry import configmap
from services.metadata.registry.configmap import ConfigMapSource
from services.metadata.registry.registry import Registry, opened
from services.metadata.registry.source import SourceError
from tests.conftest import free_port
from tests.kubernetes.cluster import Cluster
from tests.kubernetes.faults import Fault
from tests.metadata.entries import accelerator, entry, labels, problems, profiles, text, told

PATH = "/api/v1/namespaces/batch/configmaps"


@pytest.fixture
def logs() -> Iterator[list[Any]]:
    with structlog.testing.capture_logs() as captured:
        yield captured


@pytest.fixture
def kubeconfig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the kubeconfig of somebody who is not in a pod lies."""
    path = tmp_path / "kubeconfig"
    monkeypatch.setattr(config.kube_config, "KUBE_CONFIG_DEFAULT_LOCATION", str(path))
    monkeypatch.delenv(incluster_config.SERVICE_HOST_ENV_NAME, raising=False)
    monkeypatch.setattr(backoff, "LONGEST_S", 0.01)
    return path


@pytest.fixture
async def api(kubeconfig: Path) -> AsyncIterator[Cluster]:
    async with Cluster("batch").running() as cluster:
        cluster.write_kubeconfig(kubeconfig)
        yield cluster


def apply(api: Cluster, **data: str) -> None:
    """As `kubectl apply` does. Keys have a dot, which a keyword cannot have."""
    keys = {name.replace("_yaml", ".yaml"): content for name, content in data.items()}
    api.put("configmaps", {"metadata": {"name": "registry", "namespace": "batch"}, "data": keys})


Open = Callable[..., Awaitable[Registry]]


@pytest.fixture
async def over(make_settings):
    """A registry over the given sources."""
    contexts = []

    async def make(templates: str = "configmap:batch/registry", profiles: str = "") -> Registry:
        settings = make_settings(templates={"source": templates}, profiles={"source": profiles})
        contexts.append(opened(settings))
        return await contexts[-1].__aenter__()

    yield make
    for context in contexts:
        await context.__aexit__(None, None, None)


async def until(happened: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not happened():
            await asyncio.sleep(0.005)


async def test_templates_and_profiles_of_one_config_map(api: Cluster, over: Open) -> None:
    apply(api, templates_yaml=text(entry("a")), profiles_yaml=profiles({"name": "p"}, default="p"))
    registry = await over(profiles="configmap:batch/registry")
    assert labels(registry) == ["a@v1"]
    assert registry.catalog.profiles is not None
    assert registry.catalog.profiles.default == "p"
    request = api.asked[0]
    assert (request.method, request.path, request.query["fieldSelector"]) == ("GET", PATH, "metadata.name=registry")
    assert request.headers["Authorization"] == f"Bearer {api.token}"


@pytest.mark.parametrize(
    ("setting", "keys", "expected"),
    [
        ("configmap:batch/registry", {"templates_yaml": "a", "other": "b"}, ["a@v1"]),
        ("configmap:batch/registry", {"other": "b"}, ["b@v1"]),
        ("configmap:batch/registry/other", {"templates_yaml": "a", "other": "b"}, ["b@v1"]),
        ("configmap:batch/registry", {"one": "a", "other": "b"}, []),
        ("configmap:batch/registry/none", {"templates_yaml": "a"}, []),
        ("configmap:batch/registry", {}, []),
    ],
)
async def test_which_key_is_read(
    api: Cluster, over: Open, logs: list[Any], setting: str, keys: dict[str, str], expected: list[str]
) -> None:
    apply(api, **{key: text(entry(name)) for key, name in keys.items()})
    registry = await over(setting)
    assert labels(registry) == expected
    missing = "none" if setting.endswith("none") else "templates.yaml"
    assert told(logs) == ([] if expected else [f"configmap:batch/registry/{missing}: the ConfigMap has no such key"])


async def test_a_change_holds_at_once_and_a_bad_entry_stays(api: Cluster, over: Open, logs: list[Any]) -> None:
    """Nobody calls `reload` here."""
    apply(api, templates_yaml=text(entry("a"), entry("b")))
    registry = await over()
    apply(api, templates_yaml=text(entry("a", what=1), entry("b", accelerator="H100")))
    await until(lambda: accelerator(registry, "b") == "H100")
    assert labels(registry) == ["a@v1", "b@v1"]
    apply(api, templates_yaml="- [")
    await until(lambda: len(told(logs)) == 2)
    apply(api, other=text(entry("c")), another="")
    await until(lambda: len(told(logs)) == 3)
    assert labels(registry) == ["a@v1", "b@v1"]
    assert [line.partition(": ")[0] for line in told(logs)] == [
        "configmap:batch/registry/templates.yaml:14",
        "configmap:batch/registry/templates.yaml:2",
        "configmap:batch/registry/templates.yaml",
    ]


async def test_nothing_is_asked_or_parsed_while_nothing_changes(
    api: Cluster, over: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    apply(api, templates_yaml=text(entry("a")))
    registry = await over()
    await until(lambda: bool(api.watches))
    before = registry.catalog
    assert registry.templates is not None
    monkeypatch.setattr(registry.templates, "_read", lambda *_: pytest.fail("it was read"))
    for _ in range(3):
        await registry.reload()
    assert registry.catalog is before
    assert len(api.asked) == 2


async def test_no_config_map_is_an_empty_registry_and_told_once(api: Cluster, over: Open, logs: list[Any]) -> None:
    registry = await over()
    await registry.reload()
    assert (labels(registry), problems()) == ([], 1)
    assert told(logs) == ["configmap:batch/registry: there is no such ConfigMap"]
    apply(api, templates_yaml=text(entry("a")))
    await until(lambda: (labels(registry), problems()) == (["a@v1"], 0))
    api.remove("configmaps", "batch", "registry")
    await until(lambda: labels(registry) == [])
    await until(lambda: len(told(logs)) == 2)


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        (Fault(401), "the Kubernetes API answers 401: its credentials are not accepted"),
        (
            Fault(403, "Forbidden", "configmaps is forbidden"),
            "the Kubernetes API answers 403: the service account needs `list` and `watch` on this ConfigMap",
        ),
        (Fault(500, message="of no use"), "the Kubernetes API answers 500: of no use"),
        (Fault(raw=b"<html>"), "the Kubernetes API answers something that is no object"),
        (Fault(raw=b'{"items": [{"data": {}}]}'), "the Kubernetes API answers something that is no list of configmaps"),
    ],
)
async def test_an_outage_of_the_api_changes_nothing_and_is_told_once(
    api: Cluster, over: Open, logs: list[Any], monkeypatch: pytest.MonkeyPatch, fault: Fault, why: str
) -> None:
    monkeypatch.setattr(configmap, "PATIENCE_S", 0.0)
    apply(api, templates_yaml=text(entry("a")))
    registry = await over()
    await until(lambda: bool(api.watches))
    outage = api.fail(fault, times=10**6)
    api.break_watches()
    await until(lambda: len(outage.met) >= 6)
    for _ in range(3):
        await registry.reload()
    assert (labels(registry), problems()) == (["a@v1"], 1)
    assert told(logs) == [f"configmap:batch/registry: {why}"]
    apply(api, templates_yaml=text(entry("b")))
    api.planned.clear()
    await until(lambda: labels(registry) == ["b@v1"])
    await registry.reload()
    assert problems() == 0


async def test_a_watch_that_is_mended_in_a_moment_is_no_problem(api: Cluster, over: Open, logs: list[Any]) -> None:
    apply(api, templates_yaml=text(entry("a")))
    registry = await over()
    await until(lambda: bool(api.watches))
    outage = api.fail(Fault(503), times=10**6)
    api.break_watches()
    await until(lambda: len(outage.met) >= 3)
    await registry.reload()
    assert (labels(registry), told(logs)) == (["a@v1"], [])


@pytest.mark.parametrize("data", [7, {"templates.yaml": 7}, [1]])
async def test_what_is_no_config_map(api: Cluster, over: Open, logs: list[Any], data: Any) -> None:
    api.put("configmaps", {"metadata": {"name": "registry", "namespace": "batch"}, "data": data})
    registry = await over()
    assert labels(registry) == []
    assert told(logs) == ["configmap:batch/registry: the Kubernetes API answers something that is no ConfigMap"]


async def test_an_api_that_cannot_be_reached_does_not_stop_the_start(
    over: Open, kubeconfig: Path, logs: list[Any]
) -> None:
    cluster = Cluster("batch")
    cluster.url = f"http://127.0.0.1:{free_port()}"
    cluster.write_kubeconfig(kubeconfig)
    registry = await over()
    await registry.reload()
    assert labels(registry) == []
    assert told(logs) == ["configmap:batch/registry: the Kubernetes API does not answer: ClientConnectorError"]


async def test_what_nobody_could_read_yet_is_no_fault_of_the_batch(api: Cluster, over: Open) -> None:
    """A server that starts during an outage says neither that a template does not exist, nor that no profile binds a batch."""
    outage = api.fail(Fault(status=500), times=1_000_000, path=PATH)
    registry = await over(profiles="configmap:batch/registry")

    def meets(**said: object) -> Resolved:
        return resolve(parse_block(orjson.dumps(said)), registry.catalog, Quota())

    for said in ({"model_template": {"name": "a"}}, {"profile": {"name": "fast"}}, {}):
        with pytest.raises(Unavailable, match=r"cannot read its (templates|profiles) yet"):
            meets(**said)
    api.planned.remove(outage)
    apply(api)  # it is empty, which is an answer

    def shelves() -> list[object]:
        return [registry.catalog.templates, registry.catalog.profiles]

    # Each has a watch of its own.
    await until(lambda: all(getattr(shelf, "is_read", False) for shelf in shelves()))
    assert meets().profile is None
    for said in ({"model_template": {"name": "a"}}, {"profile": {"name": "fast"}}):
        with pytest.raises(InvalidArgument, match="are: none"):
            meets(**said)


async def test_an_api_that_is_silent_is_not_waited_for(
    api: Cluster, over: Open, logs: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(configmap, "TIMEOUT_S", 0.05)
    api.fail(Fault(hangs=True))
    await over()
    assert told(logs) == ["configmap:batch/registry: the Kubernetes API does not answer: TimeoutError"]
    source = ConfigMapSource("batch", "registry", None, "templates.yaml")
    with pytest.raises(SourceError, match="does not answer: TimeoutError"):
        await source.fetch(None)
    await source.close()


async def test_without_credentials_it_is_told_once(over: Open, kubeconfig: Path, logs: list[Any]) -> None:
    registry = await over()
    await registry.reload()
    assert told(logs) == ["configmap:batch/registry: there are credentials of neither a pod nor a kubeconfig"]
