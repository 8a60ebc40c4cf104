"""What the targets Kubernetes and KubernetesJob have in common: one workload per batch, found again by its name.

The name comes from the batch, so a second launch finds the first one's workload: by whichever runner, whatever was lost in
between. Everything else that belongs to a batch is owned by its workload, and goes with it.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import deque
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
from services.runner.runtimes.kubernetes.said import seconds
from services.runner.runtimes.ssh_logs import cleaned

TAIL_LINES = 40
TAIL_BYTES = 16 * 1024
# Between two looks at the events of a pod that waits, and between two looks whether something is deleted.
EVENTS_S = 5.0
GONE_S = 1.0
MOST_RELEASED = 1000
LOADING = "loading"
QUEUED = "queued"

Handles = list[Handle]
Objects = list[Object]

log = structlog.get_logger(__name__)


@dataclass
class Session:
    """What this process remembers of one workload."""

    silent_since: float | None = None
    """By our clock: since when no pod is ready, of a workload that had one."""
    troubled_since: float | None = None
    """In Unix seconds: since when something is wrong without a break."""
    idle_since: float | None = None
    """In Unix seconds: since when there is no pod that may become ready."""
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
        # The watch may not know yet what we deleted ourselves.
        self._released: deque[str] = deque(maxlen=MOST_RELEASED)
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
            await self._completed(wanted, workload)
        except ApiError as error:
            raise _failed("the Kubernetes API", error) from error
        return handle_of(workload)

    async def probe(self, spec: Spec, handle: Handle) -> Probe:
        if not handle.get("uid"):
            # That of a worker in a Job, which took its batch before a runner could say what it had made.
            return Gone(f"nobody knows its {_kind(self.resource)}")
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
        if not handle.get("uid"):
            return
        self._sessions.pop(handle["uid"], None)
        self.alert(handle, None)
        try:
            found = await self.api.delete(self.resource, handle["namespace"], handle["name"], uid=handle["uid"])
        except ApiError as error:
            raise _failed("it cannot be deleted, the Kubernetes API", error) from error
        self._released.append(handle["uid"])
        if found:
            log.info("workload deleted", key=handle["key"], name=handle["name"], namespace=handle["namespace"])
            self.follower.run(self._see_off(handle))

    async def list(self) -> Handles:
        """Our workloads, of all runners, that do not go by themselves. Nobody is asked before a batch was here, or a namespace
        is set."""
        if not self._asked:
            return []
        try:
            own = self._own.namespace or await self.api.open()
        except ApiError as error:
            raise _failed("the Kubernetes API", error) from error
        more = {name.strip() for name in self._own.allowed_namespaces.split(",")} - {"", ANY}
        handles: Handles = []
        for namespace in sorted({own} | more):
            handles += await self._listed(namespace)
        return handles

    async def _listed(self, namespace: str) -> Handles:
        """One namespace that cannot be looked at does not hide what is in the others."""
        try:
            items, _ = await self.api.list(self.resource, namespace, selector=BATCH_LABEL)
        except ApiError as error:
            log.warning("engines cannot be listed", namespace=namespace, target=self.target, why=error.message)
            return []
        here = [item for item in items if "deletionTimestamp" not in item["metadata"] and not self.is_over(item)]
        return [handle_of(item) for item in here]

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
                for container in ("engine", "download"):
                    if text := await self._log_of(handle, pod, container):
                        return cleaned(text)
        except ApiError as error:
            log.warning("the engine's log cannot be read", key=handle["key"], why=error.message)
        return ""

    # How

    async def _completed(self, wanted: Plan, workload: Object) -> None:
        """Error: RuntimeFailed, ApiError; what cannot be completed at all does not stay."""
        try:
            await self.complete(wanted, workload)
        except Refused:
            await self.release(handle_of(workload))
            raise

    async def _log_of(self, handle: Handle, pod: Object, container: str) -> str:
        """The end of what it wrote; before it ended, if it was started again: that is where the cause is."""
        state = trouble.container_state(pod, container)
        was_restarted = bool(state.get("restartCount")) and "terminated" not in (state.get("state") or {})
        for previous in (True, False) if was_restarted else (False,):
            text = await self.api.logs(
                handle["namespace"],
                pod["metadata"]["name"],
                container,
                lines=TAIL_LINES,
                limit_bytes=TAIL_BYTES,
                previous=previous,
            )
            if text:
                return text
        return ""

    async def pods(self, handle: Handle) -> Objects:
        """The oldest first."""
        found = await self.follower.items("pods", handle["namespace"], BATCH_LABEL, handle["label"])
        return sorted(found, key=trouble.created)

    def session(self, handle: Handle) -> Session:
        return self._sessions.setdefault(handle["uid"], Session())

    async def waiting(self, handle: Handle, workload: Object) -> Probe:
        """Why no engine is ready yet: Pending, or Gone if waiting will not help."""
        session, now = self.session(handle), clock.now().timestamp()
        pods = await self.pods(handle)
        since = session.troubled_since or now
        moment = trouble.Moment(now=now, since=since, pending_s=self._own.pending_s, served=handle["ready"])
        conditions = (workload.get("status") or {}).get("conditions") or []
        found = trouble.look(pods, await self._events(handle, pods), moment, conditions)
        if isinstance(found, trouble.Trouble):
            session.troubled_since = since
            return await self.gone(handle, found.why) if found.fatal else Pending(found.why, "waiting", counts=False)
        session.troubled_since = None
        return await self._staged(handle, pods, found, now)

    async def _staged(self, handle: Handle, pods: Objects, found: trouble.Stage, now: float) -> Probe:
        """Nothing is wrong, but that may not last for ever: only the loading is bounded by others."""
        session = self.session(handle)
        alive = [seconds(trouble.created(pod), now) for pod in pods if not trouble.is_over(pod)]
        session.idle_since = None if alive else session.idle_since or now
        if found.phase != LOADING and found.phase != QUEUED:
            age = now - (max(alive) if alive else session.idle_since or now)
            if age >= self._own.start_timeout_s:
                return await self.gone(handle, f"its pod did not start within {age:.0f} s: {found.detail}")
        return Pending(found.detail, found.phase, counts=found.phase == LOADING)

    async def gone(self, handle: Handle, why: str, *, retryable: bool = False) -> Gone:
        """With the last lines of the log: by the time that somebody reads this, there is no pod any more."""
        lines = await self.explain(handle)
        return Gone(why + (f"; its last output:\n{lines}" if lines else ""), retryable=retryable)

    async def _events(self, handle: Handle, pods: Objects) -> Objects:
        """Of the newest pod that may become ready, or of what should make one; looked at every few seconds only."""
        session = self.session(handle)
        if monotonic() - session.events_at >= EVENTS_S:
            session.events_at = monotonic()
            alive = [pod["metadata"]["name"] for pod in pods if not trouble.is_over(pod)]
            found: Objects = []
            for name in alive[-1:] or [handle["name"]]:
                try:
                    items, _ = await self.api.list("events", handle["namespace"], field=f"involvedObject.name={name}")
                except Refused as error:
                    log.warning("events cannot be looked at", key=handle["key"], why=error.message)
                    continue
                found += items
            session.events = found
        return session.events

    async def _workload(self, handle: Handle) -> Object | None:
        """None: it is gone, or another one has its name."""
        if handle["uid"] in self._released:
            return None
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
            metadata = found["metadata"] if found is not None else {}  # None: it went in between
            if found is not None and (metadata.get("annotations") or {}).get(BATCH_ANNOTATION) != wanted.key:
                raise RuntimeFailed(f"somebody else's {_kind(self.resource)} is called {wanted.name}", retryable=False)
            if found is not None and "deletionTimestamp" not in metadata:
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
