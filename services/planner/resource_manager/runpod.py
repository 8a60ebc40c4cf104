"""Pods of RunPod: one pod is one machine, one offer is a number of GPUs of one type in one place."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import ClassVar

import structlog

from services.kit.settings import Settings
from services.planner.domain import Machine, Offer
from services.planner.resource_manager import gpus
from services.planner.resource_manager.base import (
    NAME_PREFIX,
    Gone,
    Order,
    Pending,
    Probe,
    ProviderError,
    Ready,
)
from services.planner.resource_manager.health import speaks_ssh
from services.planner.resource_manager.runpod_client import RunPodClient, unavailable
from services.planner.resource_manager.runpod_pod import HTTP_PORT, PUBLIC_KEY, create_request
from services.planner.resource_manager.runpod_ready import Attested, attested
from services.planner.resource_manager.runpod_wire import (
    Gpu,
    Listed,
    Pod,
    checked,
    decode_gpus,
    decode_pod,
    decode_pods,
    published,
    read,
)

CATALOG_S = 5.0
# Machines have at most this many GPUs, whatever an answer says.
MOST_GPUS = 16
# How long a pod whose sshd answers may take to show its host key in the log, before we go on without.
HOST_KEY_S = 45.0
MOST_PAGES = 200
USER = "root"

log = structlog.get_logger(__name__)


class RunPod:
    name: ClassVar[str] = "runpod"
    target: ClassVar[str] = "RunPod"

    def __init__(self, settings: Settings) -> None:
        """Error: ValueError naming the variable that is missing or wrong."""
        self._client = RunPodClient.from_settings(settings.runpod_base_url, settings.runpod_api_key)
        self._public_key = _public_key(settings.runpod_ssh_public_key)
        self._image = settings.runpod_image
        self._cloud = settings.runpod_cloud_type
        self._data_centers = [name for part in settings.runpod_data_centers.split(",") if (name := part.strip())]
        self._offers: list[Offer] = []
        self._offers_until = 0.0
        self._reading = asyncio.Lock()
        # When the sshd of a pod that shows no host key answered first.
        self._answered: dict[str, float] = {}

    async def catalog(self) -> list[Offer]:
        async with self._reading:
            if time.monotonic() >= self._offers_until:
                query = {"include": "AVAILABILITY", "product": "POD", "cloud": self._cloud}
                answer = await self._client.call("GET", "catalog", "gpus", query=query)
                listed = read(decode_gpus, answer.body).gpus
                self._offers = [offer for gpu in listed for offer in _offers(gpu, self._cloud, self._data_centers)]
                self._offers_until = time.monotonic() + CATALOG_S
            return list(self._offers)

    async def launch(self, order: Order) -> Machine:
        if order.offer.gpus < 1:
            raise ProviderError("InvalidRequest", "RunPod pods without a GPU are not supported", retryable=False)
        body = create_request(order, image=order.image or self._image, cloud=self._cloud, public_key=self._public_key)
        answer = await self._client.call("POST", "pods", body=body)
        # From here on a pod exists, whatever the answer is worth.
        pod = checked(read(decode_pod, answer.body, ambiguous=True), ambiguous=True)
        log.info("pod made", pod=pod.id, machine=order.name, gpu=order.offer.instance_type, gpus=order.offer.gpus)
        return _machine(pod, order.name)

    async def probe(self, machine: Machine) -> Probe:
        if not machine.id:
            return Pending("asked for, and not yet known", machine)
        pod = await self._pod(machine.id)
        if pod is None or pod.status == "TERMINATED":
            return Gone("Lost", f"pod {machine.id} does not exist any more")
        if pod.status in ("ERROR", "EXITED"):
            return Gone("Unhealthy", f"pod {machine.id} ended: {pod.status}")
        waiting = replace(machine, state=pod.status)
        address = published(pod) if pod.status == "RUNNING" else None
        if address is None:
            return Pending(f"{pod.status}, without an address", waiting)
        host, port = address
        if not await speaks_ssh(host, port):
            return Pending(f"no SSH server answers on {host}:{port}", waiting)
        ready = replace(waiting, host=host, ssh_port=port, ssh_user=USER, http_base_url=_proxy_url(pod.id))
        if (machine.host, machine.ssh_port) == (host, port):  # it was ready before, and nothing moved since
            return Ready(ready)
        return await self._identify(waiting, ready)

    async def release(self, machine: Machine) -> bool:
        """Without an id: every pod of that name that RunPod lists now, which may lag behind."""
        ids = [machine.id] if machine.id else [m.id for m in await self.list() if m.name == machine.name]
        for pod_id in ids:
            await self._client.call("DELETE", "pods", pod_id, missing_ok=True)
            self._answered.pop(pod_id, None)
        pods = [await self._pod(pod_id) for pod_id in ids]
        return all(pod is None or pod.status == "TERMINATED" for pod in pods)

    async def list(self) -> list[Machine]:
        machines: dict[str, Machine] = {}
        cursors: set[str] = set()
        query: dict[str, str] = {}
        while len(cursors) < MOST_PAGES:
            page = read(decode_pods, (await self._client.call("GET", "pods", query=query)).body)
            for pod in page.pods:
                if pod.name.startswith(NAME_PREFIX) and pod.status != "TERMINATED":
                    machines[checked(pod).id] = _machine(pod, pod.name)
            if page.pagination is None or not page.pagination.has_next:
                return list(machines.values())
            cursor = page.pagination.next_cursor
            if not cursor or cursor in cursors:
                break
            cursors.add(cursor)
            query = {"cursor": cursor}
        raise unavailable("RunPod's list of pods does not end")

    async def close(self) -> None:
        await self._client.close()

    async def _pod(self, pod_id: str) -> Pod | None:
        answer = await self._client.call("GET", "pods", pod_id, missing_ok=True)
        return None if answer.status == 404 else read(decode_pod, answer.body)

    async def _identify(self, waiting: Machine, ready: Machine) -> Probe:
        """Read the host key from the log; do without, and say so, if it does not come."""
        answered = self._answered.setdefault(ready.id, time.monotonic())
        try:
            said = await attested(self._client, ready.id, ready.name)
        except ProviderError as error:
            log.warning("a pod's log cannot be read", pod=ready.id, code=error.code, why=error.message)
            said = Attested()
        if said.cuda not in ("", "0", "unknown"):
            return Gone("Unhealthy", f"CUDA does not start on pod {ready.id}: error {said.cuda}")
        if not said.host_key:
            if time.monotonic() < answered + HOST_KEY_S:
                return Pending("its host key is not in its log yet", waiting)
            if not ready.host_key:
                log.warning("no host key in the pod's log: the first one that is seen has to be trusted", pod=ready.id)
        self._answered.pop(ready.id, None)
        # A key that it said before is still expected: a pod that moved keeps its own.
        return Ready(replace(ready, host_key=said.host_key or ready.host_key))


def _offers(gpu: Gpu, cloud: str, data_centers: Sequence[str]) -> Iterator[Offer]:
    price, most = gpu.price.of(cloud), int(gpu.max_count.of(cloud))
    if price <= 0:  # not in this cloud
        return
    accelerator = _accelerator(gpu)
    for count in range(1, min(most, MOST_GPUS) + 1):
        for region, available in _places(gpu, data_centers):
            yield Offer(
                provider=RunPod.name,
                region=region,
                instance_type=gpu.id,
                accelerator=accelerator,
                memory_gb=gpu.memory,
                gpus=count,
                hourly_price_usd=round(price * count, 6),
                available=available,
            )


def _accelerator(gpu: Gpu) -> str:
    """Its canonical name. The catalog's memory tells two cards apart where the name does not."""
    card = gpus.offered(gpu.id)
    if card.known and card.memory_gb is None:
        card = replace(card, memory_gb=gpu.memory)
    return gpus.canonical(card)


def _places(gpu: Gpu, data_centers: Sequence[str]) -> list[tuple[str, bool]]:
    """The operator's data centers in their order; or anywhere, and then each that has it in stock, for who asks for one."""
    stocked = [center.id for center in gpu.data_centers if center.availability != "NONE"]
    if data_centers:
        return [(name, name in stocked) for name in data_centers]
    return [("", gpu.availability != "NONE"), *((name, True) for name in stocked)]


def _public_key(value: str) -> str:
    key = value.strip()
    if not key:
        raise ValueError("RUNPOD_SSH_PUBLIC_KEY is not set")
    if not PUBLIC_KEY.fullmatch(key):
        raise ValueError("RUNPOD_SSH_PUBLIC_KEY is not one line with an SSH public key")
    return key


def _machine(pod: Listed, name: str) -> Machine:
    return Machine(id=pod.id, name=name, state=pod.status)


def _proxy_url(pod_id: str) -> str:
    """Where RunPod would show port 8000 to everyone. It is not published: see runpod_pod.create_request."""
    return f"https://{pod_id}-{HTTP_PORT}.proxy.runpod.net"
