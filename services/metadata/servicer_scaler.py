"""KEDA's external scaler, beside our own services: what KEDA asks is converted, passed on, converted back."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from typing import Any

from grpc import aio

from externalscaler import externalscaler_pb2 as pb
from externalscaler import externalscaler_pb2_grpc as pb_grpc
from services.metadata.service.backlog import METRIC, BacklogService

SERVICE = "externalscaler.ExternalScaler"

Context = aio.ServicerContext[Any, Any]


class ScalerServicer(pb_grpc.ExternalScalerServicer):
    def __init__(self, service: BacklogService) -> None:
        self.service = service

    async def IsActive(self, request: pb.ScaledObjectRef, context: Context) -> pb.IsActiveResponse:
        return pb.IsActiveResponse(result=await self.service.is_active(request.scalerMetadata))

    async def StreamIsActive(self, request: pb.ScaledObjectRef, context: Context) -> AsyncIterator[pb.IsActiveResponse]:
        async for active in self.service.watch_active(request.scalerMetadata):
            yield pb.IsActiveResponse(result=active)

    async def GetMetricSpec(self, request: pb.ScaledObjectRef, context: Context) -> pb.GetMetricSpecResponse:
        size = self.service.slots_per_runner(request.scalerMetadata)
        spec = pb.MetricSpec(metricName=METRIC, targetSize=size, targetSizeFloat=size)
        return pb.GetMetricSpecResponse(metricSpecs=[spec])

    async def GetMetrics(self, request: pb.GetMetricsRequest, context: Context) -> pb.GetMetricsResponse:
        slots = await self.service.slots(request.scaledObjectRef.scalerMetadata, request.metricName)
        value = pb.MetricValue(metricName=METRIC, metricValue=math.ceil(slots), metricValueFloat=slots)
        return pb.GetMetricsResponse(metricValues=[value])

    async def StreamMetricSpec(
        self, request: pb.ScaledObjectRef, context: Context
    ) -> AsyncIterator[pb.GetMetricSpecResponse]:
        """The target is what the ScaledObject itself says, so there would never be news: UNIMPLEMENTED, and KEDA asks."""
        raise NotImplementedError
        yield  # what makes it a stream
