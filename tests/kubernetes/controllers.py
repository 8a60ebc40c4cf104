"""The controllers of a cluster, in small: Deployments and Jobs make pods, Services get EndpointSlices, Kueue suspends Jobs.

They run as soon as something changes, as the real ones do, and write what those write. How pods fare, the test says (`kubelet`), or
`on_pod`, which is called with each pod that is made.

It does not have: ReplicaSets (a Deployment owns its pods itself), rollouts, pauses between pods that fail, indexes and more than one
completion, activeDeadlineSeconds and ttlSecondsAfterFinished (call `fail` and `expire`), finalizers of pods (a pod that is gone was counted if
it was seen to fail), Kueue's own objects (`admit` and `evict` are its word), schedulers, and everything that is not there in cluster.py and kubelet.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.kubernetes import quotas
from tests.kubernetes.cluster import Cluster
from tests.kubernetes.kubelet import Kubelet, checked
from tests.kubernetes.store import Failed, timestamp

Object = dict[str, Any]
QUEUE = "kueue.x-k8s.io/queue-name"
KINDS = {"deployments.apps": "Deployment", "jobs.batch": "Job", "services": "Service", "pods": "Pod"}
TYPED = {"Deployment": "apps/v1", "Job": "batch/v1", "Service": "v1", "Pod": "v1"}


class Controllers:
    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.kubelet = Kubelet(cluster)
        self.on_pod: Callable[[Object], None] = lambda pod: None
        self.on_leaving: Callable[[Object], None] = self.kubelet.gone
        """Called with each pod that is told to end."""
        self.made: list[Object] = []
        """All pods, as they were made."""
        self._counted: set[str] = set()
        self._told: set[str] = set()
        self._running = True
        cluster.store.pods_linger = True
        cluster.on_change(self._changed)

    def pods(self) -> list[Object]:
        """Those that live, the oldest first."""
        alive = [self.cluster.get("pods", pod["metadata"]["namespace"], pod["metadata"]["name"]) for pod in self.made]
        return [pod for pod in alive if pod is not None and is_alive(pod)]

    @property
    def pod(self) -> Object:
        """The only one that lives."""
        (pod,) = self.pods()
        return pod

    def stop(self) -> None:
        self._running = False

    # Kueue, and time.

    def admit(self, job: Object) -> None:
        """Kueue gives a Job its turn."""
        self.cluster.patch(*_of("jobs.batch", job), {"spec": {"suspend": False}})

    def evict(self, job: Object) -> None:
        """Kueue takes its turn away: its pods go."""
        self.cluster.patch(*_of("jobs.batch", job), {"spec": {"suspend": True}})

    def fail(self, job: Object, reason: str, message: str) -> None:
        self._end(job, "Failed", reason, message)

    def expire(self, job: Object) -> None:
        self.cluster.delete(*_of("jobs.batch", job))

    # How.

    def _changed(self, kind: str, resource: str, found: Object) -> None:
        if not self._running or resource == "events":
            return
        for pod in self.cluster.all("pods"):
            if _is_leaving(pod) and pod["metadata"]["uid"] not in self._told:
                self._told.add(pod["metadata"]["uid"])
                self.on_leaving(pod)
        for deployment in self.cluster.all("deployments.apps"):
            self._deployment(deployment)
        for job in self.cluster.all("jobs.batch"):
            self._job(job)
        for service in self.cluster.all("services"):
            self._slices(service)

    def _deployment(self, deployment: Object) -> None:
        if _is_leaving(deployment):
            return
        owned = self._owned(deployment)
        lacking = deployment["spec"]["replicas"] - sum(map(is_alive, owned))
        failure = None
        for _ in range(lacking):
            try:
                self._make(
                    deployment,
                    f"{deployment['metadata']['name']}-{'5d4f9b8c67'}-{self._suffix()}",
                    {"pod-template-hash": "5d4f9b8c67"},
                )
            except Failed as error:
                failure = error.message
                break
        self._deployment_status(deployment, failure, lacking)

    def _deployment_status(self, deployment: Object, failure: str | None, lacking: int) -> None:
        owned = [pod for pod in self._owned(deployment) if is_alive(pod)]
        ready = sum(map(is_ready, owned))
        wanted = deployment["spec"]["replicas"]
        conditions = {one["type"]: one for one in deployment.get("status", {}).get("conditions", ())}
        available = ("True", "MinimumReplicasAvailable") if ready >= wanted else ("False", "MinimumReplicasUnavailable")
        self._condition(conditions, "Available", *available, "Deployment has minimum availability.")
        if failure is not None:
            self._condition(conditions, "ReplicaFailure", "True", "FailedCreate", failure)
        elif lacking <= 0:
            conditions.pop("ReplicaFailure", None)
        counts = {"replicas": len(owned), "readyReplicas": ready, "unavailableReplicas": wanted - ready}
        self._status("deployments.apps", deployment, {**counts, "conditions": list(conditions.values())})

    def _job(self, job: Object) -> None:
        if _is_leaving(job) or condition_of(job, "Failed") or condition_of(job, "Complete") or self._is_held_back(job):
            return
        owned = self._owned(job)
        if any(self._settled(job, pod) for pod in owned):
            return
        alive = [pod for pod in owned if pod.get("status", {}).get("phase") not in ("Failed", "Succeeded")]
        if alive:
            active = sum(not _is_leaving(pod) for pod in alive)
            counts = {"active": active, "ready": sum(map(is_ready, alive)), "terminating": len(alive) - active}
            self._job_status(self._now(job), **counts)
            return
        try:
            name = f"{job['metadata']['name']}-{self._suffix()}"
            self._make(job, name, {"batch.kubernetes.io/job-name": job["metadata"]["name"]})
        except Failed as error:
            told = any(event["involvedObject"]["uid"] == job["metadata"]["uid"] for event in self.cluster.all("events"))
            if not told:
                self.kubelet.event(job, "FailedCreate", f"Error creating: {error.message}", source="job-controller")

    def _is_held_back(self, job: Object) -> bool:
        """Whether it is suspended, or has only just got its turn."""
        status, spec = job.get("status", {}), job["spec"]
        if QUEUE in job["metadata"].get("labels", {}) and "suspend" not in spec:
            self.cluster.patch(*_of("jobs.batch", job), {"spec": {"suspend": True}})
            return True
        if spec.get("suspend"):
            for pod in filter(is_alive, self._owned(job)):
                self.cluster.delete(*_of("pods", pod))
            if not condition_of(job, "Suspended"):
                self._job_status(job, Suspended=("True", "JobSuspended", "Job suspended"), startTime=None, active=0)
            return True
        if "startTime" not in status:
            resumed = {"Suspended": ("False", "JobResumed", "Job resumed")} if status.get("conditions") else {}
            self._job_status(job, startTime=timestamp(), **resumed)
            return True
        return False

    def _settled(self, job: Object, pod: Object) -> bool:
        """Whether the Job is over because of how this pod ended."""
        phase, uid = pod.get("status", {}).get("phase"), pod["metadata"]["uid"]
        if phase == "Succeeded":
            self._end(job, "Complete", "CompletionsReached", "Reached expected number of succeeded pods")
            return True
        if phase != "Failed" or uid in self._counted:
            return False
        self._counted.add(uid)
        action, message = _rule(job, pod)
        if action == "FailJob":
            self._end(job, "Failed", "PodFailurePolicy", message)
            return True
        failed = self._now(job).get("status", {}).get("failed", 0) + (action == "Count")
        self._job_status(self._now(job), failed=failed)
        if failed > job["spec"]["backoffLimit"]:
            self._end(job, "Failed", "BackoffLimitExceeded", "Job has reached the specified backoff limit")
            return True
        return False

    def _end(self, job: Object, kind: str, reason: str, message: str) -> None:
        for pod in self._owned(job):
            if is_alive(pod):
                self.cluster.delete(*_of("pods", pod))
        early = "FailureTarget" if kind == "Failed" else "SuccessCriteriaMet"
        more = {"completionTime": timestamp(), "succeeded": 1} if kind == "Complete" else {}
        conditions = {early: ("True", reason, message), kind: ("True", reason, message)}
        self._job_status(self._now(job), active=0, ready=0, **more, **conditions)

    def _now(self, job: Object) -> Object:
        found = self.cluster.get(*_of("jobs.batch", job))
        assert found is not None
        return found

    def _job_status(self, job: Object, **given: Any) -> None:
        conditions = {one["type"]: one for one in job.get("status", {}).get("conditions", ())}
        status = {name: value for name, value in given.items() if name[0].islower()}
        for kind in given.keys() - status.keys():
            self._condition(conditions, kind, *given[kind])
        after = {**job.get("status", {}), **status, "conditions": list(conditions.values())}
        self._status("jobs.batch", job, {name: part for name, part in after.items() if part not in (None, [])})

    def _slices(self, service: Object) -> None:
        """One for each port: pods behind one Service may have different ones where its port has a name."""
        if _is_leaving(service):
            return
        metadata, selector = service["metadata"], service["spec"].get("selector") or {}
        by_port: dict[int, list[Object]] = {}
        for pod in self.cluster.all("pods", metadata["namespace"]):
            labels = pod["metadata"].get("labels", {})
            is_over = pod.get("status", {}).get("phase") in ("Failed", "Succeeded")
            if selector.items() <= labels.items() and pod.get("status", {}).get("podIP") and not is_over:
                port = self.kubelet.ports.get(pod["metadata"]["name"], 8000)
                by_port.setdefault(port, []).append(_endpoint(pod))
        for one in self.cluster.all("endpointslices.discovery.k8s.io", metadata["namespace"]):
            mine = one["metadata"]["labels"].get("kubernetes.io/service-name") == metadata["name"]
            if mine and one["ports"][0]["port"] not in by_port:
                self.cluster.remove(*_of("endpointslices.discovery.k8s.io", one))
        for port, endpoints in by_port.items():
            self._slice(service, port, endpoints)

    def _slice(self, service: Object, port: int, endpoints: list[Object]) -> None:
        metadata = service["metadata"]
        ours = {
            "kubernetes.io/service-name": metadata["name"],
            "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
        }
        made = {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": f"{metadata['name']}-{port:05d}",
                "namespace": metadata["namespace"],
                "labels": {**metadata.get("labels", {}), **ours},
                "ownerReferences": [_reference(service, "Service")],
            },
            "addressType": "IPv4",
            "endpoints": endpoints,
            "ports": [{"name": "http", "port": port, "protocol": "TCP"}],
        }
        before = self.cluster.get(*_of("endpointslices.discovery.k8s.io", made))
        if before is None:
            self.cluster.put("endpointslices.discovery.k8s.io", checked(made))
        elif before["endpoints"] != endpoints:
            self.cluster.patch(*_of("endpointslices.discovery.k8s.io", made), {"endpoints": endpoints})

    def _suffix(self) -> str:
        """The next pod's. One that could not be made has its name again, so that what is said about it stays the same."""
        return f"{len(self.made) + 1:05d}"

    def _make(self, owner: Object, name: str, labels: dict[str, str]) -> None:
        """Error: Failed, if a quota says no."""
        template, metadata = owner["spec"]["template"], owner["metadata"]
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": name,
                "namespace": metadata["namespace"],
                "labels": {**template["metadata"]["labels"], **labels},
                "annotations": template["metadata"].get("annotations", {}),
                "ownerReferences": [_reference(owner, owner["kind"])],
            },
            "spec": template["spec"],
            "status": {"phase": "Pending"},
        }
        quotas.check(self.cluster.store, "pods", metadata["namespace"], pod)
        made = self.cluster.put("pods", checked(pod))
        self.made.append(made)
        self.on_pod(made)

    def _owned(self, owner: Object) -> list[Object]:
        uid, namespace = owner["metadata"]["uid"], owner["metadata"]["namespace"]
        pods = self.cluster.all("pods", namespace)
        return [pod for pod in pods if any(one["uid"] == uid for one in pod["metadata"].get("ownerReferences", ()))]

    def _condition(self, conditions: dict[str, Object], kind: str, status: str, reason: str, message: str) -> None:
        before = conditions.get(kind, {})
        since = before["lastTransitionTime"] if before.get("status") == status else timestamp()
        made = {"type": kind, "status": status, "reason": reason, "message": message, "lastTransitionTime": since}
        conditions[kind] = made

    def _status(self, resource: str, found: Object, status: Object) -> None:
        now = self.cluster.get(*_of(resource, found))
        if now is None or now.get("status", {}) == status:
            return
        checked({**now, "status": status})
        self.cluster.put(resource, {"metadata": {**now["metadata"]}, "status": status})


def is_alive(pod: Object) -> bool:
    return pod.get("status", {}).get("phase") not in ("Failed", "Succeeded") and not _is_leaving(pod)


def is_ready(pod: Object) -> bool:
    return any(
        one["type"] == "Ready" and one["status"] == "True" for one in pod.get("status", {}).get("conditions", ())
    )


def condition_of(found: Object, kind: str) -> Object | None:
    conditions = found.get("status", {}).get("conditions", ())
    return next((one for one in conditions if one["type"] == kind and one["status"] == "True"), None)


def _rule(job: Object, pod: Object) -> tuple[str, str]:
    """What the first rule of podFailurePolicy that fits says."""
    status, metadata = pod["status"], pod["metadata"]
    codes = {
        one["name"]: one["state"]["terminated"]["exitCode"]
        for kind in ("initContainerStatuses", "containerStatuses")
        for one in status.get(kind, ())
        if "terminated" in one["state"]
    }
    present = {(one["type"], one["status"]) for one in status.get("conditions", ())}
    for number, rule in enumerate(job["spec"].get("podFailurePolicy", {}).get("rules", ())):
        if any((one["type"], one.get("status", "True")) in present for one in rule.get("onPodConditions", ())):
            return rule["action"], ""
        wanted = rule.get("onExitCodes")
        code = codes.get(wanted["containerName"], 0) if wanted else 0
        if wanted and code and (code in wanted["values"]) == (wanted["operator"] == "In"):
            where = f"{metadata['namespace']}/{metadata['name']}"
            said = f"Container {wanted['containerName']} for pod {where} failed with exit code {code}"
            return rule["action"], f"{said} matching {rule['action']} rule at index {number}"
    return "Count", ""


def _endpoint(pod: Object) -> Object:
    leaving = _is_leaving(pod)
    ready = is_ready(pod)
    metadata = pod["metadata"]
    return {
        "addresses": [pod["status"]["podIP"]],
        "conditions": {"ready": ready and not leaving, "serving": ready, "terminating": leaving},
        "nodeName": pod["spec"].get("nodeName", ""),
        "targetRef": {
            "kind": "Pod",
            "name": metadata["name"],
            "namespace": metadata["namespace"],
            "uid": metadata["uid"],
        },
    }


def _reference(owner: Object, kind: str) -> Object:
    metadata = owner["metadata"]
    named = {"apiVersion": TYPED[kind], "kind": kind, "name": metadata["name"], "uid": metadata["uid"]}
    return {**named, "controller": True, "blockOwnerDeletion": True}


def _is_leaving(found: Object) -> bool:
    return "deletionTimestamp" in found["metadata"]


def _of(resource: str, found: Object) -> tuple[str, str, str]:
    return resource, found["metadata"]["namespace"], found["metadata"]["name"]
