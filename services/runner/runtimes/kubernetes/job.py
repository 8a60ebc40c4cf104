"""The target KubernetesJob: a Job whose pod has the engine as a native sidecar and our runner, for one batch, as its work."""

from __future__ import annotations

from typing import Any

from services.runner.runtimes.kubernetes import pod
from services.runner.runtimes.kubernetes.codes import DOWNLOAD_CODES, WORKER_CODES
from services.runner.runtimes.kubernetes.plan import Plan

COMPONENT = "worker"
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"


def render_job(plan: Plan) -> dict[str, Any]:
    metadata = pod.metadata(plan, COMPONENT)
    if plan.options.queue_name is not None:
        # Kueue suspends it by itself.
        metadata["labels"][QUEUE_LABEL] = plan.options.queue_name
    spec: dict[str, Any] = {
        "parallelism": 1,
        "completions": 1,
        "completionMode": "NonIndexed",
        "backoffLimit": plan.backoff_limit,
        "ttlSecondsAfterFinished": plan.ttl_s,
        # Never two pods at once, each with its GPUs: the next one starts when the last one has ended.
        "podReplacementPolicy": "Failed",
        "podFailurePolicy": {"rules": _rules(plan)},
        "template": {"metadata": pod.pod_metadata(plan, COMPONENT), "spec": _pod_spec(plan)},
    }
    if plan.window_s is not None:
        # The worker ends the batch at the end of its window; this ends a worker that does not.
        spec["activeDeadlineSeconds"] = plan.window_s + plan.grace_s
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": spec}


def _pod_spec(plan: Plan) -> dict[str, Any]:
    # No startup probe: with one, the worker would not start before the engine is ready, and an engine that never is would
    # be started again for ever. The worker waits for it, up to a deadline, and says with its exit code what it saw.
    engine = {**pod.engine(plan), "restartPolicy": "Always", "readinessProbe": pod.readiness(plan)}
    made = pod.pod_spec(plan)
    made["volumes"] = [*made["volumes"], {"name": "worker", "emptyDir": {}}, {"name": "worker-tmp", "emptyDir": {}}]
    return {
        **made,
        "restartPolicy": "Never",
        "initContainers": [*pod.downloader(plan), engine],
        "containers": [pod.worker(plan)],
    }


def _rules(plan: Plan) -> list[dict[str, Any]]:
    """The first one that fits counts: a disruption is no failure, whatever the containers exited with."""
    rules: list[dict[str, Any]] = [
        {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
        _fail("worker", WORKER_CODES),
    ]
    if plan.download is not None:
        rules.append(_fail("download", DOWNLOAD_CODES))
    return rules


def _fail(container: str, codes: tuple[int, ...]) -> dict[str, Any]:
    return {
        "action": "FailJob",
        "onExitCodes": {"containerName": container, "operator": "In", "values": list(codes)},
    }
