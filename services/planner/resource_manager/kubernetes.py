"""A namespace of a Kubernetes cluster. What is leased is a part of its quota: the pods are made by the runtime of a batch."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from decimal import Decimal, InvalidOperation
from typing import Any, ClassVar

import aiohttp

from services.kit.kubernetes.connect import Connect, connect
from services.kit.kubernetes.errors import NoCredentials
from services.kit.settings import Settings
from services.planner.domain import Machine, Offer, ProvisionSpec
from services.planner.resource_manager.base import Gone, Order, Pending, Probe, ProviderError, Ready
from services.planner.resource_manager.choice import group_of

TIMEOUT_S = 10.0
# What a quota may bound, per kind of offer. Extended resources can only be bounded by their requests.
GPUS = "requests.nvidia.com/gpu"
PODS = ("pods", "count/pods")
# Where no quota bounds it: as much as one provision may ask for, and this many of them.
UNBOUNDED = 100_000
SUFFIXES = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30}


def _kubernetes() -> Any:
    from kubernetes.aio import client

    return client


@dataclass(frozen=True)
class Room:
    """The tightest quota of a resource: how much there is, and how much pods use of it now."""

    hard: int = UNBOUNDED
    used: int = 0

    def left(self) -> int:
        return self.hard - self.used


class Kubernetes:
    """The cluster itself refuses pods beyond its quota; what is counted here spares a job the wait. Nothing of it can be leaked."""

    name: ClassVar[str] = "kubernetes"
    target: ClassVar[str] = "Kubernetes"

    def __init__(self, settings: Settings, connect: Connect = connect) -> None:
        self.connect = connect
        self._engines = settings.kubernetes.namespace
        self.client: Any = None
        self._connecting = asyncio.Lock()  # two calls at once would make two clients, and one of them is never closed
        self.namespace = ""
        self._hard: dict[str, int] = {}

    async def catalog(self) -> list[Offer]:
        """GPUs of whatever kind the nodes have (a pod's node selector says which), and places for pods without."""
        rooms = await self._rooms()
        gpus, pods = rooms[GPUS], rooms[PODS[0]]
        return [
            Offer(provider=self.name, region=self.namespace, instance_type="pod", available=pods.left() > 0),
            Offer(
                provider=self.name,
                region=self.namespace,
                instance_type="gpu",
                gpus=gpus.hard,
                available=gpus.left() > 0 and pods.left() > 0,
            ),
        ]

    def narrowed(self, spec: ProvisionSpec, offer: Offer) -> Offer | None:
        wanted = group_of(spec).gpus_per_replica
        if bool(wanted) != (offer.instance_type == "gpu") or wanted > offer.gpus:
            return None
        return replace(offer, gpus=wanted)

    def capacity(self, offer: Offer) -> int:
        return self._hard.get(GPUS if offer.instance_type == "gpu" else PODS[0], 0)

    async def launch(self, order: Order) -> Machine:
        """Looks once more whether the quota has room beside the pods that are there."""
        rooms = await self._rooms()
        if rooms[PODS[0]].left() < 1 or rooms[GPUS].left() < order.offer.gpus:
            message = f"the quota of the namespace {self.namespace} has no room for {order.offer.gpus} GPUs"
            raise ProviderError("NoCapacity", message, retryable=True)
        return Machine(id=f"{self.namespace}/{order.name}", name=order.name, state="leased")

    async def probe(self, machine: Machine) -> Probe:
        try:
            await self._check_namespace()
        except ProviderError as error:
            if error.code == "InvalidRequest":
                return Gone("Lost", error.message)
            if error.code == "NoCapacity":
                return Pending(error.message, machine)
            raise
        return Ready(replace(machine, state="leased"))

    async def release(self, machine: Machine) -> bool:
        return True

    async def list(self) -> list[Machine]:
        return []

    async def close(self) -> None:
        client, self.client = self.client, None
        if client is not None:
            await client.close()

    async def _rooms(self) -> dict[str, Room]:
        await self._check_namespace()
        found = await self._ask("resourcequotas", lambda api: api.list_namespaced_resource_quota)
        statuses = [item.status for item in found.items or () if item.status is not None]
        rooms = {GPUS: tightest(statuses, (GPUS,)), PODS[0]: tightest(statuses, PODS)}
        self._hard = {name: room.hard for name, room in rooms.items()}
        return rooms

    async def _check_namespace(self) -> None:
        """Error: ProviderError InvalidRequest if there is none, NoCapacity if it is on its way out."""
        namespace = await self._ask("namespaces", lambda api: api.read_namespace)
        phase = namespace.status.phase if namespace.status else None
        if phase == "Terminating":
            raise ProviderError("NoCapacity", f"the namespace {self.namespace} is being deleted", retryable=False)

    async def _ask(self, what: str, method: Callable[[Any], Any]) -> Any:
        """One call about our namespace. Error: ProviderError."""
        try:
            async with asyncio.timeout(2 * TIMEOUT_S):
                async with self._connecting:
                    if self.client is None:
                        self.client, own = await self.connect()
                        self.namespace = self._engines or own
                return await self._call(what, method)
        except NoCredentials as error:
            raise ProviderError("InvalidCredential", error.message, retryable=False) from error
        except (aiohttp.ClientError, OSError) as error:  # TimeoutError is an OSError
            message = f"the Kubernetes API does not answer: {type(error).__name__}"
            raise ProviderError("ProviderUnavailable", message, retryable=True) from error

    async def _call(self, what: str, method: Callable[[Any], Any]) -> Any:
        client = _kubernetes()
        try:
            return await method(client.CoreV1Api(self.client))(self.namespace, _request_timeout=TIMEOUT_S)
        except client.ApiException as error:
            if error.status == 401:
                await self.close()  # a kubeconfig's token may be a new one by now
            raise self._as_provider_error(what, error.status) from error
        except ValueError as error:
            message = f"the Kubernetes API answers something that is no list of {what}"
            raise ProviderError("ProviderUnavailable", message, retryable=True) from error

    def _as_provider_error(self, what: str, status: int | None) -> ProviderError:
        said = f"the Kubernetes API answers {status or 'something odd'} for {what} of {self.namespace}"
        if status == 401:
            return ProviderError("InvalidCredential", f"{said}: its credentials are not accepted", retryable=False)
        if status == 403:
            needed = "`get` on namespaces and `list` on resourcequotas"
            return ProviderError("InvalidCredential", f"{said}: the service account needs {needed}", retryable=False)
        if status == 404:
            return ProviderError("InvalidRequest", f"there is no namespace {self.namespace}", retryable=False)
        return ProviderError("ProviderUnavailable", said, retryable=True)


def tightest(statuses: Iterable[Any], names: tuple[str, ...]) -> Room:
    """Of several quotas on one resource, that with the least room. A quota that was made just now has no status yet."""
    rooms = [
        Room(quantity(status.hard[name]), quantity((status.used or {}).get(name, "0")))
        for status in statuses
        for name in names
        if name in (status.hard or {})
    ]
    return min(rooms, key=Room.left, default=Room())


def quantity(text: str) -> int:
    """A Kubernetes quantity in whole units, rounded down. Error: ProviderError, if it is none."""
    number = text.rstrip("kMGKi")
    try:
        return int(Decimal(number) * SUFFIXES[text[len(number) :]])
    except (InvalidOperation, KeyError, ValueError) as error:
        message = f"the Kubernetes API says {text[:32]!r} where a quantity should be"
        raise ProviderError("ProviderUnavailable", message, retryable=True) from error
