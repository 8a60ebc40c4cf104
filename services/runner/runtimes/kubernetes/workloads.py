"""The two targets: engines in a Deployment that runners send to, and a Job that brings its own runner along."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from ipaddress import IPv6Address, ip_address
from typing import ClassVar

from services.kit.clock import monotonic
from services.kit.kubernetes.errors import AlreadyThere
from services.kit.kubernetes.requests import Object
from services.kit.spec.kubernetes import KUBERNETES, KUBERNETES_JOB
from services.runner.runtimes.base import Endpoint, Gone, Handle, HandOver, Pending, Probe, Ready, RuntimeFailed, Spec
from services.runner.runtimes.kubernetes import trouble
from services.runner.runtimes.kubernetes.deployment import render_deployment, render_service
from services.runner.runtimes.kubernetes.follow import SERVICE_NAME
from services.runner.runtimes.kubernetes.job import QUEUE_LABEL, render_job
from services.runner.runtimes.kubernetes.plan import PORT, Plan
from services.runner.runtimes.kubernetes.runtime import GONE_S, OnKubernetes
from services.runner.runtimes.kubernetes.said import said

SLICES = "endpointslices.discovery.k8s.io"


class Kubernetes(OnKubernetes):
    """Pods that are ready are the endpoints, as the cluster's EndpointSlices name them."""

    target: ClassVar[str] = KUBERNETES
    resource: ClassVar[str] = "deployments.apps"

    def render(self, plan: Plan) -> Object:
        return render_deployment(plan)

    async def complete(self, plan: Plan, workload: Object) -> None:
        service = render_service(plan, workload)
        give_up_at = monotonic() + self._own.teardown_s
        while True:
            try:
                await self.api.create("services", plan.namespace, service)
                return
            except AlreadyThere:
                found = await self.api.read("services", plan.namespace, plan.name)
            if found is not None and _is_owned(found, workload):
                return
            # That of a Deployment that is gone goes by itself, once the garbage collector comes by.
            if monotonic() >= give_up_at:
                raise RuntimeFailed(f"the name of the Service {plan.name} is taken", retryable=True)
            await asyncio.sleep(GONE_S)

    async def state(self, spec: Spec, handle: Handle, workload: Object) -> Probe:
        path = spec.template.engine.health_endpoint if spec.template else None
        slices = await self.follower.items(SLICES, handle["namespace"], SERVICE_NAME, handle["name"])
        session = self.session(handle)
        if endpoints := endpoints_of(slices, path):
            session.silent_since = None
            if handle["ready"]:
                return Ready(endpoints)
            return Ready(endpoints, handle={**handle, "ready": True})
        waiting = await self.waiting(handle, workload)
        if not handle["ready"]:
            return waiting
        # It was ready before: a pod that was evicted has a successor, which loads the model again.
        session.silent_since = monotonic() if session.silent_since is None else session.silent_since
        if isinstance(waiting, Gone):
            return replace(waiting, retryable=True)
        limit = float(spec.template.engine.ready_timeout_seconds) if spec.template else 0.0
        if isinstance(waiting, Pending) and not waiting.counts:
            limit = max(limit, self._own.start_timeout_s)
        if limit and monotonic() - session.silent_since >= limit:
            detail = waiting.detail if isinstance(waiting, Pending) else ""
            return await self.gone(handle, f"no pod was ready for {limit:g} s: {detail}", retryable=True)
        return replace(waiting, unreachable=True) if isinstance(waiting, Pending) else waiting


class KubernetesJob(OnKubernetes):
    """Looks after a Job until its engine is ready; then its own runner leases the batch, and its exit code says how it went."""

    target: ClassVar[str] = KUBERNETES_JOB
    resource: ClassVar[str] = "jobs.batch"

    def render(self, plan: Plan) -> Object:
        return render_job(plan)

    def is_over(self, workload: Object) -> bool:
        return bool(_true(workload, "Failed") or _true(workload, "Complete"))

    async def state(self, spec: Spec, handle: Handle, workload: Object) -> Probe:
        if failed := _true(workload, "Failed") or _true(workload, "FailureTarget"):
            return await self._failed(handle, failed)
        if _true(workload, "Complete"):
            return Gone("the worker of its Job ended before the batch did")
        rest_s = self._own.hand_over_s
        if (workload.get("spec") or {}).get("suspend"):
            queue = (workload["metadata"].get("labels") or {}).get(QUEUE_LABEL)
            why = f"its Job waits for its turn in the queue {queue}" if queue else "its Job is suspended"
            return HandOver(why, rest_s, queued=True)
        for pod in await self.pods(handle):
            is_alive = (pod.get("status") or {}).get("phase") == "Running" and "deletionTimestamp" not in pod[
                "metadata"
            ]
            worker, engine = (trouble.container_state(pod, name) for name in ("worker", "engine"))
            if is_alive and engine.get("ready") and "running" in (worker.get("state") or {}):
                return HandOver("the engine of its Job is ready", rest_s)
        return await self.waiting(handle, workload)

    async def _failed(self, handle: Handle, failed: Object) -> Gone:
        """The Job's own reason, what the worker wrote at its end, and how the engine ended."""
        pods = await self.pods(handle)
        why = f"its Job failed: {said(failed)}"
        worker_ended = trouble.ended_at(pods, "worker")
        for container, before in (("worker", ""), ("engine", worker_ended), ("download", "")):
            if words := trouble.last_words(pods, container, before=before):
                why += f"; the {container}: {words}"
        return await self.gone(handle, why)


def endpoints_of(slices: list[Object], health_path: str | None) -> tuple[Endpoint, ...]:
    """Where ready pods are, each once, in order. A pod that ends is not ready, whatever its probe says."""
    found = set()
    for one in slices:
        ports = [port.get("port") for port in one.get("ports") or () if port.get("port")]
        for endpoint in one.get("endpoints") or ():
            conditions = endpoint.get("conditions") or {}
            # Absent means ready, as the API has it.
            if conditions.get("ready") is False or conditions.get("terminating"):
                continue
            for address in (endpoint.get("addresses") or ())[:1]:
                found.add((str(address), int(ports[0]) if ports else PORT))
    return tuple(
        Endpoint(base_url=f"http://{_host(address)}:{port}", health_path=health_path) for address, port in sorted(found)
    )


def _host(address: str) -> str:
    try:
        return f"[{address}]" if isinstance(ip_address(address), IPv6Address) else address
    except ValueError:
        return address  # of an EndpointSlice with names


def _is_owned(found: Object, owner: Object) -> bool:
    references = found["metadata"].get("ownerReferences") or ()
    return any(one.get("uid") == owner["metadata"]["uid"] for one in references)


def _true(workload: Object, kind: str) -> Object | None:
    conditions = (workload.get("status") or {}).get("conditions") or ()
    return next((one for one in conditions if one.get("type") == kind and one.get("status") == "True"), None)
