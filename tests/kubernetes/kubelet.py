"""What schedulers, kubelets and autoscalers say about pods, in the API's own shapes and words. The test says when.

Messages are those of Kubernetes 1.34 with containerd, the cluster autoscaler and Karpenter, but for names and numbers. It does not have: probes
(ready is what the test says), restarts by themselves, back-off times, the order in which containers start, images, volumes, logs
(`Cluster.texts`), grace periods, pods/eviction, resize, ephemeral containers.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import kubernetes_validate

from tests.kubernetes.cluster import Cluster
from tests.kubernetes.store import timestamp

Object = dict[str, Any]
VERSION = "1.34"
NODE = "gpu-node-1"
NOT_FOUND = 'failed to pull and unpack image "{image}": failed to resolve reference "{image}": {image}: not found'  # containerd's
UNAUTHORIZED = (
    'failed to pull and unpack image "{image}": failed to resolve reference "{image}": failed to authorize: failed to fetch '
    "anonymous token: unexpected status from GET request: 401 Unauthorized"
)
NO_GPU = (
    "0/3 nodes are available: 1 node(s) had untolerated taint {node-role.kubernetes.io/control-plane: }, 2 Insufficient nvidia.com/gpu. "
    "no new claims to deallocate, preemption: 0/3 nodes are available: 1 Preemption is not helpful for scheduling, 2 No preemption victims "
    "found for incoming pod."
)
LOW = (
    "The node was low on resource: ephemeral-storage. Threshold quantity: 10399384402, available: 9923088Ki. Container engine was using "
    "41210Mi, request is 0, has larger consumption of ephemeral-storage. "
)


def checked(made: Object) -> Object:
    """As the published schemas have it. Errors: kubernetes_validate's."""
    kubernetes_validate.validate(made, VERSION, strict=True)
    return made


def at(ago_s: float = 0.0) -> str:
    when = datetime.now(UTC).timestamp() - ago_s
    return datetime.fromtimestamp(when, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class Kubelet:
    """All of a cluster's nodes, and who puts pods on them."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.ports: dict[str, int] = {}
        """Where the engine of a pod really listens, by the pod's name: all of them are 127.0.0.1 here."""
        self._events = 0

    # The scheduler, and what brings nodes.

    def unschedulable(self, pod: Object, message: str = NO_GPU, *, ago_s: float = 0.0) -> None:
        self._set(pod, {"phase": "Pending"}, PodScheduled=("False", "Unschedulable", message, ago_s))
        self.event(pod, "FailedScheduling", message, source="default-scheduler")

    def gate(self, pod: Object) -> None:
        """As Kueue holds pods, and not Jobs."""
        self._set(
            pod,
            {},
            PodScheduled=("False", "SchedulingGated", "Scheduling is blocked due to non-empty scheduling gates", 0),
        )

    def scale_up(self, pod: Object) -> None:
        message = "pod triggered scale-up: [{https://content.googleapis.com/compute/v1/gpu-pool 0->1 (max: 8)}]"
        self.event(pod, "TriggeredScaleUp", message, source="cluster-autoscaler", kind="Normal")

    def nominate(self, pod: Object) -> None:
        message = "Pod should schedule on: nodeclaim/gpu-7vz2k"
        self.event(pod, "Nominated", message, source="karpenter", kind="Normal")

    def schedule(self, pod: Object) -> None:
        self.cluster.patch(*_of(pod), {"spec": {"nodeName": NODE}})
        waiting = {
            "waiting": {"reason": "PodInitializing" if pod["spec"].get("initContainers") else "ContainerCreating"}
        }
        status = {name: self._each(pod, kind, waiting) for name, kind in KINDS.items() if pod["spec"].get(kind)}
        status |= {"phase": "Pending", "hostIP": "10.0.0.7", "startTime": timestamp()}
        self._set(
            pod,
            status,
            PodScheduled=("True",),
            Ready=("False", "ContainersNotReady", "containers with unready status: [engine]", 0),
        )

    # Containers.

    def downloading(self, pod: Object) -> None:
        self.schedule(pod)
        self.container(pod, "download", {"running": {"startedAt": timestamp()}})

    def start(self, pod: Object) -> None:
        """All containers run, and none is ready."""
        self.schedule(pod)
        for kind in KINDS.values():
            for container in pod["spec"].get(kind, ()):
                state: Object = {"running": {"startedAt": timestamp()}}
                if kind == "initContainers" and container.get("restartPolicy") != "Always":
                    state = {"terminated": self._end(0, "Completed")}
                self.container(pod, container["name"], state)
        self._set(
            pod, {"phase": "Running", "podIP": "127.0.0.1", "podIPs": [{"ip": "127.0.0.1"}]}, Initialized=("True",)
        )

    def ready(self, pod: Object, url: str = "") -> None:
        """The engine, which really listens at `url`, passes its probe."""
        if url:
            self.ports[pod["metadata"]["name"]] = int(url.rpartition(":")[2])
        if self._now(pod).get("status", {}).get("phase") != "Running":
            self.start(pod)
        for kind in KINDS.values():
            for container in pod["spec"].get(kind, ()):
                self.container(pod, container["name"], None, ready=True)
        self._set(pod, {}, Ready=("True",), ContainersReady=("True",))

    def unready(self, pod: Object) -> None:
        self.container(pod, "engine", None, ready=False)
        self._set(pod, {}, Ready=("False", "ContainersNotReady", "containers with unready status: [engine]", 0))

    def pull_fails(self, pod: Object, container: str = "engine", said: str = NOT_FOUND) -> None:
        """The first try."""
        image = self._container(pod, container)["image"]
        message = said.format(image=image)
        self._placed(pod)
        self.event(pod, "Failed", f'Failed to pull image "{image}": {message}', source="kubelet")
        self.container(pod, container, {"waiting": {"reason": "ErrImagePull", "message": message}})

    def pull_backs_off(
        self, pod: Object, container: str = "engine", said: str = NOT_FOUND, *, old: bool = False
    ) -> None:
        """From the first failure on. `old`: before Kubernetes 1.32 it did not repeat why."""
        image = self._container(pod, container)["image"]
        why = "" if old else f": ErrImagePull: {said.format(image=image)}"
        self._placed(pod)
        message = f'Back-off pulling image "{image}"{why}'
        self.container(pod, container, {"waiting": {"reason": "ImagePullBackOff", "message": message}})

    def misconfigured(self, pod: Object, container: str = "engine", message: str = 'secret "hf" not found') -> None:
        self._placed(pod)
        self.container(pod, container, {"waiting": {"reason": "CreateContainerConfigError", "message": message}})

    def waits(self, pod: Object, container: str, reason: str, message: str) -> None:
        self._placed(pod)
        self.container(pod, container, {"waiting": {"reason": reason, "message": message}})

    def crash_loops(
        self,
        pod: Object,
        container: str = "engine",
        *,
        code: int = 1,
        reason: str = "Error",
        message: str = "",
        restarts: int = 2,
    ) -> None:
        self._placed(pod)
        name = pod["metadata"]["name"]
        said = f"back-off 20s restarting failed container={container} pod={name}_{pod['metadata']['namespace']}({pod['metadata']['uid']})"
        waiting = {"waiting": {"reason": "CrashLoopBackOff", "message": said}}
        self.container(pod, container, waiting, last=self._end(code, reason, message), restarts=restarts)

    def restarted(self, pod: Object, *, code: int = 137, reason: str = "OOMKilled", message: str = "") -> None:
        """The engine ended, and runs again, not ready."""
        if self._now(pod).get("status", {}).get("phase") != "Running":
            self.start(pod)
        running = {"running": {"startedAt": timestamp()}}
        self.container(pod, "engine", running, last=self._end(code, reason, message), restarts=1, ready=False)
        self._set(pod, {}, Ready=("False", "ContainersNotReady", "containers with unready status: [engine]", 0))

    # Ends.

    def evict(self, pod: Object, message: str = LOW) -> None:
        """By its node, for a lack of something. The pod stays, as a tombstone."""
        disruption = ("True", "TerminationByKubelet", message, 0)
        ended = {"terminated": self._end(137, "Error")}
        self._placed(pod)
        for kind in KINDS.values():
            for container in pod["spec"].get(kind, ()):
                self.container(pod, container["name"], ended, ready=False)
        status = {"phase": "Failed", "reason": "Evicted", "message": message}
        self._set(pod, status, DisruptionTarget=disruption, Ready=("False", "PodFailed", "", 0))

    def disrupt(self, pod: Object, *, by: str = "EvictionByEvictionAPI") -> None:
        """A drain or a preemption begins: its containers are told to end."""
        self._set(pod, {}, DisruptionTarget=("True", by, "Eviction API: evicting", 0), Ready=("False", "", "", 0))
        self.cluster.delete(*_of(pod))

    def exit(self, pod: Object, code: int, message: str = "", *, engine: Object | None = None) -> None:
        """The worker of a Job ends, and the sidecar beside it. A pod that was being deleted is gone then."""
        ended = {"terminated": self._end(code, "Completed" if code == 0 else "Error", message)}
        self.container(pod, "engine", {"terminated": engine or self._end(143, "Error")}, ready=False)
        self.container(pod, "worker", ended, ready=False)
        self._set(
            pod,
            {"phase": "Failed" if code else "Succeeded"},
            Ready=("False", "PodFailed" if code else "PodCompleted", "", 0),
        )

    def gone(self, pod: Object) -> None:
        self.cluster.remove(*_of(pod))

    # How.

    def event(self, about: Object, reason: str, message: str, *, source: str, kind: str = "Warning") -> None:
        metadata = about["metadata"]
        self._events += 1
        now = timestamp()
        made = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": f"{metadata['name'][:200]}.{self._events:016x}", "namespace": metadata["namespace"]},
            "involvedObject": {
                "apiVersion": about.get("apiVersion", "v1"),
                "kind": about.get("kind", "Pod"),
                "name": metadata["name"],
                "namespace": metadata["namespace"],
                "uid": metadata["uid"],
            },
            "reason": reason,
            "message": message,
            "type": kind,
            "source": {"component": source},
            "reportingComponent": source,
            "reportingInstance": "",
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": 1,
            "eventTime": None,
        }
        checked({name: part for name, part in made.items() if part is not None})
        self.cluster.put("events", made)

    def container(
        self,
        pod: Object,
        name: str,
        state: Object | None,
        *,
        last: Object | None = None,
        restarts: int | None = None,
        ready: bool | None = None,
    ) -> None:
        status = self._now(pod).get("status", {})
        for kind in KINDS:
            for one in status.get(kind, ()):
                if one["name"] == name:
                    one["state"] = one["state"] if state is None else state
                    one["lastState"] = one["lastState"] if last is None else {"terminated": last}
                    one["restartCount"] = one["restartCount"] if restarts is None else restarts
                    is_running = "running" in one["state"]
                    one["started"], one["ready"] = (
                        is_running,
                        is_running and bool(one["ready"] if ready is None else ready),
                    )
        self._set(pod, status)

    def _placed(self, pod: Object) -> None:
        if "startTime" not in self._now(pod).get("status", {}):
            self.schedule(pod)

    def _each(self, pod: Object, kind: str, state: Object) -> list[Object]:
        plain: Object = {"imageID": "", "ready": False, "started": False, "restartCount": 0, "lastState": {}}
        return [
            {"name": one["name"], "image": one["image"], "state": state, **plain} for one in pod["spec"].get(kind, ())
        ]

    def _end(self, code: int, reason: str, message: str = "") -> Object:
        end = {
            "exitCode": code,
            "reason": reason,
            "startedAt": timestamp(),
            "finishedAt": timestamp(),
            "containerID": "containerd://0",
        }
        return {**end, "message": message} if message else end

    def _container(self, pod: Object, name: str) -> Object:
        return next(one for kind in KINDS.values() for one in pod["spec"].get(kind, ()) if one["name"] == name)

    def _now(self, pod: Object) -> Object:
        found = self.cluster.get(*_of(pod))
        assert found is not None, "the pod is gone"
        return found

    def _set(self, pod: Object, status: Object, **conditions: tuple[Any, ...]) -> None:
        """`conditions`: status, reason, message, seconds since."""
        now = self._now(pod)
        kept = {one["type"]: one for one in now.get("status", {}).get("conditions", ())}
        for kind, given in conditions.items():
            state, reason, message, ago_s = (*given, *("", "", 0)[len(given) - 1 :])
            before = kept.get(kind, {})
            since = before["lastTransitionTime"] if before.get("status") == state else at(ago_s)
            made = {"type": kind, "status": state, "reason": reason, "message": message}
            kept[kind] = {**{name: text for name, text in made.items() if text}, "lastTransitionTime": since}
        after = {**now.get("status", {}), **status, "conditions": list(kept.values())}
        checked({**now, "status": after})
        self.cluster.patch(*_of(pod), {"status": after})


# Where the statuses of which containers stand.
KINDS = {"initContainerStatuses": "initContainers", "containerStatuses": "containers"}


def _of(pod: Object) -> tuple[str, str, str]:
    return "pods", pod["metadata"]["namespace"], pod["metadata"]["name"]
