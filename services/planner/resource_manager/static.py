"""Endpoints that exist: AIBRIX_STATIC__ENDPOINTS lists them, with their labels and how many jobs each takes at once."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, ClassVar

from pydantic import Field, TypeAdapter, ValidationError, field_validator

from services.kit.errors import InvalidArgument
from services.kit.settings import ENDPOINT_KEY_PREFIX, Settings
from services.kit.spec.addresses import parse_url
from services.kit.spec.client import Strict
from services.planner.domain import Machine, Offer, ProvisionSpec
from services.planner.resource_manager.base import Gone, Order, Probe, ProviderError, Ready

VARIABLE = "AIBRIX_STATIC__ENDPOINTS"
Word = Annotated[str, Field(min_length=1, max_length=128, pattern=r"^\S(?:.*\S)?$")]


class Endpoint(Strict):
    """One entry of the setting."""

    name: Word
    base_url: str = Field(max_length=2048)
    """As a batch would name it in `runtime.options.base_url`."""
    capacity: int = Field(default=1, ge=1, le=100_000)
    """Jobs at once."""
    labels: dict[Word, Word] = Field(default_factory=dict, max_length=64)
    """A job that asks for labels gets an endpoint that has all of them."""
    api_key_env: str | None = Field(default=None, pattern=rf"^{ENDPOINT_KEY_PREFIX}[A-Za-z0-9_]{{1,100}}$")
    """Variable of the runners that holds its key."""
    hourly_price_usd: float = Field(default=0.0, ge=0)
    """Of one job's place."""
    accelerator: str = Field(default="", max_length=128)
    """What it runs on. Empty: a job's accelerator is not compared."""
    memory_gb: int = Field(default=0, ge=0, le=10_000)
    """Of one accelerator."""
    region: str = Field(default="", max_length=128)
    """Where it is. Empty: it does for every region."""

    @field_validator("base_url")
    @classmethod
    def _readable(cls, url: str) -> str:
        try:
            parse_url(url)
        except InvalidArgument as error:
            raise ValueError(error.message) from error
        return url


_endpoints = TypeAdapter(list[Endpoint])


class Static:
    """Nothing is made and nothing is lost: a place is taken by a row in the store, and free when the row is released."""

    name: ClassVar[str] = "static"
    target: ClassVar[str] = "External"

    def __init__(self, settings: Settings) -> None:
        """Error: ValueError naming the variable, and the field."""
        self.endpoints = {endpoint.name: endpoint for endpoint in _read(settings.static.endpoints)}

    async def catalog(self) -> list[Offer]:
        return [
            Offer(
                provider=self.name,
                region=endpoint.region,
                instance_type=endpoint.name,
                accelerator=endpoint.accelerator,
                memory_gb=endpoint.memory_gb,
                hourly_price_usd=endpoint.hourly_price_usd,
            )
            for endpoint in self.endpoints.values()
        ]

    def narrowed(self, spec: ProvisionSpec, offer: Offer) -> Offer | None:
        endpoint = self.endpoints.get(offer.instance_type)
        if endpoint is None or not spec.labels.items() <= endpoint.labels.items():
            return None
        return offer

    def capacity(self, offer: Offer) -> int:
        endpoint = self.endpoints.get(offer.instance_type)
        return endpoint.capacity if endpoint else 0

    async def launch(self, order: Order) -> Machine:
        endpoint = self.endpoints.get(order.offer.instance_type)
        if endpoint is None:
            raise ProviderError(
                "NoCapacity", f"there is no endpoint {order.offer.instance_type} any more", retryable=True
            )
        return Machine(id=endpoint.name, name=order.name, state="ready", http_base_url=endpoint.base_url)

    async def probe(self, machine: Machine) -> Probe:
        endpoint = self.endpoints.get(machine.id)
        if endpoint is None:
            return Gone("Lost", f"the endpoint {machine.id} is no longer in {VARIABLE}")
        return Ready(replace(machine, state="ready", http_base_url=endpoint.base_url))

    async def release(self, machine: Machine) -> bool:
        return True

    async def list(self) -> list[Machine]:
        return []

    async def close(self) -> None:
        pass


def _read(entries: list[dict[str, Any]]) -> list[Endpoint]:
    if not entries:
        raise ValueError(f"{VARIABLE} is empty: the provider static has nothing to give")
    try:
        endpoints = _endpoints.validate_python(entries)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        path = ".".join(str(part)[:64] for part in first["loc"])
        raise ValueError(f"{VARIABLE}: {path}: {first['msg'].removeprefix('Value error, ')}") from error
    names = [endpoint.name for endpoint in endpoints]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(f"{VARIABLE}: two endpoints are called {twice!r}")
    return endpoints
