"""The target Kubernetes against an API server with controllers."""

from __future__ import annotations

import asyncio
import json

import pytest

from brix.metadata.v1 import leases_pb2_grpc
from services.kit.server import channel
from services.runner.engines.mock import MockEngine
from services.runner.leases import Leases
from services.runner.orphans import Orphans
from services.runner.runtimes.base import Gone, Handle, Pending, Ready, RuntimeFailed, Spec
from services.runner.runtimes.kubernetes.workloads import Kubernetes
from tests.kubernetes import rules
from tests.kubernetes.cluster import Cluster
from tests.kubernetes.controllers import Controllers
from tests.kubernetes.faults import Fault
from tests.runner.platform import Platform, eventually
from tests.runner.test_runtimes import looping
from tests.runtimes.kubernetes.support import spec_of, template
from tests.runtimes.kubernetes.world import (
    CPU,
    DEPLOYMENTS,
    SERVICES,
    runtime_on,
    serve,
    submit,
    until,
)

# Launch


async def test_a_deployment_and_its_service_are_made_once(cluster: Cluster, runtime: Kubernetes, spec: Spec) -> None:
    handle = await runtime.launch(spec)
    assert await runtime.launch(spec) == handle == json.loads(json.dumps(handle))
    (deployment,), (service,) = cluster.all(DEPLOYMENTS), cluster.all(SERVICES)
    assert deployment["metadata"]["uid"] == handle["uid"]
    assert service["metadata"]["ownerReferences"][0]["uid"] == handle["uid"]
    for made in (deployment, service):
        rules.check(made)
    assert await runtime.list() == [handle]


async def test_two_runners_at_once_make_one(cluster: Cluster, runtime: Kubernetes, spec: Spec) -> None:
    async with runtime_on(cluster) as other:
        both = await asyncio.gather(*(one.launch(spec) for one in (runtime, other) * 4))
    assert len({handle["uid"] for handle in both}) == 1
    assert len(cluster.all(DEPLOYMENTS)) == len(cluster.all(SERVICES)) == 1


@pytest.mark.parametrize("path", ["/deployments", "/services"])
async def test_an_answer_that_is_lost_makes_no_second_one(
    cluster: Cluster, runtime: Kubernetes, spec: Spec, path: str
) -> None:
    cluster.fail(Fault(loses=True), method="POST", path=path)
    handle = await runtime.launch(spec)
    assert [one["metadata"]["uid"] for one in cluster.all(DEPLOYMENTS)] == [handle["uid"]]
    assert len(cluster.all(SERVICES)) == 1


async def test_a_runner_that_died_between_the_two_is_finished_by_the_next(
    cluster: Cluster, runtime: Kubernetes, spec: Spec
) -> None:
    hanging = cluster.fail(Fault(hangs=True), method="POST", path="/services")
    dying = asyncio.create_task(runtime.launch(spec))
    await eventually(lambda: hanging.met)
    dying.cancel()
    await asyncio.wait([dying])
    assert cluster.all(SERVICES) == []
    async with runtime_on(cluster) as other:
        handle = await other.launch(spec)
    assert [one["metadata"]["uid"] for one in cluster.all(DEPLOYMENTS)] == [handle["uid"]]
    assert len(cluster.all(SERVICES)) == 1


async def test_a_name_that_another_batch_has_is_not_taken_over(
    cluster: Cluster, runtime: Kubernetes, spec: Spec
) -> None:
    handle = await runtime.launch(spec)
    cluster.patch(
        DEPLOYMENTS, "engines", handle["name"], {"metadata": {"annotations": {"aibrix-batch/batch-id": "batch_x"}}}
    )
    with pytest.raises(RuntimeFailed, match="somebody else's Deployment") as failed:
        await runtime.launch(spec)
    assert not failed.value.retryable
    assert len(cluster.all(DEPLOYMENTS)) == 1


async def test_one_that_is_still_being_deleted_is_waited_for(cluster: Cluster, spec: Spec) -> None:
    async with runtime_on(cluster, teardown_s=0.3) as runtime:
        first = await runtime.launch(spec)
        cluster.patch(DEPLOYMENTS, "engines", first["name"], {"metadata": {"finalizers": ["acme.example/audit"]}})
        await runtime.release(first)
        with pytest.raises(RuntimeFailed, match=r"held up by acme\.example/audit") as failed:
            await runtime.launch(spec)
        assert failed.value.retryable
        waiting = asyncio.create_task(runtime.launch(spec))
        await asyncio.sleep(0)
        cluster.patch(DEPLOYMENTS, "engines", first["name"], {"metadata": {"finalizers": []}})
        assert (await waiting)["uid"] != first["uid"]


async def test_what_the_cluster_refuses_is_told_and_leaves_nothing(
    cluster: Cluster, runtime: Kubernetes, spec: Spec
) -> None:
    cluster.put("resourcequotas", {"metadata": {"name": "few"}, "spec": {"hard": {"services": "0"}}})
    with pytest.raises(RuntimeFailed, match="exceeded quota: few") as failed:
        await runtime.launch(spec)
    assert not failed.value.retryable
    await eventually(lambda: not cluster.all(DEPLOYMENTS))


async def test_a_namespace_that_is_not_there_is_told(cluster: Cluster, spec: Spec) -> None:
    async with runtime_on(cluster, namespace="nowhere") as runtime:
        with pytest.raises(RuntimeFailed, match="nowhere") as failed:
            await runtime.launch(spec)
    assert not failed.value.retryable


# Probe


async def test_it_is_followed_until_it_is_ready(
    controllers: Controllers, runtime: Kubernetes, spec: Spec, engines: list[MockEngine]
) -> None:
    handle = await runtime.launch(spec)
    pod = await eventually(lambda: controllers.pods() and controllers.pod)
    kubelet = controllers.kubelet
    assert (await until(runtime, spec, handle, Pending, "scheduling")).counts is False
    kubelet.schedule(pod)
    assert (await until(runtime, spec, handle, Pending, "pulling")).counts is False
    kubelet.start(pod)
    assert (await until(runtime, spec, handle, Pending, "loading")).counts is True
    kubelet.ready(pod, engines[0].url)
    ready = await until(runtime, spec, handle, Ready)
    assert [endpoint.base_url for endpoint in ready.endpoints] == [engines[0].url]
    assert ready.endpoints[0].health_path == "/health"
    assert ready.handle == {**handle, "ready": True}
    kubelet.unready(pod)
    pending = await until(runtime, spec, ready.handle, Pending, "loading")
    assert pending.unreachable


async def test_a_probe_costs_no_request_once_it_is_ready(
    cluster: Cluster, controllers: Controllers, runtime: Kubernetes, spec: Spec, engines: list[MockEngine]
) -> None:
    serve(controllers, engines[0])
    handle = await runtime.launch(spec)
    await until(runtime, spec, handle, Ready)
    before = len(cluster.asked)
    for _ in range(50):
        assert isinstance(await runtime.probe(spec, handle), Ready)
    assert len(cluster.asked) == before


async def test_one_that_somebody_deleted_is_gone_and_may_be_launched_again(
    cluster: Cluster, controllers: Controllers, runtime: Kubernetes, spec: Spec
) -> None:
    handle = await runtime.launch(spec)
    cluster.delete(DEPLOYMENTS, "engines", handle["name"])
    assert (await until(runtime, spec, handle, Gone)).retryable
    again = await runtime.launch(spec)
    assert again["uid"] != handle["uid"]
    assert isinstance(await runtime.probe(spec, handle), Gone), "the old one's name is not the old one"


async def test_a_handle_that_names_nothing_is_gone(runtime: Kubernetes, spec: Spec) -> None:
    probe = await runtime.probe(spec, {"key": spec.key})
    assert isinstance(probe, Gone)
    assert probe.retryable


async def test_an_api_that_refuses_is_an_error_of_the_batch_within_a_minute(cluster: Cluster, spec: Spec) -> None:
    async with runtime_on(cluster, pending_s=0.2) as runtime:
        handle = await runtime.launch(spec)
        cluster.fail(
            Fault(status=403, reason="Forbidden", message="pods is forbidden: no RBAC"), times=10_000, path="/pods"
        )
        gone = await until(runtime, spec, handle, Gone)
        assert "no RBAC" in gone.why
        assert not gone.retryable


async def test_events_that_may_not_be_seen_are_done_without(
    cluster: Cluster, controllers: Controllers, runtime: Kubernetes, spec: Spec
) -> None:
    cluster.fail(Fault(status=403, reason="Forbidden"), times=10_000, path="/events")
    controllers.on_pod = controllers.kubelet.start
    handle = await runtime.launch(spec)
    await until(runtime, spec, handle, Pending, "loading")


async def test_a_workload_for_which_nobody_makes_pods_does_not_wait_for_ever(cluster: Cluster, spec: Spec) -> None:
    async with runtime_on(cluster, start_timeout_s=0.2) as runtime:
        handle = await runtime.launch(spec)
        gone = await until(runtime, spec, handle, Gone)
        assert "did not start within" in gone.why


# Release


async def test_release_is_in_the_foreground_and_means_this_one_only(
    cluster: Cluster, runtime: Kubernetes, spec: Spec
) -> None:
    handle = await runtime.launch(spec)
    await runtime.release({**handle, "uid": "00000000-0000-0000-0000-000000000000"})
    assert cluster.all(DEPLOYMENTS)
    await runtime.release(handle)
    (asked, *_) = [one for one in reversed(cluster.asked) if one.method == "DELETE"]
    assert asked.body["propagationPolicy"] == "Foreground"
    assert asked.body["preconditions"] == {"uid": handle["uid"]}
    assert cluster.all(DEPLOYMENTS) == cluster.all(SERVICES) == []
    await runtime.release(handle)
    await runtime.release({})
    await runtime.release({"key": "batch_unknown"})


# Orphans


async def test_only_what_belonged_to_batches_that_have_ended_is_released(
    cluster: Cluster, runtime: Kubernetes, p: Platform
) -> None:
    ended, alive = await submit(p), await submit(p)
    made = {
        key: await runtime.launch(spec_of("Kubernetes", template("mock", **CPU), key=key))
        for key in (ended, alive, "batch_of_another_platform")
    }
    cluster.put(DEPLOYMENTS, {"metadata": {"name": "somebody-elses"}, "spec": {}})
    await p.cancel(ended)
    async with channel(p.settings.metadata_addr) as metadata:
        leases = Leases(leases_pb2_grpc.LeaseServiceStub(metadata), "closer")
        async with looping(p, closer := NoRuntime()):
            await p.ended(ended)
        assert closer.target == "None"
        orphans = Orphans({"Kubernetes": runtime}, leases)
        await orphans.release_own()
        assert len(cluster.all(DEPLOYMENTS)) == 4, "what others started is not this runner's to end at its start"
        await orphans._guarded(runtime, shared=True)
    left = {one["metadata"]["name"] for one in cluster.all(DEPLOYMENTS)}
    assert left == {made[alive]["name"], made["batch_of_another_platform"]["name"], "somebody-elses"}


class NoRuntime:
    """Of a runner that may end batches for which nothing was launched."""

    target = "None"

    async def list(self) -> list[Handle]:
        return []

    async def close(self) -> None:
        """Nothing is held."""


async def test_no_cluster_is_asked_before_a_batch_was_here(cluster: Cluster, spec: Spec) -> None:
    async with runtime_on(cluster) as runtime:
        assert await runtime.list() == []
        assert cluster.connects == 0
        handle = await runtime.launch(spec)
        assert await runtime.list() == [handle]
    async with runtime_on(cluster, namespace="engines") as runtime:
        assert await runtime.list() == [handle]


async def test_a_namespace_that_cannot_be_looked_at_hides_no_other(cluster: Cluster, spec: Spec) -> None:
    async with runtime_on(cluster, namespace="engines", allowed_namespaces="other, *") as runtime:
        handle = await runtime.launch(spec)
        cluster.fail(Fault(status=403, reason="Forbidden"), times=100, method="GET", path="/namespaces/other/")
        assert await runtime.list() == [handle]


async def test_what_could_not_be_deleted_is_still_there(
    cluster: Cluster, controllers: Controllers, spec: Spec, engines: list[MockEngine]
) -> None:
    serve(controllers, engines[0])
    async with runtime_on(cluster) as runtime:
        handle = await runtime.launch(spec)
        refused = cluster.fail(Fault(status=403, reason="Forbidden", message="no RBAC"), times=100, method="DELETE")
        with pytest.raises(RuntimeFailed, match="no RBAC"):
            await runtime.release(handle)
        assert await runtime.launch(spec) == handle
        await until(runtime, spec, handle, Ready)
        refused.times = 0
        await runtime.release(handle)
        assert isinstance(await runtime.probe(spec, handle), Gone), "at once, whatever the watch knows"
