"""The registry over the Kubernetes API: a real client of the package `kubernetes` against a mock of the API server (kmock).

kmock speaks HTTP on loopback and has the published shapes of the API: objects at
/api/v1/namespaces/NAMESPACE/configmaps/NAME, errors as `kind: Status`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import certifi
import pytest
import structlog
import yaml
from kubernetes.aio import client, config
from kubernetes.aio.config import incluster_config

from services.metadata.registry import configmap
from services.metadata.registry.configmap import ConfigMapSource
from services.metadata.registry.registry import Registry, opened
from services.metadata.registry.source import SourceError
from tests.conftest import free_port
from tests.metadata.entries import accelerator, entry, labels, problems, profiles, text, told

PATH = "/api/v1/namespaces/batch/configmaps/registry"
KEY = ("v1/configmaps", "batch", "registry")
Mock = Any


@pytest.fixture
def logs() -> Iterator[list[Any]]:
    with structlog.testing.capture_logs() as captured:
        yield captured


@pytest.fixture
def kubeconfig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Makes the kubeconfig of somebody who is not in a pod."""

    def make(server: str) -> None:
        path = tmp_path / "kubeconfig"
        path.write_text(
            yaml.safe_dump(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "current-context": "here",
                    "contexts": [{"name": "here", "context": {"cluster": "mock", "user": "me"}}],
                    "clusters": [{"name": "mock", "cluster": {"server": server.rstrip("/")}}],
                    "users": [{"name": "me", "user": {"token": "a-token"}}],
                }
            )
        )
        monkeypatch.setattr(config.kube_config, "KUBE_CONFIG_DEFAULT_LOCATION", str(path))
        monkeypatch.delenv(incluster_config.SERVICE_HOST_ENV_NAME, raising=False)

    return make


@pytest.fixture
def api(kmock: Mock, kubeconfig: Callable[[str], None]) -> Mock:
    kubeconfig(str(kmock.url))
    return kmock


def apply(api: Mock, revision: int, **data: str) -> None:
    """As `kubectl apply` does. Keys have a dot, which a keyword cannot have."""
    keys = {name.replace("_yaml", ".yaml"): content for name, content in data.items()}
    metadata = {"name": "registry", "namespace": "batch", "uid": "a-uid", "resourceVersion": str(revision)}
    api.objects[KEY] = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": keys}


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


async def test_templates_and_profiles_of_one_config_map(api: Mock, over: Open) -> None:
    apply(api, 1, templates_yaml=text(entry("a")), profiles_yaml=profiles({"name": "p"}, default="p"))
    registry = await over(profiles="configmap:batch/registry")
    assert labels(registry) == ["a@v1"]
    assert registry.catalog.profiles is not None
    assert registry.catalog.profiles.default == "p"
    request = api[0]
    assert (request.method, str(request.url.path)) == ("GET", PATH)
    assert request.headers["Authorization"] == "Bearer a-token"


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
    api: Mock, over: Open, logs: list[Any], setting: str, keys: dict[str, str], expected: list[str]
) -> None:
    apply(api, 1, **{key: text(entry(name)) for key, name in keys.items()})
    registry = await over(setting)
    assert labels(registry) == expected
    missing = "none" if setting.endswith("none") else "templates.yaml"
    assert told(logs) == ([] if expected else [f"configmap:batch/registry/{missing}: the ConfigMap has no such key"])


async def test_a_change_holds_at_the_next_look_and_a_bad_entry_stays(api: Mock, over: Open, logs: list[Any]) -> None:
    apply(api, 1, templates_yaml=text(entry("a"), entry("b")))
    registry = await over()
    before = registry.catalog
    await registry.reload()
    assert registry.catalog is before
    apply(api, 2, templates_yaml=text(entry("a", what=1), entry("b", accelerator="H100")))
    await registry.reload()
    assert (labels(registry), accelerator(registry, "b")) == (["a@v1", "b@v1"], "H100")
    apply(api, 3, templates_yaml="- [")
    await registry.reload()
    assert labels(registry) == ["a@v1", "b@v1"]
    apply(api, 4, other=text(entry("c")), another="")
    await registry.reload()
    assert labels(registry) == ["a@v1", "b@v1"]
    assert [line.partition(": ")[0] for line in told(logs)] == [
        "configmap:batch/registry/templates.yaml:14",
        "configmap:batch/registry/templates.yaml:2",
        "configmap:batch/registry/templates.yaml",
    ]


async def test_the_text_is_not_parsed_while_the_revision_is_the_same(
    api: Mock, over: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    apply(api, 1, templates_yaml=text(entry("a")))
    registry = await over()
    assert registry.templates is not None
    monkeypatch.setattr(registry.templates, "_read", lambda *_: pytest.fail("it was read"))
    await registry.reload()
    assert len(api) == 2


async def test_no_config_map_is_an_empty_registry_and_told_once(api: Mock, over: Open, logs: list[Any]) -> None:
    registry = await over()
    await registry.reload()
    assert (labels(registry), problems()) == ([], 1)
    assert told(logs) == ["configmap:batch/registry: there is no such ConfigMap"]
    apply(api, 1, templates_yaml=text(entry("a")))
    await registry.reload()
    assert (labels(registry), problems()) == (["a@v1"], 0)
    del api.objects[KEY]
    await registry.reload()
    assert (labels(registry), len(told(logs))) == ([], 2)


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (401, "the Kubernetes API answers 401: its credentials are not accepted"),
        (403, "the Kubernetes API answers 403: the service account needs `get` on this ConfigMap"),
        (500, "the Kubernetes API answers 500"),
        ({"metadata": 7}, "the Kubernetes API answers something that is no ConfigMap"),
        ({"data": {}}, "the Kubernetes API answers something that is no ConfigMap"),
        (b"<html>", "the Kubernetes API answers something that is no ConfigMap"),
    ],
)
async def test_an_outage_of_the_api_changes_nothing_and_is_told_once(
    api: Mock, over: Open, logs: list[Any], answer: Any, why: str
) -> None:
    apply(api, 1, templates_yaml=text(entry("a")))
    registry = await over()
    api["get", PATH][1:4] << answer
    for _ in range(3):
        await registry.reload()
    assert (labels(registry), problems()) == (["a@v1"], 1)
    assert told(logs) == [f"configmap:batch/registry: {why}"]
    apply(api, 2, templates_yaml=text(entry("b")))
    await registry.reload()
    assert (labels(registry), problems()) == (["b@v1"], 0)


async def test_an_api_that_cannot_be_reached_does_not_stop_the_start(
    over: Open, kubeconfig: Callable[[str], None], logs: list[Any]
) -> None:
    kubeconfig(f"http://127.0.0.1:{free_port()}")
    registry = await over()
    await registry.reload()
    assert labels(registry) == []
    assert told(logs) == ["configmap:batch/registry: the Kubernetes API does not answer: ClientConnectorError"]


async def test_an_api_that_is_silent_is_not_waited_for(api: Mock, over: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    forever = asyncio.Event()
    monkeypatch.setattr(configmap, "TIMEOUT_S", 0.05)
    api["get", PATH] << forever.wait
    source = ConfigMapSource("batch", "registry", None, "templates.yaml")
    with pytest.raises(SourceError, match="does not answer: TimeoutError"):
        await source.fetch(None)
    await source.close()


async def test_without_credentials_it_is_told_once(
    over: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logs: list[Any]
) -> None:
    monkeypatch.delenv(incluster_config.SERVICE_HOST_ENV_NAME, raising=False)
    monkeypatch.setattr(config.kube_config, "KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "none"))
    registry = await over()
    await registry.reload()
    assert told(logs) == ["configmap:batch/registry: there are credentials of neither a pod nor a kubeconfig"]


async def test_in_a_pod_its_service_account_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    token = tmp_path / "token"
    token.write_text("of-the-pod")
    monkeypatch.setenv(incluster_config.SERVICE_HOST_ENV_NAME, "10.0.0.1")
    monkeypatch.setenv(incluster_config.SERVICE_PORT_ENV_NAME, "443")
    monkeypatch.setattr(incluster_config, "SERVICE_TOKEN_FILENAME", str(token))
    monkeypatch.setattr(incluster_config, "SERVICE_CERT_FILENAME", certifi.where())
    made = await configmap.connect()
    assert isinstance(made, client.ApiClient)
    assert made.configuration.host == "https://10.0.0.1:443"
    assert await made.configuration.get_api_key_with_prefix("BearerToken") == "bearer of-the-pod"
    await made.close()
