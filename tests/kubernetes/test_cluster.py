"""The emulator itself: what it serves is what the official client asks for, and what a real server would answer."""

from __future__ import annotations

import asyncio
import inspect
import re
from collections.abc import AsyncIterator
from typing import Any

import pytest
from kubernetes.aio import client

from services.kit.kubernetes.api import Api
from services.kit.kubernetes.errors import Refused
from services.kit.kubernetes.resources import RESOURCES
from tests.kubernetes.cluster import Cluster, route
from tests.kubernetes.store import Failed

TYPED = {
    "v1": client.CoreV1Api,
    "apps/v1": client.AppsV1Api,
    "batch/v1": client.BatchV1Api,
    "discovery.k8s.io/v1": client.DiscoveryV1Api,
}


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    async with Cluster("batch").running() as made:
        yield made


@pytest.fixture
async def api(cluster: Cluster) -> AsyncIterator[Api]:
    made = Api(cluster.connect)
    yield made
    await made.close()


def thing(name: str, *owners: Any, blocks: bool = True, **metadata: Any) -> dict[str, Any]:
    references = [
        {"apiVersion": "v1", "kind": "X", "name": "x", "uid": owner["metadata"]["uid"], "blockOwnerDeletion": blocks}
        for owner in owners
    ]
    return {"metadata": {"name": name, "namespace": "batch", "ownerReferences": references, **metadata}}


@pytest.mark.parametrize("resource", RESOURCES)
def test_paths_are_those_of_the_official_client(resource: str) -> None:
    kind = RESOURCES[resource]
    official = set(re.findall(r"resource_path='([^']+)'", inspect.getsource(TYPED[kind.api_version])))
    namespace = "{namespace}" if kind.is_namespaced else ""
    asked = {kind.path(namespace)[0], kind.path(namespace, "{name}")[0], kind.path("")[0]}
    if resource == "pods":
        asked.add(kind.path(namespace, "{name}", "log")[0])
    assert asked <= official
    for path in asked:
        assert route(path.format(namespace="n", name="a"))[0] == resource


@pytest.mark.parametrize("path", ["/", "/api/v1/nothing", "/apis/apps/v1/pods", "/api/v1/namespaces/n/services/a/log"])
def test_there_is_nothing_else(path: str) -> None:
    with pytest.raises(Failed, match="could not find the requested resource"):
        route(path)


async def test_typed_calls_of_the_official_client_work_too(cluster: Cluster) -> None:
    made, _ = await cluster.connect()
    async with made:
        batch = client.BatchV1Api(made)
        container = client.V1Container(name="c", image="i")
        pod = client.V1PodTemplateSpec(spec=client.V1PodSpec(containers=[container], restart_policy="Never"))
        job = client.V1Job(metadata=client.V1ObjectMeta(generate_name="j-"), spec=client.V1JobSpec(template=pod))
        stored = await batch.create_namespaced_job("batch", job)
        assert stored.metadata.uid
        assert (await batch.list_namespaced_job("batch")).items[0].metadata.name == stored.metadata.name
        with pytest.raises(client.ApiException) as failed:
            await batch.read_namespaced_job("other", "batch")
        assert failed.value.status == 404


async def test_foreground_waits_for_dependents_and_their_finalizers(cluster: Cluster, api: Api) -> None:
    job = cluster.put("jobs.batch", thing("j"))
    cluster.put("pods", thing("held", job, finalizers=["x/y"]))
    cluster.put("pods", thing("free", job))
    assert await api.delete("jobs.batch", "batch", "j")
    leaving = await api.read("jobs.batch", "batch", "j")
    assert leaving is not None
    assert leaving["metadata"]["finalizers"] == ["foregroundDeletion"]
    assert "deletionTimestamp" in leaving["metadata"]
    assert [one["metadata"]["name"] for one in cluster.all("pods")] == ["held"]
    await api.patch("pods", "batch", "held", {"metadata": {"finalizers": None}})
    assert (cluster.all("pods"), cluster.all("jobs.batch")) == ([], [])


@pytest.mark.parametrize(
    ("propagation", "jobs", "pods"), [("Background", [], ["held"]), ("Orphan", [], ["free", "held"])]
)
async def test_background_and_orphan(
    cluster: Cluster, api: Api, propagation: Any, jobs: list[str], pods: list[str]
) -> None:
    job = cluster.put("jobs.batch", thing("j"))
    cluster.put("pods", thing("held", job, finalizers=["x/y"]))
    cluster.put("pods", thing("free", job))
    assert await api.delete("jobs.batch", "batch", "j", propagation=propagation)
    assert [one["metadata"]["name"] for one in cluster.all("jobs.batch")] == jobs
    assert [one["metadata"]["name"] for one in cluster.all("pods")] == pods
    assert ("deletionTimestamp" in cluster.all("pods")[-1]["metadata"]) == (propagation == "Background")


async def test_a_dependent_of_nobody_is_garbage(cluster: Cluster) -> None:
    cluster.put("pods", thing("a", {"metadata": {"uid": "gone"}}))
    assert cluster.all("pods") == []


async def test_pods_on_a_node_linger_if_told(cluster: Cluster, api: Api) -> None:
    cluster.store.pods_linger = True
    cluster.put("pods", {**thing("a"), "spec": {"nodeName": "n"}})
    assert await api.delete("pods", "batch", "a")
    found = cluster.get("pods", "batch", "a")
    assert found is not None
    assert found["metadata"]["deletionGracePeriodSeconds"] == 30
    cluster.remove("pods", "batch", "a")
    assert cluster.all("pods") == []


async def test_versions_generations_and_status(cluster: Cluster, api: Api) -> None:
    made = await api.create("jobs.batch", "batch", {"metadata": {"name": "j"}, "spec": {"n": 1}, "status": {"x": 1}})
    assert "status" not in made
    same = await api.patch("jobs.batch", "batch", "j", {"spec": {"n": 1}, "status": {"x": 2}})
    assert same == made
    changed = await api.patch("jobs.batch", "batch", "j", {"spec": {"n": 2}, "metadata": {"uid": "another"}})
    assert changed is not None
    assert (changed["metadata"]["generation"], changed["metadata"]["uid"]) == (2, made["metadata"]["uid"])
    cluster.patch("jobs.batch", "batch", "j", {"status": {"active": 1}})
    after = await api.read("jobs.batch", "batch", "j")
    assert after is not None
    assert (after["status"], after["metadata"]["generation"]) == ({"active": 1}, 2)
    assert int(after["metadata"]["resourceVersion"]) > int(changed["metadata"]["resourceVersion"])


@pytest.mark.parametrize(
    ("selector", "names"),
    [
        ("app=x", ["a"]),
        ("app!=x", ["b", "c"]),
        ("app in (x, y)", ["a", "b"]),
        ("app notin (x)", ["b", "c"]),
        ("app", ["a", "b"]),
        ("!app", ["c"]),
        ("app=x,kueue.x-k8s.io/q=1", ["a"]),
        ("app=x,kueue.x-k8s.io/q=2", []),
    ],
)
async def test_selectors(cluster: Cluster, api: Api, selector: str, names: list[str]) -> None:
    cluster.put("pods", thing("a", labels={"app": "x", "kueue.x-k8s.io/q": "1"}))
    cluster.put("pods", thing("b", labels={"app": "y"}))
    cluster.put("pods", thing("c"))
    found, _ = await api.list("pods", "batch", selector=selector)
    assert [one["metadata"]["name"] for one in found] == names


@pytest.mark.parametrize("selecting", [{"selector": "a=(b"}, {"field": "spec.odd=1"}])
async def test_selectors_that_are_none(api: Api, selecting: dict[str, str]) -> None:
    with pytest.raises(Refused) as refused:
        await api.list("pods", "batch", **selecting)  # type: ignore[arg-type]
    assert refused.value.status == 400


async def test_quotas_count_gpus_of_sidecars(cluster: Cluster, api: Api) -> None:
    hard = {"requests.nvidia.com/gpu": "4", "count/jobs.batch": "1", "requests.memory": "1Gi"}
    cluster.put("resourcequotas", {"metadata": {"name": "q"}, "spec": {"hard": hard}})
    sidecar = {"restartPolicy": "Always", "resources": {"limits": {"nvidia.com/gpu": "3"}}}
    body = {"metadata": {"name": "a"}, "spec": {"containers": [{}], "initContainers": [sidecar]}}
    await api.create("pods", "batch", body)
    with pytest.raises(Refused, match=r"requested: requests.nvidia.com/gpu=3, used: requests.nvidia.com/gpu=3"):
        await api.create("pods", "batch", {**body, "metadata": {"name": "b"}})
    cluster.patch("pods", "batch", "a", {"status": {"phase": "Succeeded"}})
    await api.create("pods", "batch", {**body, "metadata": {"name": "b"}})
    await api.create("jobs.batch", "batch", {"metadata": {"name": "a"}})
    with pytest.raises(Refused, match="exceeded quota: q"):
        await api.create("jobs.batch", "batch", {"metadata": {"name": "b"}})


async def test_a_controller_of_the_test(cluster: Cluster, api: Api) -> None:
    ran = asyncio.Event()

    def kubelet(kind: str, resource: str, found: dict[str, Any]) -> None:
        if (kind, resource) == ("ADDED", "pods"):
            cluster.patch("pods", "batch", found["metadata"]["name"], {"status": {"phase": "Running"}})
            ran.set()

    cluster.on_change(kubelet)
    await api.create("pods", "batch", {"metadata": {"name": "a"}})
    async with asyncio.timeout(5):
        await ran.wait()
    found = await api.read("pods", "batch", "a")
    assert found is not None
    assert found["status"] == {"phase": "Running"}
