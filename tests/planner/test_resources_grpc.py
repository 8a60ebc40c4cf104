"""The resource manager as other processes call it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import fields
from functools import partial
from typing import Any

import pytest

from brix.planner.v1 import resources_pb2, resources_pb2_grpc
from brix.type.v1 import provision_pb2
from services.kit.errors import AlreadyExists, InvalidArgument, NotFound
from services.kit.server import channel, serving
from services.kit.settings import Settings
from services.planner import domain
from services.planner.resource_servicer import register_resources
from services.planner.states import ProvisionState
from tests.planner.resources import World, world

S = provision_pb2.Provision
Stub = Any


@pytest.fixture
async def here(make_settings: Callable[..., Settings], sqlite_url: str) -> AsyncIterator[World]:
    async with world(sqlite_url, make_settings()) as made:
        yield made


@pytest.fixture
async def stub(here: World) -> AsyncIterator[Stub]:
    register = partial(register_resources, manager=here.manager())
    name = "brix.planner.v1.ResourceManagerService"
    async with serving("127.0.0.1:0", [register], [name]) as address, channel(address) as ch:
        yield resources_pb2_grpc.ResourceManagerServiceStub(ch)


def request(**spec: Any) -> resources_pb2.ProvisionRequest:
    group = {"gpus_per_replica": 1, "replicas": 1, "accelerator_preference": {"preferred_types": ["H100"]}}
    asked = resources_pb2.ProvisionSpec(groups=[group], **spec)  # type: ignore[list-item]
    return resources_pb2.ProvisionRequest(idempotency_key="job/1", project_id="p", spec=asked)


async def test_every_call(here: World, stub: Stub) -> None:
    made = await stub.Provision(request(regions=["north"], max_hourly_price_usd=9, labels={"a": "b"}, image="i"))
    assert (made.status, made.project_id, made.idempotency_key) == (S.PENDING, "p", "job/1")
    running = await here.until(here.manager(), made.id, ProvisionState.RUNNING)
    got = await stub.GetProvision(resources_pb2.GetProvisionRequest(id=made.id))
    assert (got.status, got.machines[0].host, got.provider) == (S.RUNNING, "192.0.2.7", "fake")
    assert (got.HasField("running_time"), got.HasField("released_time"), got.HasField("error_code")) == (
        True,
        False,
        False,
    )
    assert got.revision == running.revision
    page = await stub.ListProvisions(resources_pb2.ListProvisionsRequest(page_size=10, live=True))
    assert ([one.id for one in page.provisions], page.has_more) == ([made.id], False)
    after = await stub.ListProvisions(resources_pb2.ListProvisionsRequest(page_size=10, after=made.id))
    assert list(after.provisions) == []
    catalog = await stub.ListCatalog(resources_pb2.ListCatalogRequest())
    assert [(offer.instance_type, offer.available) for offer in catalog.offers] == [("1x-h100", True)]
    released = await stub.Release(resources_pb2.ReleaseRequest(id=made.id))
    assert released.status == S.RELEASING


async def test_its_errors(stub: Stub) -> None:
    with pytest.raises(InvalidArgument) as refused:
        await stub.Provision(request(spot=True))
    assert refused.value.context["param"] == "resource_request.spot"
    with pytest.raises(InvalidArgument) as refused:
        await stub.Provision(resources_pb2.ProvisionRequest(project_id="p"))
    assert refused.value.context["param"] == "idempotency_key"
    await stub.Provision(request())
    with pytest.raises(AlreadyExists):
        await stub.Provision(request(image="another"))
    for call, asked in [
        (stub.GetProvision, resources_pb2.GetProvisionRequest(id="prov-x")),
        (stub.Release, resources_pb2.ReleaseRequest(id="prov-x")),
    ]:
        with pytest.raises(NotFound):
            await call(asked)
    with pytest.raises(InvalidArgument):
        await stub.ListCatalog(resources_pb2.ListCatalogRequest(provider="other"))


@pytest.mark.parametrize(
    ("cls", "message"),
    [
        (domain.Machine, provision_pb2.Machine),
        (domain.Provision, provision_pb2.Provision),
        (domain.ProvisionSpec, resources_pb2.ProvisionSpec),
        (domain.Group, resources_pb2.Group),
        (domain.AcceleratorPreference, resources_pb2.AcceleratorPreference),
        (domain.Offer, resources_pb2.Offer),
    ],
)
def test_domain_fields_are_the_proto_fields(cls: Any, message: Any) -> None:
    assert {field.name for field in fields(cls)} == set(message.DESCRIPTOR.fields_by_name)
