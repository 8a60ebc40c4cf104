"""The provider `kubernetes`: a real client of the package `kubernetes` against a mock of the API server (kmock)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes.aio import config
from kubernetes.aio.config import incluster_config

from services.kit.settings import Settings
from services.planner.domain import Machine, ProvisionSpec
from services.planner.resource_manager import kubernetes as module
from services.planner.resource_manager.base import Gone, Pending, ProviderError, Ready
from services.planner.resource_manager.kubernetes import GPUS, Kubernetes, quantity
from services.planner.states import ProvisionState
from tests.conftest import free_port
from tests.planner.resources import gpus, world

Mock = Any
NAMESPACE = "/api/v1/namespaces/batch"
QUOTAS = f"{NAMESPACE}/resourcequotas"


def kubeconfig(path: Path, server: str, **context: str) -> None:
    path.write_text(
        yaml.safe_dump(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "here",
                "contexts": [{"name": "here", "context": {"cluster": "mock", "user": "me", **context}}],
                "clusters": [{"name": "mock", "cluster": {"server": server.rstrip("/")}}],
                "users": [{"name": "me", "user": {"token": "a-token"}}],
            }
        )
    )


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the kubeconfig of somebody who is not in a pod lies."""
    path = tmp_path / "kubeconfig"
    monkeypatch.setattr(config.kube_config, "KUBE_CONFIG_DEFAULT_LOCATION", str(path))
    monkeypatch.delenv(incluster_config.SERVICE_HOST_ENV_NAME, raising=False)
    return path


@pytest.fixture
def api(kmock: Mock, outside: Path) -> Mock:
    kubeconfig(outside, str(kmock.url), namespace="batch")
    put_namespace(kmock)
    return kmock


def put_namespace(api: Mock, phase: str = "Active", name: str = "batch") -> None:
    api["get", f"/api/v1/namespaces/{name}"] << {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": name},
        "status": {"phase": phase},
    }


def put_quotas(api: Mock, *quotas: tuple[dict[str, str], dict[str, str]]) -> None:
    items = [
        {"metadata": {"name": f"q{number}", "namespace": "batch"}, "status": {"hard": hard, "used": used}}
        for number, (hard, used) in enumerate(quotas)
    ]
    api["get", QUOTAS] << {"apiVersion": "v1", "kind": "ResourceQuotaList", "metadata": {}, "items": items}


@pytest.fixture
async def provider(make_settings: Callable[..., Settings]) -> AsyncIterator[Kubernetes]:
    made = Kubernetes(make_settings())
    yield made
    await made.close()


async def test_the_quota_is_what_is_offered(api: Mock, provider: Kubernetes) -> None:
    put_quotas(
        api,
        ({GPUS: "8", "pods": "50", "requests.memory": "100Gi"}, {GPUS: "3", "pods": "50"}),
        ({GPUS: "6"}, {GPUS: "5"}),
    )
    cpu, gpu = await provider.catalog()
    assert (cpu.instance_type, cpu.region, cpu.gpus, cpu.available) == ("pod", "batch", 0, False)
    assert (gpu.instance_type, gpu.gpus, gpu.available, gpu.accelerator) == ("gpu", 6, False, "")
    assert (provider.capacity(cpu), provider.capacity(gpu)) == (50, 6)
    assert [str(request.url.path) for request in api] == [NAMESPACE, QUOTAS]
    assert api[0].headers["Authorization"] == "Bearer a-token"
    taken = provider.narrowed(gpus("H100", count=2), gpu)
    assert taken is not None
    assert taken.gpus == 2
    assert provider.narrowed(gpus("H100", count=7), gpu) is None
    assert provider.narrowed(gpus("H100"), cpu) is None
    assert provider.narrowed(ProvisionSpec(), cpu) == cpu


async def test_without_a_quota_the_cluster_decides(api: Mock, provider: Kubernetes) -> None:
    put_quotas(api, ({"requests.cpu": "4"}, {}))
    assert [offer.available for offer in await provider.catalog()] == [True, True]


async def test_a_part_of_the_quota_is_leased(
    api: Mock, provider: Kubernetes, make_settings: Callable[..., Settings], sqlite_url: str
) -> None:
    put_quotas(api, ({GPUS: "4"}, {GPUS: "0"}))
    async with world(sqlite_url, make_settings()) as here:
        manager = here.manager(kubernetes=provider)
        made = [await manager.provision(f"job/{n}", "p", gpus("H100", count=2)) for n in range(3)]
        for _ in range(2):
            await manager.work_due()
        found = [await manager.get(one.id) for one in made]
        assert sorted(one.status for one in found) == ["RELEASED", "RUNNING", "RUNNING"]
        (full,) = [one for one in found if one.error_code]
        assert (full.error_code, full.retryable) == ("NoCapacity", True)
        running = next(one for one in found if one.status is ProvisionState.RUNNING)
        assert running.machines == [
            Machine(id=f"batch/aibrix-{running.id}-0", name=f"aibrix-{running.id}-0", state="leased")
        ]
        assert (running.region, running.gpus_per_replica, manager.targets()) == (
            "batch",
            2,
            {"kubernetes": "Kubernetes"},
        )
        await manager.release(running.id)
        await here.ended(manager, running.id)
        await manager.reconcile()


async def test_pods_of_others_leave_no_room(
    api: Mock, provider: Kubernetes, make_settings: Callable[..., Settings], sqlite_url: str
) -> None:
    put_quotas(api, ({GPUS: "4"}, {GPUS: "3"}))
    async with world(sqlite_url, make_settings()) as here:
        manager = here.manager(kubernetes=provider)
        provision = await manager.provision("job/1", "p", gpus("H100", count=2))
        failed = await here.ended(manager, provision.id)
        assert (failed.error_code, failed.retryable) == ("NoCapacity", True)
        assert failed.error_message == "kubernetes: the quota of the namespace batch has no room for 2 GPUs"


@pytest.mark.parametrize(
    ("answer", "code", "retryable", "message"),
    [
        (401, "InvalidCredential", False, "401 for namespaces of batch: its credentials are not accepted"),
        (403, "InvalidCredential", False, "the service account needs `get` on namespaces and `list` on resourcequotas"),
        (404, "InvalidRequest", False, "there is no namespace batch"),
        (500, "ProviderUnavailable", True, "the Kubernetes API answers 500 for namespaces of batch"),
        (429, "ProviderUnavailable", True, "429"),
        ({"status": 7}, "ProviderUnavailable", True, "the Kubernetes API answers something that is no"),
        (b"<html>", "ProviderUnavailable", True, "the Kubernetes API answers something odd"),
        ({"status": {"phase": "Terminating"}}, "NoCapacity", False, "the namespace batch is being deleted"),
    ],
)
async def test_what_its_errors_mean(
    kmock: Mock, outside: Path, provider: Kubernetes, answer: Any, code: str, retryable: bool, message: str
) -> None:
    kubeconfig(outside, str(kmock.url), namespace="batch")
    kmock["get", NAMESPACE] << answer
    with pytest.raises(ProviderError) as failed:
        await provider.catalog()
    error = failed.value
    assert (error.code, error.retryable, error.ambiguous) == (code, retryable, False)
    assert message in error.message
    assert "a-token" not in error.message


@pytest.mark.parametrize("hard", ["many", "", "1e", "1Qi"])
async def test_a_quota_that_is_no_number(api: Mock, provider: Kubernetes, hard: str) -> None:
    put_quotas(api, ({GPUS: hard}, {}))
    with pytest.raises(ProviderError, match="where a quantity should be"):
        await provider.catalog()


@pytest.mark.parametrize(
    ("text", "units"), [("8", 8), ("1k", 1000), ("2Ki", 2048), ("1.5", 1), ("0", 0), ("1.5k", 1500)]
)
def test_quantities(text: str, units: int) -> None:
    assert quantity(text) == units


@pytest.mark.parametrize(
    ("answer", "kind"),
    [({"status": {"phase": "Active"}}, Ready), ({"status": {"phase": "Terminating"}}, Pending), (404, Gone)],
)
async def test_how_a_lease_is(
    kmock: Mock, outside: Path, provider: Kubernetes, answer: object, kind: type[object]
) -> None:
    kubeconfig(outside, str(kmock.url), namespace="batch")
    machine = Machine(id="batch/x", name="x")
    kmock["get", NAMESPACE] << answer
    assert isinstance(await provider.probe(machine), kind)
    assert await provider.release(machine)


async def test_it_is_not_waited_for_for_ever(
    kmock: Mock, outside: Path, provider: Kubernetes, monkeypatch: pytest.MonkeyPatch
) -> None:
    kubeconfig(outside, str(kmock.url), namespace="batch")
    forever = asyncio.Event()
    kmock["get", NAMESPACE] << forever.wait
    monkeypatch.setattr(module, "TIMEOUT_S", 0.05)
    with pytest.raises(ProviderError, match="does not answer: TimeoutError"):
        await provider.catalog()
    kubeconfig(outside, f"http://127.0.0.1:{free_port()}")
    await provider.close()
    monkeypatch.setattr(module, "TIMEOUT_S", 5)
    with pytest.raises(ProviderError, match="does not answer: ClientConnectorError") as failed:
        await provider.catalog()
    assert failed.value.retryable


async def test_without_credentials(outside: Path, provider: Kubernetes) -> None:
    with pytest.raises(ProviderError) as failed:
        await provider.catalog()
    assert (failed.value.code, failed.value.retryable) == ("InvalidCredential", False)


async def test_a_kubeconfig_without_a_namespace(kmock: Mock, outside: Path, provider: Kubernetes) -> None:
    kubeconfig(outside, str(kmock.url))
    put_namespace(kmock, name="default")
    kmock["get", "/api/v1/namespaces/default/resourcequotas"] << {"metadata": {}, "items": []}
    assert {offer.region for offer in await provider.catalog()} == {"default"}
