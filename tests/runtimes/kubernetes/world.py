"""Runtimes on an emulated cluster, batches for them, and what happens to their pods."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

from services.kit.kubernetes.api import Api
from services.runner.engines.mock import MockEngine
from services.runner.runtimes.base import Handle, Probe, Spec
from services.runner.runtimes.kubernetes.runtime import OnKubernetes
from services.runner.runtimes.kubernetes.workloads import Kubernetes
from tests.kubernetes.cluster import Cluster
from tests.kubernetes.controllers import Controllers
from tests.runner.platform import Platform, State, client, counts, eventually, some_lines
from tests.runtimes.kubernetes.support import settings, template

Object = dict[str, Any]
DEPLOYMENTS, SERVICES, SLICES = "deployments.apps", "services", "endpointslices.discovery.k8s.io"
LINES = 120
CPU = {"accelerator.type": "cpu"}


@asynccontextmanager
async def runtime_on(cluster: Cluster, **given: Any) -> AsyncIterator[Kubernetes]:
    made = Kubernetes(settings(**given), Api(cluster.connect))
    try:
        yield made
    finally:
        await made.close()


async def submit(p: Platform, lines: int = LINES, *, max_concurrency: int = 8, **changes: Any) -> str:
    return await p.submit(
        some_lines(lines),
        runtime={"target": "Kubernetes"},
        model_template={"name": "tiny", "spec": template("mock", **CPU, **changes)},
        client=client(
            max_concurrency=max_concurrency, adaptive_concurrency=False, retry={"no_endpoint_max_retries": 3}
        ),
    )


async def until(runtime: OnKubernetes, spec: Spec, handle: Handle, kind: type[Probe], words: str = "") -> Any:
    async def found() -> Probe | None:
        probe = await runtime.probe(spec, handle)
        said = getattr(probe, "detail", "") + getattr(probe, "phase", "") + getattr(probe, "why", "")
        return probe if isinstance(probe, kind) and words in said else None

    return await eventually(found)


def serve(controllers: Controllers, *engines: MockEngine) -> None:
    """Each pod that is made becomes ready at once, with the next of these."""
    rest: Iterator[MockEngine] = iter(engines)

    def place(pod: Object) -> None:
        if (engine := next(rest, None)) is not None:
            controllers.kubelet.ready(pod, engine.url)

    controllers.on_pod = place


async def complete(p: Platform, id: str, lines: int = LINES) -> None:
    """It ends well, with every line once."""
    batch = await p.ended(id)
    assert batch.state == State.COMPLETED, batch.errors
    assert counts(batch) == (lines, lines, 0)
    assert set((await p.results(batch)).ids().values()) == {1}
