"""The RPCs of planner.proto. None is implemented yet: the generated base answers UNIMPLEMENTED to each."""

from __future__ import annotations

from brix.planner.v1 import planner_pb2_grpc


class PlannerServicer(planner_pb2_grpc.PlannerServiceServicer):
    """One method per RPC: convert, call the service, convert."""
