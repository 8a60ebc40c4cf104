"""The RPCs of console.proto. None is implemented yet: the generated base answers UNIMPLEMENTED to each."""

from __future__ import annotations

from brix.console.v1 import console_pb2_grpc


class ConsoleServicer(console_pb2_grpc.ConsoleServiceServicer):
    """One method per RPC: convert, call the service, convert."""
