"""The target Kubernetes: a Deployment of engines, and a Service over them that goes with it."""

from __future__ import annotations

from typing import Any

from services.runner.runtimes.kubernetes import pod
from services.runner.runtimes.kubernetes.plan import PORT, Plan

COMPONENT = "engine"
# A new Deployment reports no progress for this long after its engine should have been ready: by then the runner gave up.
PROGRESS_MARGIN_S = 60


def render_deployment(plan: Plan) -> dict[str, Any]:
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": pod.metadata(plan, COMPONENT),
        "spec": {
            "replicas": plan.replicas,
            "revisionHistoryLimit": 0,
            "progressDeadlineSeconds": plan.ready_timeout_s + PROGRESS_MARGIN_S,
            # Nothing is ever rolled out; a second pod beside the first would take GPUs that nobody has.
            "strategy": {"type": "Recreate"},
            "selector": {"matchLabels": {**plan.selector, pod.COMPONENT_LABEL: COMPONENT}},
            "template": {
                "metadata": pod.pod_metadata(plan, COMPONENT),
                "spec": {
                    **pod.pod_spec(plan),
                    "restartPolicy": "Always",
                    **({"initContainers": pod.downloader(plan)} if plan.download else {}),
                    "containers": [{**pod.engine(plan), **pod.probes(plan)}],
                },
            },
        },
    }


def render_service(plan: Plan, owner: dict[str, Any]) -> dict[str, Any]:
    """`owner`: the Deployment as the API returned it. Without an address of its own: requests go to the pods."""
    metadata = pod.metadata(plan, COMPONENT)
    metadata["ownerReferences"] = [
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "name": owner["metadata"]["name"],
            "uid": owner["metadata"]["uid"],
            "controller": True,
            # True would take rights on the finalizers of Deployments, and nothing waits for a Service.
            "blockOwnerDeletion": False,
        }
    ]
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata,
        "spec": {
            "type": "ClusterIP",
            "clusterIP": "None",
            "selector": {**plan.selector, pod.COMPONENT_LABEL: COMPONENT},
            "ports": [{"name": "http", "port": PORT, "targetPort": "http", "protocol": "TCP"}],
        },
    }
