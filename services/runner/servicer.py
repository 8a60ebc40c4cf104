"""RunnerService over gRPC: convert, call, convert."""

from __future__ import annotations

from typing import Any

from brix.runner.v1 import runner_pb2 as pb
from brix.runner.v1 import runner_pb2_grpc as pb_grpc
from services.kit.convert import to_proto
from services.runner.service import RunnerService


class RunnerServicer(pb_grpc.RunnerServiceServicer):
    def __init__(self, service: RunnerService) -> None:
        self.service = service

    async def GetStatus(self, request: pb.GetStatusRequest, context: Any) -> pb.RunnerStatus:
        return to_proto(pb.RunnerStatus, self.service.status())
