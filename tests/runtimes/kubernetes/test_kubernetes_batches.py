"""Batches for the target Kubernetes on an emulated cluster, with engines that really answer."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import pytest
from structlog.testing import capture_logs

from services.runner import allocation
from services.runner.engines.mock import MockEngine, mock_engine
from services.runner.engines.options import MockOptions
from services.runner.runtimes.kubernetes.workloads import Kubernetes
from tests.kubernetes.cluster import Cluster
from tests.kubernetes.controllers import Controllers
from tests.kubernetes.faults import Fault
from tests.runner.platform import Platform, State, custom_ids, eventually
from tests.runner.test_runtimes import looping
from tests.runtimes.kubernetes.world import (
    DEPLOYMENTS,
    LINES,
    SERVICES,
    SLICES,
    Object,
    complete,
    runtime_on,
    serve,
    submit,
)

# What the batch's owner reads


TROUBLES = {
    "image": ("pull_backs_off", "cannot be pulled"),
    "room": ("unschedulable", "Insufficient nvidia.com/gpu"),
    "crash": ("crash_loops", "ends again and again"),
    "memory": ("restarted", "more memory than its limit"),
    "secret": ("misconfigured", 'secret "hf" not found'),
}


@pytest.mark.parametrize("trouble", TROUBLES)
async def test_the_batch_fails_with_the_cause_and_leaves_nothing(
    cluster: Cluster, controllers: Controllers, p: Platform, trouble: str
) -> None:
    verb, words = TROUBLES[trouble]
    controllers.on_pod = getattr(controllers.kubelet, verb)
    async with runtime_on(cluster, pending_s=0.2) as runtime, looping(p, runtime):
        batch = await p.ended(await submit(p))
        assert batch.state == State.FAILED
        assert batch.errors[0].code == "runtime_failed"
        assert words in batch.errors[0].message
        await eventually(lambda: not cluster.all(DEPLOYMENTS) and not cluster.all("pods"))


async def test_a_quota_fails_the_batch_with_its_words(cluster: Cluster, controllers: Controllers, p: Platform) -> None:
    cluster.put("resourcequotas", {"metadata": {"name": "few"}, "spec": {"hard": {"pods": "0"}}})
    async with runtime_on(cluster, pending_s=0.2) as runtime, looping(p, runtime):
        batch = await p.ended(await submit(p))
    assert batch.state == State.FAILED
    assert "no pod can be made: pods" in batch.errors[0].message
    assert "exceeded quota: few, requested: pods=1, used: pods=0, limited: pods=0" in batch.errors[0].message


async def test_the_last_lines_of_the_log_stand_in_the_error(
    cluster: Cluster, controllers: Controllers, p: Platform
) -> None:
    def crash(pod: Object) -> None:
        name = pod["metadata"]["name"]
        cluster.texts["engines", name, "engine", False] = "it waits to start again"
        lines = [f"line {number}" for number in range(100)] + [
            "HF_TOKEN=hf_abcdefghijklmnopqrstuvwxyz",
            "CUDA error: no device",
        ]
        cluster.texts["engines", name, "engine", True] = "\n".join(lines)
        controllers.kubelet.crash_loops(pod)

    controllers.on_pod = crash
    async with runtime_on(cluster) as runtime, looping(p, runtime):
        batch = await p.ended(await submit(p))
    text = batch.errors[0].message
    assert text.endswith("CUDA error: no device")
    assert "line 99" in text
    assert "line 61" not in text
    assert "hf_abc" not in text
    assert "waits to start" not in text


async def test_an_engine_that_is_not_ready_in_time_says_what_it_wrote(
    cluster: Cluster, controllers: Controllers, runtime: Kubernetes, p: Platform, fast_clock: None
) -> None:
    def load(pod: Object) -> None:
        cluster.texts["engines", pod["metadata"]["name"], "engine", False] = "Loading shards: 3 of 7"
        controllers.kubelet.start(pod)

    controllers.on_pod = load
    async with looping(p, runtime, launch_attempts=1):
        batch = await p.ended(await submit(p, **{"engine.ready_timeout_seconds": 10}))
    assert "not ready after 10 s" in batch.errors[0].message
    assert batch.errors[0].message.endswith("Loading shards: 3 of 7")


# Batches


async def test_a_batch_runs_and_leaves_nothing(
    cluster: Cluster, controllers: Controllers, runtime: Kubernetes, p: Platform, engines: list[MockEngine]
) -> None:
    serve(controllers, engines[0])
    async with looping(p, runtime):
        await complete(p, await submit(p))
        assert custom_ids(engines[0].requests.recorded).total() == LINES
        await eventually(lambda: not any(map(cluster.all, (DEPLOYMENTS, SERVICES, SLICES, "pods"))))


async def test_pods_that_come_and_go_change_where_requests_go_at_once(
    cluster: Cluster,
    controllers: Controllers,
    runtime: Kubernetes,
    p: Platform,
    engines: list[MockEngine],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(allocation, "WATCH_S", 300.0)  # only an alert makes it look
    first, second, _ = engines
    serve(controllers, first, second)
    async with looping(p, runtime):
        id = await submit(p, 3 * LINES)
        await eventually(lambda: first.requests.count > 10)
        (deployment,) = cluster.all(DEPLOYMENTS)
        cluster.patch(DEPLOYMENTS, "engines", deployment["metadata"]["name"], {"spec": {"replicas": 2}})
        await eventually(lambda: second.requests.count > 10)
        cluster.patch(DEPLOYMENTS, "engines", deployment["metadata"]["name"], {"spec": {"replicas": 1}})
        controllers.on_leaving(controllers.pods()[0])
        await eventually(lambda: not first.requests.in_flight)
        left = first.requests.count
        await complete(p, id, 3 * LINES)
    assert first.requests.count <= left + 8, "nothing is sent to a pod that is gone, but for what was on its way"
    assert (custom_ids(first.requests.recorded) + custom_ids(second.requests.recorded)).total() == 3 * LINES


async def test_an_evicted_pod_has_a_successor_and_no_line_pays_for_the_time_between(
    controllers: Controllers, runtime: Kubernetes, p: Platform, engines: list[MockEngine]
) -> None:
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(mock_engine(MockOptions(record=True, latency_ms=10)))
        serve(controllers, first)
        async with looping(p, runtime) as service:
            id = await submit(p)
            await eventually(lambda: first.requests.count > 10)
            evicted = controllers.pod
            await stack.aclose()
            controllers.kubelet.evict(evicted)
            (execution,) = service.executions
            await eventually(lambda: execution.status().phase == "launching: scheduling")
            successor = await eventually(lambda: controllers.pods() and controllers.pod)
            assert successor["metadata"]["name"] != evicted["metadata"]["name"]
            controllers.kubelet.start(successor)
            await eventually(lambda: execution.status().phase == "launching: loading")
            before = execution.status().committed_count
            # With three waits for an endpoint a line would fail by now, were they counted.
            await asyncio.sleep(0.5)
            assert before < LINES
            controllers.kubelet.ready(successor, engines[1].url)
            await complete(p, id)
    assert engines[1].requests.count > 0


async def test_no_pod_that_is_ready_for_long_is_a_new_launch(
    cluster: Cluster, controllers: Controllers, p: Platform, engines: list[MockEngine], fast_clock: None
) -> None:
    serve(controllers, engines[0])
    async with runtime_on(cluster, start_timeout_s=1.0) as runtime, looping(p, runtime):
        id = await submit(p, **{"engine.ready_timeout_seconds": 10})
        await eventually(lambda: engines[0].requests.count > 10)
        (before,) = cluster.all(DEPLOYMENTS)
        controllers.kubelet.unready(controllers.pod)
        serve(controllers, engines[1])
        await complete(p, id)
    assert before["metadata"]["uid"] not in {one["metadata"]["uid"] for one in cluster.all(DEPLOYMENTS)}
    assert engines[1].requests.count > 0


async def test_a_cluster_without_an_api_stops_no_batch(
    cluster: Cluster, controllers: Controllers, runtime: Kubernetes, p: Platform, engines: list[MockEngine]
) -> None:
    serve(controllers, engines[0])
    async with looping(p, runtime):
        id = await submit(p)
        await eventually(lambda: engines[0].requests.count > 5)
        down = cluster.fail(Fault(drops=True), times=1_000_000)
        cluster.break_watches()
        await eventually(lambda: len(down.met) > 3)
        await eventually(lambda: engines[0].requests.count == LINES)
        down.times = 0
        await complete(p, id)
    assert set(custom_ids(engines[0].requests.recorded).values()) == {1}


@pytest.mark.parametrize("how", ["break", "410", "end", "403 for a while"])
async def test_a_watch_that_breaks_is_taken_up_again(
    cluster: Cluster, controllers: Controllers, runtime: Kubernetes, p: Platform, engines: list[MockEngine], how: str
) -> None:
    first, second, _ = engines
    serve(controllers, first, second)
    async with looping(p, runtime):
        id = await submit(p, 2 * LINES)
        await eventually(lambda: first.requests.count > 5)
        if how == "410":
            cluster.compact()
        if how.startswith("403"):
            cluster.fail(Fault(status=403, reason="Forbidden"), times=5, is_watch=True)
        cluster.end_watches() if how == "end" else cluster.break_watches()
        (deployment,) = cluster.all(DEPLOYMENTS)
        cluster.patch(DEPLOYMENTS, "engines", deployment["metadata"]["name"], {"spec": {"replicas": 2}})
        await eventually(lambda: second.requests.count > 5)
        await complete(p, id, 2 * LINES)


async def test_the_next_runner_finds_the_same_pods(
    cluster: Cluster, controllers: Controllers, p: Platform, engines: list[MockEngine]
) -> None:
    serve(controllers, engines[0])
    id = await submit(p)
    async with runtime_on(cluster) as runtime, looping(p, runtime, drain_s=0.1):
        await eventually(lambda: engines[0].requests.count > 5)
        (before,) = cluster.all(DEPLOYMENTS)
    assert [one["metadata"]["uid"] for one in cluster.all(DEPLOYMENTS)] == [before["metadata"]["uid"]]
    async with runtime_on(cluster) as runtime, looping(p, runtime):
        await complete(p, id)
        assert len(controllers.made) == 1
        await eventually(lambda: not cluster.all(DEPLOYMENTS))


async def test_a_batch_that_is_cancelled_while_its_pod_waits_leaves_nothing(
    cluster: Cluster, controllers: Controllers, runtime: Kubernetes, p: Platform
) -> None:
    async with looping(p, runtime):
        id = await submit(p)
        await eventually(controllers.pods)
        await p.cancel(id)
        assert (await p.ended(id)).state == State.CANCELLED
        await eventually(lambda: not cluster.all(DEPLOYMENTS) and not cluster.all("pods"))


async def test_a_finalizer_that_stays_is_told_and_holds_nobody_up(
    cluster: Cluster, controllers: Controllers, p: Platform, engines: list[MockEngine]
) -> None:
    serve(controllers, engines[0])
    with capture_logs() as logs:
        async with runtime_on(cluster, teardown_s=0.1) as runtime, looping(p, runtime):
            id = await submit(p)
            await eventually(lambda: engines[0].requests.count > 5)
            (deployment,) = cluster.all(DEPLOYMENTS)
            name = deployment["metadata"]["name"]
            cluster.patch(DEPLOYMENTS, "engines", name, {"metadata": {"finalizers": ["acme.example/audit"]}})
            await complete(p, id)
            told = await eventually(
                lambda: [one for one in logs if one["event"] == "a workload is still being deleted"]
            )
    assert told[0]["finalizers"] == ["acme.example/audit"]
    (left,) = cluster.all(DEPLOYMENTS)
    assert left["metadata"]["finalizers"] == ["acme.example/audit"], "it is its owner's to remove"
