"""The target KubernetesJob: a runner outside that looks after the Job, and its worker (here in the test's own process) that runs the batch."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from brix.metadata.v1 import leases_pb2 as pb
from services.kit.kubernetes.api import Api
from services.kit.runtime_settings import Worker
from services.runner import allocation, worker
from services.runner.engines.mock import MockEngine, mock_engine
from services.runner.engines.options import MockOptions
from services.runner.runtimes.base import Gone, Handle, HandOver, Pending, Spec
from services.runner.runtimes.kubernetes.workloads import KubernetesJob
from services.runner.service import RunnerService
from tests.kubernetes import rules
from tests.kubernetes.cluster import Cluster
from tests.kubernetes.controllers import Controllers, condition_of
from tests.runner.platform import Platform, State, client, counts, custom_ids, eventually, some_lines
from tests.runner.test_runtimes import looping
from tests.runtimes.kubernetes.support import settings, spec_of, template

Object = dict[str, Any]
JOBS = "jobs.batch"
LINES = 120
CPU = {"accelerator.type": "cpu"}


@asynccontextmanager
async def runtime_on(cluster: Cluster, **given: Any) -> AsyncIterator[KubernetesJob]:
    made = KubernetesJob(settings(**given), Api(cluster.connect))
    try:
        yield made
    finally:
        await made.close()


@pytest.fixture
async def runtime(cluster: Cluster) -> AsyncIterator[KubernetesJob]:
    async with runtime_on(cluster) as made:
        yield made


@pytest.fixture
async def engine() -> AsyncIterator[MockEngine]:
    async with mock_engine(MockOptions(record=True, latency_ms=10)) as running:
        yield running


class Workers:
    """Runs what stands in the pods: the worker beside an engine that listens elsewhere."""

    def __init__(self, p: Platform, controllers: Controllers, engine: MockEngine) -> None:
        self.p = p
        self.controllers = controllers
        self.engine = engine
        self.tasks: dict[str, asyncio.Task[None]] = {}
        controllers.on_pod = self.start
        controllers.on_leaving = self.kill

    def start(self, pod: Object) -> None:
        self.controllers.kubelet.start(pod)
        (container,) = pod["spec"]["containers"]
        self.tasks[pod["metadata"]["name"]] = asyncio.create_task(self._run(pod, container["args"][-1]))

    async def _run(self, pod: Object, batch_id: str) -> None:
        chosen = Worker(engine_url=self.engine.url)
        running = asyncio.create_task(worker.run(self.p.settings.model_copy(update={"worker": chosen}), batch_id))
        try:
            self.controllers.kubelet.ready(pod)
            code = await running
        except asyncio.CancelledError:
            running.cancel()
            await asyncio.wait([running])
            raise
        self.controllers.kubelet.exit(pod, code)

    def kill(self, pod: Object) -> None:
        """At once, as a node that is gone does; a pod that is told to end is gone then."""
        if (task := self.tasks.pop(pod["metadata"]["name"], None)) is not None:
            task.cancel()
        self.controllers.kubelet.gone(pod)

    async def close(self) -> None:
        for task in self.tasks.values():
            task.cancel()
        if self.tasks:
            await asyncio.wait(self.tasks.values())


@pytest.fixture
async def workers(p: Platform, controllers: Controllers, engine: MockEngine) -> AsyncIterator[Workers]:
    made = Workers(p, controllers, engine)
    yield made
    await made.close()


async def submit(p: Platform, lines: int = LINES, **options: Any) -> str:
    return await p.submit(
        some_lines(lines),
        runtime={"target": "KubernetesJob", "options": options},
        model_template={"name": "tiny", "spec": template("mock", **CPU)},
        client=client(max_concurrency=8, adaptive_concurrency=False),
    )


async def complete(p: Platform, id: str, lines: int = LINES) -> None:
    """It ends well, with every line once."""
    batch = await p.ended(id)
    assert batch.state == State.COMPLETED, batch.errors
    assert counts(batch) == (lines, lines, 0)
    assert set((await p.results(batch)).ids().values()) == {1}


async def job(cluster: Cluster, has: Callable[[Object], Any] = bool) -> Object:
    found: Object = await eventually(lambda: next((one for one in cluster.all(JOBS) if has(one)), None))
    return found


async def free(service: RunnerService) -> None:
    await eventually(lambda: not service.executions)


async def test_the_worker_runs_the_batch_and_the_runner_has_a_free_slot(
    cluster: Cluster, workers: Workers, runtime: KubernetesJob, p: Platform
) -> None:
    async with looping(p, runtime, slots=1) as service:
        id = await submit(p)
        await eventually(lambda: workers.engine.requests.count > 5)
        await free(service)
        rules.check(await job(cluster))
        await complete(p, id)
    done = await job(cluster, lambda one: condition_of(one, "Complete"))
    assert set(custom_ids(workers.engine.requests.recorded).values()) == {1}
    assert done["status"]["succeeded"] == 1
    assert await runtime.list() == [], "one that is complete goes by itself, and people may look at it until then"


async def test_a_job_that_waits_in_a_queue_holds_nobody_and_nothing_is_counted(
    cluster: Cluster, controllers: Controllers, workers: Workers, p: Platform
) -> None:
    async with runtime_on(cluster, hand_over_s=0.3) as runtime, looping(p, runtime, slots=1) as service:
        id = await submit(p, queue_name="gpus")
        suspended = await job(cluster, lambda one: condition_of(one, "Suspended"))
        for _ in range(3):
            await free(service)
            taken = pb.AcquireLeaseRequest(
                runner_id="test", targets=["KubernetesJob"], wait_ms=10_000, protocol_version=1, batch_id=id
            )
            lease = (await p.leases.AcquireLease(taken)).lease
            assert lease.attempt == 0
            release = pb.ReleaseLeaseRequest(batch_id=id, token=lease.token, handed_over=True)
            await p.leases.ReleaseLease(release)
            await eventually(lambda: service.executions)
        assert controllers.made == []
        controllers.admit(suspended)
        await complete(p, id)
    assert len(cluster.all(JOBS)) == 1


async def test_kueue_takes_the_turn_away_and_gives_it_back(
    cluster: Cluster, controllers: Controllers, workers: Workers, p: Platform
) -> None:
    async with runtime_on(cluster, hand_over_s=0.3) as runtime, looping(p, runtime):
        id = await submit(p, queue_name="gpus")
        suspended = await job(cluster, lambda one: condition_of(one, "Suspended"))
        controllers.admit(suspended)
        await p.committed(id, 10)
        controllers.evict(suspended)
        await eventually(lambda: not controllers.pods())
        before = workers.engine.requests.count
        controllers.admit(suspended)
        await complete(p, id)
        assert workers.engine.requests.count > before
    assert len(controllers.made) == 2


@pytest.mark.parametrize("with_words", [True, False])
@pytest.mark.parametrize(("code", "words"), [(69, "the engine was not ready within 600 s"), (78, "metadata refuses")])
async def test_a_worker_that_gives_up_says_why(
    cluster: Cluster,
    controllers: Controllers,
    runtime: KubernetesJob,
    p: Platform,
    code: int,
    words: str,
    with_words: bool,
) -> None:
    def end(pod: Object) -> None:
        controllers.kubelet.start(pod)
        controllers.kubelet.exit(pod, code, words if with_words else "")

    controllers.on_pod = end
    async with looping(p, runtime):
        batch = await p.ended(await submit(p))
    assert batch.state == State.FAILED
    said = batch.errors[0].message
    assert "its Job failed: Container worker for pod engines/" in said
    assert f"failed with exit code {code} matching FailJob rule at index 1" in said
    assert f"the worker: it exited with status {code}" in said
    assert (words in said) is with_words
    assert "the engine:" not in said, "it was told to end"
    await eventually(lambda: not cluster.all(JOBS))


async def test_an_engine_that_ran_out_of_memory_is_the_cause_that_is_told(
    controllers: Controllers, runtime: KubernetesJob, p: Platform
) -> None:
    def end(pod: Object) -> None:
        controllers.kubelet.start(pod)
        oom = {"exitCode": 137, "reason": "OOMKilled", "finishedAt": "2026-01-01T00:00:00Z"}
        controllers.kubelet.exit(pod, 69, "the engine was not ready within 600 s", engine=oom)

    controllers.on_pod = end
    async with looping(p, runtime):
        batch = await p.ended(await submit(p))
    assert "the engine: it was killed since it used more memory than its limit" in batch.errors[0].message


TROUBLES = {
    "image": ("pull_backs_off", {}, "cannot be pulled"),
    "our image": ("pull_backs_off", {"container": "worker"}, "cannot be pulled (container worker"),
    "memory": ("restarted", {}, "more memory than its limit"),
    "crash": ("crash_loops", {"message": "no kernel image"}, "it exited with status 1: no kernel image"),
    "settings": (
        "misconfigured",
        {"container": "worker", "message": 'configmap "aibrix-worker" not found'},
        "aibrix-worker",
    ),
    "room": ("unschedulable", {}, "Insufficient nvidia.com/gpu"),
    "evicted": ("evict", {}, "low on resource: ephemeral-storage"),
}


@pytest.mark.parametrize("trouble", TROUBLES)
async def test_a_pod_that_does_not_come_up_fails_the_batch_with_the_cause(
    cluster: Cluster, controllers: Controllers, p: Platform, trouble: str
) -> None:
    verb, given, words = TROUBLES[trouble]

    def place(pod: Object) -> None:
        if len(controllers.made) <= 3:  # a real Job makes a pause between pods that fail
            getattr(controllers.kubelet, verb)(pod, **given)

    controllers.on_pod = place
    async with runtime_on(cluster, pending_s=0.2) as runtime, looping(p, runtime):
        batch = await p.ended(await submit(p))
        assert batch.state == State.FAILED
        assert words in batch.errors[0].message
        await eventually(lambda: not cluster.all(JOBS) and not cluster.all("pods"))


async def test_a_quota_is_told_in_its_words(cluster: Cluster, controllers: Controllers, p: Platform) -> None:
    cluster.put("resourcequotas", {"metadata": {"name": "few"}, "spec": {"hard": {"pods": "0"}}})
    async with runtime_on(cluster, pending_s=0.2) as runtime, looping(p, runtime):
        batch = await p.ended(await submit(p))
    assert "no pod can be made: Error creating: pods" in batch.errors[0].message
    assert "exceeded quota: few" in batch.errors[0].message


@pytest.mark.parametrize(
    ("reason", "message"),
    [
        ("DeadlineExceeded", "Job was active longer than specified deadline"),
        ("BackoffLimitExceeded", "Job has reached the specified backoff limit"),
    ],
)
async def test_a_job_that_the_cluster_ended_says_why(
    cluster: Cluster, controllers: Controllers, runtime: KubernetesJob, p: Platform, reason: str, message: str
) -> None:
    async with looping(p, runtime):
        id = await submit(p)
        controllers.fail(await job(cluster), reason, message)
        batch = await p.ended(id)
    assert f"its Job failed: {message}" in batch.errors[0].message


async def test_a_disruption_is_no_failure_and_the_next_pod_goes_on(
    cluster: Cluster, controllers: Controllers, workers: Workers, runtime: KubernetesJob, p: Platform
) -> None:
    async with looping(p, runtime):
        id = await submit(p)
        await p.committed(id, 10)
        first = controllers.pod
        controllers.kubelet.disrupt(first)
        await complete(p, id)
    assert len(controllers.made) == 2
    done = await job(cluster, lambda one: condition_of(one, "Complete"))
    assert not done["status"].get("failed")


async def test_the_next_runner_finds_the_same_job(
    cluster: Cluster, controllers: Controllers, engine: MockEngine, p: Platform
) -> None:
    controllers.on_pod = controllers.kubelet.start
    id = await submit(p)
    async with runtime_on(cluster) as runtime, looping(p, runtime) as service:
        await eventually(controllers.pods)
        (execution,) = service.executions
        await eventually(lambda: execution.status().phase == "launching: loading")
    (before,) = cluster.all(JOBS)
    async with runtime_on(cluster) as runtime, looping(p, runtime) as service:
        await eventually(lambda: service.executions)
        workers = Workers(p, controllers, engine)
        workers.start(controllers.pod)
        await complete(p, id)
        await workers.close()
    (after,) = cluster.all(JOBS)
    assert after["metadata"]["uid"] == before["metadata"]["uid"]


async def test_a_worker_may_have_the_batch_before_anybody_could_say_what_was_made(
    cluster: Cluster, controllers: Controllers, workers: Workers, runtime: KubernetesJob, p: Platform
) -> None:
    """The runner that made the Job died before it could save its handle."""
    id = await submit(p)
    spec = spec_of("KubernetesJob", template("mock", **CPU), key=id)
    made = await runtime.launch(spec)
    await p.committed(id, 10)
    controllers.kubelet.disrupt(controllers.pod)
    async with looping(p, runtime):
        await complete(p, id)
    (after,) = cluster.all(JOBS)
    assert after["metadata"]["uid"] == made["uid"]


async def test_a_cancel_before_the_worker_has_the_batch_removes_the_job(
    cluster: Cluster, controllers: Controllers, runtime: KubernetesJob, p: Platform
) -> None:
    controllers.on_pod = controllers.kubelet.start
    async with looping(p, runtime):
        id = await submit(p)
        await eventually(controllers.pods)
        await p.cancel(id)
        assert (await p.ended(id)).state == State.CANCELLED
        await eventually(lambda: not cluster.all(JOBS) and not cluster.all("pods"))


async def test_a_cancel_while_it_waits_in_a_queue_removes_the_job(
    cluster: Cluster, controllers: Controllers, runtime: KubernetesJob, p: Platform
) -> None:
    async with looping(p, runtime) as service:
        id = await submit(p, queue_name="gpus")
        await job(cluster, lambda one: condition_of(one, "Suspended"))
        await free(service)
        await p.cancel(id)
        assert (await p.ended(id)).state == State.CANCELLED, "it rests for half a minute, but not from this"
        await eventually(lambda: not cluster.all(JOBS))


async def test_a_cancel_while_the_worker_has_the_batch_is_the_workers_to_do(
    cluster: Cluster, workers: Workers, runtime: KubernetesJob, p: Platform
) -> None:
    async with looping(p, runtime):
        id = await submit(p, 10 * LINES)
        await p.committed(id, 10)
        await p.cancel(id)
        batch = await p.ended(id)
        assert batch.state == State.CANCELLED
        assert batch.completed_count >= 10
        assert (await p.results(batch)).ids().total() == 10 * LINES
        await job(cluster, lambda one: condition_of(one, "Complete"))


async def test_a_worker_that_never_takes_its_batch_fails_it_in_the_end(
    cluster: Cluster, controllers: Controllers, p: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(allocation, "MOST_HAND_OVERS", 3)
    controllers.on_pod = controllers.kubelet.ready
    async with runtime_on(cluster, hand_over_s=0.05) as runtime, looping(p, runtime):
        batch = await p.ended(await submit(p))
    assert batch.state == State.FAILED
    assert "the engine of its Job is ready, 3 times in a row, but it did not take the batch" in batch.errors[0].message


async def test_the_worker_gets_the_batch_while_it_rests(
    cluster: Cluster, controllers: Controllers, engine: MockEngine, runtime: KubernetesJob, p: Platform
) -> None:
    """For everybody else it rests for half a minute."""
    controllers.on_pod = controllers.kubelet.ready
    async with looping(p, runtime) as service:
        id = await submit(p)
        await eventually(controllers.pods)
        await eventually(lambda: not service.executions)
        workers = Workers(p, controllers, engine)
        async with asyncio.timeout(15):
            workers.start(controllers.pod)
            await complete(p, id)
        await workers.close()


async def test_states_of_a_job(cluster: Cluster, controllers: Controllers, runtime: KubernetesJob) -> None:
    spec = spec_of("KubernetesJob", template("mock", **CPU))
    handle = await runtime.launch(spec)

    async def until(kind: type, words: str = "") -> Any:
        async def found() -> Any:
            probe = await runtime.probe(spec, handle)
            said = getattr(probe, "detail", "") + getattr(probe, "why", "")
            return probe if isinstance(probe, kind) and words in said else None

        return await eventually(found)

    assert (await until(Pending, "waits for a node")).counts is False
    controllers.kubelet.start(controllers.pod)
    assert (await until(Pending, "loads")).counts is True
    controllers.kubelet.ready(controllers.pod)
    assert not (await until(HandOver, "ready")).queued
    controllers.evict(cluster.all(JOBS)[0])
    assert (await until(HandOver, "its Job is suspended")).queued
    controllers.admit(cluster.all(JOBS)[0])
    await until(Pending, "waits for a node")
    controllers.kubelet.exit(controllers.pod, 0)
    assert (await until(Gone, "ended before the batch did")).retryable
    again = await runtime.launch(spec)
    assert again["uid"] != handle["uid"], "a Job that is over is made anew"


async def test_a_saved_handle_of_an_older_launch_is_gone(runtime: KubernetesJob) -> None:
    spec: Spec = spec_of("KubernetesJob", template("mock", **CPU))
    handle: Handle = await runtime.launch(spec)
    assert isinstance(await runtime.probe(spec, {**handle, "uid": "another"}), Gone)
