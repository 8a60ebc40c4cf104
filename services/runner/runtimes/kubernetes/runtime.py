"""What the targets Kubernetes and KubernetesJob have in common: one workload per batch, found again by its name.

The name comes from the batch, so a second launch finds the first one's workload: by whichever runner, whatever was lost in
between. Everything else that belongs to a batch is owned by its workload, and goes with it.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import structlog

from services.kit import clock
from services.kit.clock import monotonic
from services.kit.kubernetes.api import Api
from services.kit.kubernetes.errors import AlreadyThere, ApiError, NoCredentials, Refused
from services.kit.kubernetes.requests import Object
from services.kit.settings import Settings
from services.runner.runtimes.base import Gone, Handle, Pending, Probe, RuntimeFailed, Spec
from services.runner.runtimes.kubernetes import trouble
from services.runner.runtimes.kubernetes.follow import Follower
from services.runner.runtimes.kubernetes.plan import ANY, BATCH_ANNOTATION, BATCH_LABEL, MARK_ANNOTATION, Plan, plan
from services.runner.runtimes.ssh_logs import cleaned

TAIL_LINES = 40
TAIL_BYTES = 16 * 1024
# Between two looks at the events of a pod that waits, and between two looks whether something is deleted.
EVENTS_S = 5.0
GONE_S = 1.0
LOADING = "loading"

Handles = list[Handle]
Objects = list[Object]

log = structlog.get_logger(__name__)


@dataclass
class Session:
    """What this process remembers of one workload."""

    silent_since: float | None = None
    events: Objects = field(default_factory=list)
    events_at: float = -EVENTS_S


class OnKubernetes:
    """Base of the two."""

    target: ClassVar[str]
    resource: ClassVar[str]
    shared_by_runners: ClassVar[Literal[True]] = True

    def __init__(self, settings: Settings, api: Api | None = None) -> None:
        self._settings = settings
        self._own = settings.kubernetes
        self.api = api or Api()
        self.follower = Follower(self.api)
        self._sessions: dict[str, Session] = {}
        self._asked = bool(self._own.namespace)

    # What differs

    def render(self, plan: Plan) -> Object:
        raise NotImplementedError

    async def complete(self, plan: Plan, workload: Object) -> None:
        """Make what belongs to the workload besides."""

    def is_over(self, workload: Object) -> bool:
        """It ended by itself, and is only looked at any more."""
        return False

    async def state(self, spec: Spec, handle: Handle, workload: Object) -> Probe:
        raise NotImplementedError

    # The port

    async def launch(self, spec: Spec) -> Handle:
        self._asked = True
        try:
            own_namespace = await self.api.open()
            wanted = plan(
                spec,
                self.target,
                self._settings,
                own_namespace,
                mark=secrets.token_hex(8),
                now=clock.now().timestamp(),
            )
            workload = await self._made(wanted)
            await self.complete(wanted, workload)
        except ApiError as error:
            raise _failed("the Kubernetes API", error) from error
        return handle_of(workload)

    async def probe(self, spec: Spec, handle: Handle) -> Probe:
        try:
            workload = await self._workload(handle)
            if workload is None:
                return Gone(f"its {_kind(self.resource)} is not there any more: somebody deleted it")
            return await self.state(spec, handle, workload)
        except ApiError as error:
            refused_s, words = self.follower.refused_for(handle["namespace"])
            if isinstance(error, NoCredentials) or refused_s >= self._own.pending_s:
                return Gone(f"the Kubernetes API refuses: {words or error.message}", retryable=False)
            return Pending(f"the Kubernetes API cannot be asked: {error.message}")

    async def release(self, handle: Handle) -> None:
        """Ask for its deletion, and see to it in the background that it happens."""
        self._sessions.pop(str(handle.get("uid")), None)
        if not handle.get("uid"):
            return
        self.follower.alert(handle["name"], None)
        try:
            found = await self.api.delete(self.resource, handle["namespace"], handle["name"], uid=handle["uid"])
        except ApiError as error:
            raise _failed("it cannot be deleted, the Kubernetes API", error) from error
        if found:
            log.info("workload deleted", key=handle["key"], name=handle["name"], namespace=handle["namespace"])
            loop = asyncio.get_running_loop()
            self.follower.run(lambda: loop.create_task(self._see_off(handle)))

    async def list(self) -> Handles:
        """All of our workloads, of all runners. Nobody is asked before a batch was here, or a namespace is set."""
        if not self._asked:
            return []
        try:
            own = self._own.namespace or await self.api.open()
            more = {name.strip() for name in self._own.allowed_namespaces.split(",")} - {"", ANY}
            handles = []
            for namespace in sorted({own} | more):
                items, _ = await self.api.list(self.resource, namespace, selector=BATCH_LABEL)
                handles += [handle_of(item) for item in items if "deletionTimestamp" not in item["metadata"]]
        except ApiError as error:
            raise _failed("the Kubernetes API", error) from error
        return handles

    async def close(self) -> None:
        """What runs stays, for other runners."""
        await self.follower.close()
        await self.api.close()

    def alert(self, handle: Handle, wake: Callable[[], None] | None) -> None:
        for name in (handle["name"], handle["label"]):
            self.follower.alert(name, wake)

    async def explain(self, handle: Handle) -> str:
        """Last lines of its engine; of the downloader, if the engine was never started."""
        try:
            for pod in reversed(await self.pods(handle)):
                name = pod["metadata"]["name"]
                for container in ("engine", "download"):
                    state = trouble.container_state(pod, container)
                    crashed = bool((state.get("state") or {}).get("waiting")) and bool(state.get("restartCount"))
                    text = await self.api.logs(
                        handle["namespace"],
                        name,
                        container,
                        lines=TAIL_LINES,
                        limit_bytes=TAIL_BYTES,
                        previous=crashed,
                    )
                    if text:
                        return cleaned(text, None)
        except ApiError as error:
            log.warning("the engine's log cannot be read", key=handle["key"], why=error.message)
        return ""

    # How

    async def pods(self, handle: Handle) -> Objects:
        """The oldest first."""
        found = await self.follower.items("pods", handle["namespace"], BATCH_LABEL, handle["label"])
        return sorted(found, key=lambda pod: str(pod["metadata"].get("creationTimestamp", "")))

    def session(self, handle: Handle) -> Session:
        return self._sessions.setdefault(handle["uid"], Session())

    async def waiting(self, handle: Handle, conditions: Objects) -> Probe:
        """Why no engine is ready yet: Pending, or Gone if waiting will not help."""
        now, pending_s = clock.now().timestamp(), self._own.pending_s
        pods = await self.pods(handle)
        events = await self._events(handle, pods)
        refused = trouble.failed_creation((), conditions, now=now, pending_s=pending_s)
        found = refused or trouble.look(pods, events, now=now, pending_s=pending_s)
        if isinstance(found, trouble.Trouble):
            return await self.gone(handle, found.why) if found.fatal else Pending(found.why, "waiting", counts=False)
        if found.phase != LOADING:
            age = now - (trouble.seconds(pods[-1]["metadata"].get("creationTimestamp"), now) if pods else now)
            if age >= self._own.start_timeout_s:
                return await self.gone(handle, f"its pod did not start within {age:.0f} s: {found.detail}")
        return Pending(found.detail, found.phase, counts=found.phase == LOADING)

    async def gone(self, handle: Handle, why: str, *, retryable: bool = False) -> Gone:
        """With the last lines of the log: by the time that somebody reads this, there is no pod any more."""
        lines = await self.explain(handle)
        return Gone(why + (f"; its last output:\n{lines}" if lines else ""), retryable=retryable)

    async def _events(self, handle: Handle, pods: Objects) -> Objects:
        """Of a pod that waits, or of what should make one; looked at every few seconds only."""
        session = self.session(handle)
        if monotonic() - session.events_at >= EVENTS_S:
            session.events_at = monotonic()
            names = [pod["metadata"]["name"] for pod in pods[-1:]] or [handle["name"]]
            session.events = []
            for name in names:
                items, _ = await self.api.list("events", handle["namespace"], field=f"involvedObject.name={name}")
                session.events += items
        return session.events

    async def _workload(self, handle: Handle) -> Object | None:
        """None: it is gone, or another one has its name."""
        found = await self.follower.items(self.resource, handle["namespace"], BATCH_LABEL, handle["label"])
        mine = [item for item in found if item["metadata"]["uid"] == handle["uid"]]
        # The watch may lag behind what we did ourselves.
        item = mine[0] if mine else await self.api.read(self.resource, handle["namespace"], handle["name"])
        if item is None or item["metadata"]["uid"] != handle["uid"] or "deletionTimestamp" in item["metadata"]:
            return None
        return item

    async def _made(self, wanted: Plan) -> Object:
        """A new workload, or that of an earlier launch for the same batch. Error: RuntimeFailed, ApiError."""
        give_up_at = monotonic() + self._own.teardown_s
        while True:
            try:
                return await self.api.create(self.resource, wanted.namespace, self.render(wanted))
            except AlreadyThere:
                found = await self.api.read(self.resource, wanted.namespace, wanted.name)
            if found is None:
                continue
            metadata = found["metadata"]
            if (metadata.get("annotations") or {}).get(BATCH_ANNOTATION) != wanted.key:
                raise RuntimeFailed(f"somebody else's {_kind(self.resource)} is called {wanted.name}", retryable=False)
            if "deletionTimestamp" not in metadata:
                if not self.is_over(found):
                    log.info("workload found again", key=wanted.key, name=wanted.name)
                    return found
                await self.api.delete(self.resource, wanted.namespace, wanted.name, uid=metadata["uid"])
            if monotonic() >= give_up_at:
                held = ", ".join(metadata.get("finalizers") or ()) or "nothing that it names"
                raise RuntimeFailed(
                    f"an earlier {wanted.name} is still being deleted, held up by {held}", retryable=True
                )
            await asyncio.sleep(GONE_S)

    async def _see_off(self, handle: Handle) -> None:
        """Finalizers are their owners' business: nobody but them removes one. But people should know."""
        give_up_at = monotonic() + self._own.teardown_s
        try:
            while (left := await self.api.read(self.resource, handle["namespace"], handle["name"])) is not None:
                metadata = left["metadata"]
                if metadata["uid"] != handle["uid"]:
                    return
                if monotonic() >= give_up_at:
                    held = metadata.get("finalizers") or []
                    log.warning("a workload is still being deleted", name=handle["name"], finalizers=held)
                    return
                await asyncio.sleep(GONE_S)
        except ApiError as error:
            log.warning("nobody knows whether it is deleted", name=handle["name"], why=error.message)


def handle_of(workload: Object) -> Handle:
    metadata = workload["metadata"]
    annotations: dict[str, Any] = metadata.get("annotations") or {}
    return {
        "key": annotations.get(BATCH_ANNOTATION, ""),
        "label": (metadata.get("labels") or {}).get(BATCH_LABEL, ""),
        "mark": annotations.get(MARK_ANNOTATION, ""),
        "namespace": metadata["namespace"],
        "name": metadata["name"],
        "uid": metadata["uid"],
        "ready": False,
    }


def _failed(who: str, error: ApiError) -> RuntimeFailed:
    hopeless = isinstance(error, Refused | NoCredentials)
    return RuntimeFailed(f"{who} says: {error.message}", retryable=not hopeless)


def _kind(resource: str) -> str:
    return {"deployments.apps": "Deployment", "jobs.batch": "Job"}[resource]
