"""Both Kubernetes targets from the SDK to the last line: gateway, metadata, runner and worker are processes, and so is the engine beside it;
the cluster is emulated."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import openai
import pytest

from services.kit.settings import Settings
from services.runner.engines.mock import MockEngine, mock_engine
from services.runner.engines.options import MockOptions
from tests.e2e.processes import Suite, eventually, suite
from tests.e2e.test_crash import finished, sdk, write_input
from tests.kubernetes.cluster import Cluster
from tests.kubernetes.controllers import Controllers, condition_of
from tests.runner.platform import custom_ids
from tests.runner.worker_process import WorkerProcess, worker
from tests.runtimes.kubernetes.support import template

Object = dict[str, Any]
LINES = 400  # as write_input writes


class Pods:
    """What runs in the pods of Jobs: the worker as a process, and an engine that all of them share."""

    def __init__(self, platform: Suite, controllers: Controllers, engine_url: str) -> None:
        self.settings = Settings(
            data_dir=Path(platform.env["AIBRIX_DATA_DIR"]), metadata_addr=platform.env["AIBRIX_METADATA_ADDR"]
        )
        self.folder = platform.folder
        self.controllers = controllers
        self.engine_url = engine_url
        self.workers: dict[str, WorkerProcess] = {}
        self.codes: list[int] = []
        self._tasks: set[asyncio.Task[None]] = set()
        controllers.on_pod = self._place
        controllers.on_leaving = self._terminate

    def _place(self, pod: Object) -> None:
        self.controllers.kubelet.ready(pod, self.engine_url)
        if "initContainers" in pod["spec"]:
            task = asyncio.create_task(self._run(pod))
            self._tasks.add(task)

    async def _run(self, pod: Object) -> None:
        name, (container,) = pod["metadata"]["name"], pod["spec"]["containers"]
        running = worker(self.settings, "", self.engine_url, self.folder / name, manifest=container)
        async with running as process:
            self.workers[name] = process
            code = await process.ended()
        self.codes.append(code)
        self.controllers.kubelet.exit(pod, code, process.last_words())
        found = self.controllers.cluster.get("pods", pod["metadata"]["namespace"], name)
        if found and "deletionTimestamp" in found["metadata"]:
            self.controllers.kubelet.gone(pod)

    def _terminate(self, pod: Object) -> None:
        if (process := self.workers.get(pod["metadata"]["name"])) is not None:
            process.process.terminate()
        else:
            self.controllers.kubelet.gone(pod)

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


@asynccontextmanager
async def world(folder: Path, engine_url: str) -> AsyncIterator[tuple[Suite, Cluster, Controllers, Pods]]:
    async with AsyncExitStack() as stack:
        cluster = await stack.enter_async_context(Cluster("engines").running())
        kubeconfig = folder / "kubeconfig"
        cluster.write_kubeconfig(kubeconfig)
        controllers = Controllers(cluster)
        stack.callback(controllers.stop)
        platform = await stack.enter_async_context(
            suite(
                folder,
                "metadata",
                "runner",
                "gateway",
                KUBECONFIG=str(kubeconfig),
                AIBRIX_RUNNER__SEGMENT_SECONDS="0.1",
            )
        )
        pods = Pods(platform, controllers, engine_url)
        stack.push_async_callback(pods.close)
        yield platform, cluster, controllers, pods


@asynccontextmanager
async def engine_process(folder: Path) -> AsyncIterator[str]:
    """Its URL."""
    port_file = folder / "port"
    argv = ["-m", "services.runner.engines.mock", "--port", "0", "--port-file", str(port_file), "--latency-ms", "10"]
    process = await asyncio.create_subprocess_exec(sys.executable, *argv)
    try:

        async def answers() -> bool:
            return port_file.exists()

        await eventually(answers, "the engine answers")
        yield f"http://127.0.0.1:{port_file.read_text()}"
    finally:
        process.terminate()
        await process.wait()


@pytest.fixture
async def engine() -> AsyncIterator[MockEngine]:
    async with mock_engine(MockOptions(record=True, latency_ms=20)) as running:
        yield running


async def create(client: openai.AsyncOpenAI, folder: Path, target: str) -> str:
    source = folder / "input.jsonl"
    write_input(source)
    uploaded = await client.files.create(file=source, purpose="batch")
    block = {
        "runtime": {"target": target},
        "model_template": {"name": "tiny", "spec": template("mock", **{"accelerator.type": "cpu"})},
        "client": {"max_concurrency": 8, "adaptive_concurrency": False},
    }
    batch = await client.batches.create(
        input_file_id=uploaded.id,
        endpoint="/v1/chat/completions",
        completion_window="24h",
        extra_body={"aibrix": block},
    )
    return batch.id


async def check(client: openai.AsyncOpenAI, batch_id: str) -> None:
    batch = await finished(client, batch_id)
    assert batch.status == "completed", batch.errors
    assert batch.request_counts is not None
    assert batch.request_counts.model_dump() == {"completed": LINES, "failed": 0, "total": LINES}
    assert batch.output_file_id is not None
    text = await client.files.content(batch.output_file_id)
    assert len(set(text.content.splitlines())) == LINES


async def test_both_targets_from_create_to_the_last_line(tmp_path: Path) -> None:
    async with engine_process(tmp_path) as url, world(tmp_path, url) as (platform, cluster, _, pods):
        async with sdk(platform) as client:
            ids = [await create(client, tmp_path, target) for target in ("KubernetesJob", "Kubernetes")]
            for id in ids:
                await check(client, id)

        async def settled() -> bool:
            jobs, deployments = cluster.all("jobs.batch"), cluster.all("deployments.apps")
            return bool(condition_of(jobs[0], "Complete")) and not deployments

        await eventually(
            settled, "the Job is complete, and the Deployment gone", lambda: platform.log("runner")[-3000:]
        )
        assert pods.codes == [0]


async def test_a_drained_node_hands_the_batch_to_the_next_pod(tmp_path: Path, engine: MockEngine) -> None:
    async with world(tmp_path, engine.url) as (platform, cluster, controllers, pods), sdk(platform) as client:
        id = await create(client, tmp_path, "KubernetesJob")

        async def has_begun() -> bool:
            return engine.requests.count > 20

        await eventually(has_begun, "the worker sends", lambda: platform.log("runner")[-3000:])
        controllers.kubelet.disrupt(controllers.pod)
        await check(client, id)

        async def complete() -> bool:
            return bool(condition_of(cluster.all("jobs.batch")[0], "Complete"))

        await eventually(complete, "the Job is complete")
        assert pods.codes == [75, 0]
        assert not cluster.all("jobs.batch")[0]["status"].get("failed")
    seen = custom_ids(engine.requests.recorded)
    assert len(seen) == LINES
    assert set(seen.values()) == {1}
