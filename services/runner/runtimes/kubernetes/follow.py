"""What the cluster has of ours, followed by watch, so that a probe costs nothing and a change is known at once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine

import structlog

from services.kit.clock import monotonic
from services.kit.kubernetes.api import Api
from services.kit.kubernetes.errors import Refused, Unavailable
from services.kit.kubernetes.requests import Object
from services.kit.kubernetes.watch import Informer
from services.kit.lifecycle import wait_for
from services.runner.runtimes.kubernetes.plan import BATCH_LABEL

SERVICE_NAME = "kubernetes.io/service-name"
# Each resource with the labels that are ours. The controller of EndpointSlices names the Service; the rest we label.
SELECTORS = {
    "deployments.apps": BATCH_LABEL,
    "jobs.batch": BATCH_LABEL,
    "pods": BATCH_LABEL,
    "endpointslices.discovery.k8s.io": SERVICE_NAME,
}
SYNC_S = 10.0

log = structlog.get_logger(__name__)


class Follower:
    """Follows a resource of a namespace from the first time that somebody asks for it until `close`."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._informers: dict[tuple[str, str], Informer] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._wakes: dict[str, Callable[[], None]] = {}

    async def items(self, resource: str, namespace: str, label: str, value: str) -> list[Object]:
        """Those with this label, as they were when the server was heard of last. Error: ApiError, if that was never."""
        informer = self._informer(resource, namespace)
        if not informer.synced.is_set():
            await wait_for(informer.tried, SYNC_S)
        if not informer.synced.is_set():
            raise informer.error or Unavailable("the Kubernetes API does not answer")
        return [item for item in informer.items.values() if (item["metadata"].get("labels") or {}).get(label) == value]

    def refused_for(self, namespace: str) -> tuple[float, str]:
        """For how long the server has refused to tell us something, in seconds, and its words; 0: it does not."""
        now = monotonic()
        found = [
            (now - informer.stale_since, informer.error.message)
            for (_, there), informer in self._informers.items()
            if there == namespace and isinstance(informer.error, Refused) and informer.stale_since is not None
        ]
        return max(found, default=(0.0, ""))

    def alert(self, name: str, wake: Callable[[], None] | None) -> None:
        """Call `wake` at every change of what belongs to the workload `name`."""
        if wake is None:
            self._wakes.pop(name, None)
        else:
            self._wakes[name] = wake

    def run(self, work: Coroutine[None, None, None]) -> None:
        """In the background, until it ends, or until `close`."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)  # the loop itself holds tasks only weakly
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._informers.clear()

    def _informer(self, resource: str, namespace: str) -> Informer:
        informer = self._informers.get((resource, namespace))
        if informer is None:
            informer = Informer(
                self._api, resource, namespace, selector=SELECTORS[resource], on_change=lambda _, found: self._on(found)
            )
            self._informers[resource, namespace] = informer
            self.run(self._follow(resource, namespace, informer))
        return informer

    async def _follow(self, resource: str, namespace: str, informer: Informer) -> None:
        try:
            await informer.run()
        except Exception:
            log.exception("a watch ended", resource=resource, namespace=namespace)
        finally:
            # Whoever asks next begins anew.
            self._informers.pop((resource, namespace), None)

    def _on(self, found: Object) -> None:
        for name in workloads_of(found):
            if (wake := self._wakes.get(name)) is not None:
                wake()


def workloads_of(found: Object) -> set[str]:
    """Names of the workloads that it may belong to: its own, its Service's, and what its batch is called by."""
    metadata = found["metadata"]
    labels = metadata.get("labels") or {}
    return {name for name in (metadata["name"], labels.get(SERVICE_NAME), labels.get(BATCH_LABEL)) if name}
