"""gRPC in, gRPC out, for the resource manager. No logic: convert, call, convert."""

from __future__ import annotations

from typing import Any

from grpc import aio

from brix.planner.v1 import resources_pb2, resources_pb2_grpc
from brix.type.v1 import provision_pb2
from services.kit.convert import from_proto, to_proto
from services.planner.domain import ProvisionSpec
from services.planner.service.resources import ResourceManager

Context = aio.ServicerContext[Any, Any]


class ResourceManagerServicer(resources_pb2_grpc.ResourceManagerServiceServicer):
    def __init__(self, manager: ResourceManager) -> None:
        self.manager = manager

    async def Provision(self, request: resources_pb2.ProvisionRequest, context: Context) -> provision_pb2.Provision:
        spec = from_proto(ProvisionSpec, request.spec)
        found = await self.manager.provision(request.idempotency_key, request.project_id, spec)
        return to_proto(provision_pb2.Provision, found)

    async def GetProvision(
        self, request: resources_pb2.GetProvisionRequest, context: Context
    ) -> provision_pb2.Provision:
        return to_proto(provision_pb2.Provision, await self.manager.get(request.id))

    async def ListProvisions(
        self, request: resources_pb2.ListProvisionsRequest, context: Context
    ) -> resources_pb2.ListProvisionsResponse:
        after = request.after if request.HasField("after") else None
        page, has_more = await self.manager.list(request.page_size, after, live=request.live)
        return resources_pb2.ListProvisionsResponse(
            provisions=[to_proto(provision_pb2.Provision, one) for one in page], has_more=has_more
        )

    async def Release(self, request: resources_pb2.ReleaseRequest, context: Context) -> provision_pb2.Provision:
        return to_proto(provision_pb2.Provision, await self.manager.release(request.id))

    async def ListCatalog(
        self, request: resources_pb2.ListCatalogRequest, context: Context
    ) -> resources_pb2.ListCatalogResponse:
        offers, unavailable = await self.manager.catalog(request.provider)
        return resources_pb2.ListCatalogResponse(
            offers=[to_proto(resources_pb2.Offer, offer) for offer in offers], unavailable=unavailable
        )


def register_resources(server: aio.Server, manager: ResourceManager) -> None:
    resources_pb2_grpc.add_ResourceManagerServiceServicer_to_server(ResourceManagerServicer(manager), server)
