"""Where credentials and the namespace come from."""

from __future__ import annotations

from pathlib import Path

import certifi
import pytest
from kubernetes.aio import client, config
from kubernetes.aio.config import incluster_config

from services.kit.kubernetes import connect as module
from services.kit.kubernetes.api import Api
from services.kit.kubernetes.errors import NoCredentials
from tests.kubernetes.cluster import Cluster


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "kubeconfig"
    monkeypatch.setattr(config.kube_config, "KUBE_CONFIG_DEFAULT_LOCATION", str(path))
    monkeypatch.delenv(incluster_config.SERVICE_HOST_ENV_NAME, raising=False)
    return path


async def test_in_a_pod_its_service_account_and_namespace_are_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, content in [("token", "of-the-pod"), ("namespace", "of-pod\n")]:
        (tmp_path / name).write_text(content)
    monkeypatch.setenv(incluster_config.SERVICE_HOST_ENV_NAME, "10.0.0.1")
    monkeypatch.setenv(incluster_config.SERVICE_PORT_ENV_NAME, "443")
    monkeypatch.setattr(incluster_config, "SERVICE_TOKEN_FILENAME", str(tmp_path / "token"))
    monkeypatch.setattr(incluster_config, "SERVICE_CERT_FILENAME", certifi.where())
    monkeypatch.setattr(module, "POD_NAMESPACE", tmp_path / "namespace")
    made, namespace = await module.connect()
    assert isinstance(made, client.ApiClient)
    assert (made.configuration.host, namespace) == ("https://10.0.0.1:443", "of-pod")
    assert await made.configuration.get_api_key_with_prefix("BearerToken") == "bearer of-the-pod"
    await made.close()


async def test_elsewhere_the_kubeconfig_is_used(outside: Path) -> None:
    async with Cluster("mine").running() as cluster:
        cluster.write_kubeconfig(outside)
        api = Api()
        assert await api.open() == "mine"
        assert await api.read("namespaces", "", "mine")
        cluster.rotate()
        cluster.write_kubeconfig(outside)
        assert await api.read("namespaces", "", "mine")
        assert cluster.asked[-1].headers["User-Agent"] == "aibrix-batch"
        await api.close()


@pytest.mark.parametrize("content", [None, "", "{", "[]", "current-context: x\ncontexts: []\n"])
async def test_without_credentials(outside: Path, content: str | None) -> None:
    if content is not None:
        outside.write_text(content)
    with pytest.raises(NoCredentials, match="neither a pod nor a kubeconfig"):
        await module.connect()
