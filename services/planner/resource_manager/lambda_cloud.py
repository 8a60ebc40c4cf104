"""Instances of Lambda Cloud: one instance is one machine, one offer is an instance type in a region."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import structlog
import yaml
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from services.kit.settings import Settings
from services.planner.domain import Machine, Offer
from services.planner.resource_manager.base import NAME_PREFIX, Gone, Order, Pending, Probe, ProviderError
from services.planner.resource_manager.cuda import health_check
from services.planner.resource_manager.gpus import Gpu, canonical, offered
from services.planner.resource_manager.health import HealthCheck
from services.planner.resource_manager.lambda_client import Clock, LambdaClient, SystemClock
from services.planner.resource_manager.lambda_wire import Instance, InstanceType, Listing, is_id

# Capacity is a hint anyway, and a look at it costs a turn of the account.
CATALOG_S = 5.0
LONGEST_NAME = 64
LONGEST_TAG = 55
LONGEST_VALUE = 128
SSH_USER = "ubuntu"
SSH_PORT = 22
TAG_PROVISION = "aibrix:provision"
TAG_HOST_KEY = "aibrix:host-key"
# Statuses in which a machine no longer runs and costs nothing. TERMINATING is none of them: see docs/providers-lambda.md.
ENDED = frozenset({"terminated", "preempted"})
TERMINATING = "terminating"
_HOST_KEY = re.compile(r"ssh-ed25519 [A-Za-z0-9+/]{68}")

log = structlog.get_logger(__name__)


class LambdaCloud:
    name: ClassVar[str] = "lambdaCloud"
    target: ClassVar[str] = "LambdaCloud"

    def __init__(
        self,
        settings: Settings,
        *,
        health: HealthCheck | None = None,
        clock: Clock | None = None,
        ssh_port: int = SSH_PORT,
    ) -> None:
        """Error: ValueError naming the variable that is missing or wrong."""
        self._clock = clock or SystemClock()
        self._client = LambdaClient(settings.lambda_cloud_base_url, settings.lambda_cloud_api_key, self._clock)
        self._ssh_key = _first_key(settings.lambda_cloud_ssh_keys)
        self._region = settings.lambda_cloud_region.strip()
        self._health = health or health_check(settings)
        self._ssh_port = ssh_port
        self._offers: list[Offer] = []
        self._offers_until = float("-inf")
        self._reading = asyncio.Lock()

    async def catalog(self) -> list[Offer]:
        """What has no capacity is listed too, once, as not available: it exists, and may be had later."""
        async with self._reading:
            if self._clock.now() >= self._offers_until:
                listings = await self._client.instance_types()
                self._offers = [offer for listing in listings for offer in _offers(listing, self._region)]
                self._offers_until = self._clock.now() + CATALOG_S
            return list(self._offers)

    async def launch(self, order: Order) -> Machine:
        if not order.name.startswith(NAME_PREFIX) or len(order.name) > LONGEST_NAME:
            message = f"the name of a machine has at most {LONGEST_NAME} characters and begins with {NAME_PREFIX}"
            raise ProviderError("InvalidRequest", message, retryable=False)
        if not order.offer.region:
            raise ProviderError("NoCapacity", f"{order.offer.instance_type} is nowhere to be had", retryable=True)
        host_key = HostKey.generate()
        try:
            ids = await self._client.launch(self._request(order, host_key), host_key.private.splitlines())
        except ProviderError as error:
            if error.code == "NoCapacity":
                self._offers_until = float("-inf")
            raise
        log.info(
            "instance made", id=ids[0], machine=order.name, type=order.offer.instance_type, region=order.offer.region
        )
        if len(ids) > 1:
            # They have the same name and are in nobody's row: the reconciler releases them.
            log.warning("more instances were made than were asked for", ids=ids[1:], machine=order.name)
        return Machine(
            id=ids[0],
            name=order.name,
            state="booting",
            ssh_port=self._ssh_port,
            ssh_user=SSH_USER,
            host_key=host_key.public,
        )

    async def probe(self, machine: Machine) -> Probe:
        instance = await self._find(machine)
        if instance is None:
            return Gone("Lost", f"instance {machine.id or machine.name} does not exist any more")
        now = self._machine(instance, machine)
        if instance.status == "unhealthy":
            return Gone("Unhealthy", f"Lambda Cloud calls instance {instance.id} unhealthy")
        if instance.status in (*ENDED, TERMINATING):
            return Gone("Lost", f"instance {instance.id} is {instance.status}")
        if instance.status != "active":
            return Pending(instance.status, now)
        if not now.host:
            return Pending("active, without an address", now)
        if not now.host_key:  # without it, whoever answers at the address could pass for the machine
            return Pending("its host key is not known", now)
        return await self._health(now)

    async def release(self, machine: Machine) -> bool:
        ids = [machine.id] if machine.id else [one.id for one in await self.list() if one.name == machine.name]
        return all([await self._terminate(id) for id in ids])

    async def list(self) -> list[Machine]:
        ours = [one for one in await self._client.instances() if (one.name or "").startswith(NAME_PREFIX)]
        if strange := [one for one in ours if not is_id(one.id)]:
            raise ProviderError("ProviderUnavailable", f"{len(strange)} instances have no proper id", retryable=True)
        return [self._machine(one, Machine(id=one.id, name=one.name or "")) for one in ours if one.status not in ENDED]

    async def close(self) -> None:
        await self._client.close()

    async def _find(self, machine: Machine) -> Instance | None:
        if machine.id:
            return await self._client.instance(machine.id)
        return next((one for one in await self._client.instances() if one.name == machine.name), None)

    async def _terminate(self, id: str) -> bool:
        """Look first: an instance that is ending already answers a second request with an error."""
        instance = await self._client.instance(id)
        if instance is not None and instance.status not in (*ENDED, TERMINATING):
            instance = await self._client.terminate(id)
            log.info("instance terminated", id=id, status=instance.status if instance else "gone")
        return instance is None or instance.status in ENDED

    def _machine(self, instance: Instance, known: Machine) -> Machine:
        """`known` with what the instance says. A host key that is known stays: it is the one that we made."""
        tagged = instance.tag(TAG_HOST_KEY)
        return replace(
            known,
            id=instance.id,
            state=instance.status[:32],
            host=instance.address(),
            ssh_port=self._ssh_port,
            ssh_user=SSH_USER,
            host_key=known.host_key or (tagged if _HOST_KEY.fullmatch(tagged) else ""),
        )

    def _request(self, order: Order, host_key: HostKey) -> dict[str, Any]:
        return {
            "region_name": order.offer.region,
            "instance_type_name": order.offer.instance_type,
            "ssh_key_names": [self._ssh_key],
            "name": order.name,
            "user_data": host_key.user_data(),
            "tags": _tags(order, host_key.public),
        }


@dataclass(frozen=True)
class HostKey:
    """A machine's own SSH key, made here so that nobody else can pass for the machine. `private` is sent once, never kept."""

    public: str
    """One line, `ssh-ed25519 ...`."""
    private: str

    def __repr__(self) -> str:
        return f"HostKey({self.public})"

    @classmethod
    def generate(cls) -> HostKey:
        key = Ed25519PrivateKey.generate()
        return cls(
            key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode(),
            key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()).decode(),
        )

    def user_data(self) -> str:
        """For cloud-init: the image's own host keys go, and no other is made."""
        config = {
            "ssh_deletekeys": True,
            "ssh_genkeytypes": [],
            "ssh_keys": {"ed25519_private": self.private, "ed25519_public": self.public},
        }
        return "#cloud-config\n" + yaml.safe_dump(config)


def _offers(listing: Listing, only: str) -> Iterator[Offer]:
    kind = listing.instance_type
    gpu = _gpu(kind)
    if kind.specs.gpus and gpu is None:
        log.warning("an instance type is left out", name=kind.name, error="its name and its description differ")
        return
    regions = [region.name for region in listing.regions_with_capacity_available if only in ("", region.name)]
    for region in regions or [only]:
        yield Offer(
            provider=LambdaCloud.name,
            region=region,
            instance_type=kind.name,
            accelerator=canonical(gpu) if gpu else "",
            memory_gb=(gpu.memory_gb or 0) if gpu else 0,
            gpus=kind.specs.gpus,
            hourly_price_usd=kind.price_cents_per_hour / 100,
            available=bool(regions),
        )


def _gpu(kind: InstanceType) -> Gpu | None:
    """The GPU of an instance type: what the live description says, and the table where it says nothing."""
    if not kind.specs.gpus:
        return None
    described, named = offered(kind.gpu_description), offered(kind.name)
    if not described.known:
        return named
    if not named.known:
        return described
    if described.model != named.model:
        return None
    return replace(described, memory_gb=described.memory_gb or named.memory_gb, form=described.form or named.form)


def _tags(order: Order, host_key: str) -> list[dict[str, str]]:
    """The public host key is among them, so that a machine whose launch was never answered can still be taken on."""
    tags = {f"label:{_plain(name)}"[:LONGEST_TAG]: value for name, value in order.labels}
    tags[TAG_PROVISION] = order.name.removeprefix(NAME_PREFIX).rpartition("-")[0]
    tags[TAG_HOST_KEY] = host_key
    return [{"key": key, "value": value[:LONGEST_VALUE]} for key, value in tags.items()]


def _plain(name: str) -> str:
    """A label's name with the characters that a tag may have."""
    return re.sub(r"[^a-z0-9:-]", "-", name.lower())


def _first_key(names: str) -> str:
    """Lambda takes exactly one."""
    keys: Sequence[str] = [name for part in names.split(",") if (name := part.strip())]
    if not keys:
        raise ValueError("LAMBDA_CLOUD_SSH_KEYS is not set")
    return keys[0]
