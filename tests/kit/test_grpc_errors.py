"""An error raised in a servicer is the same error at its caller; anything else says nothing."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from brix.metadata.v1 import runners_pb2 as pb
from brix.metadata.v1 import runners_pb2_grpc as pb_grpc
from services.kit import errors
from services.kit.server import channel, serving

SERVICE = "brix.metadata.v1.RunnerRegistryService"


class Failing(pb_grpc.RunnerRegistryServiceServicer):
    def __init__(self, error: Exception) -> None:
        self.error = error

    async def ListRunners(self, request: Any, context: Any) -> pb.ListRunnersResponse:
        raise self.error


async def call(error: Exception) -> None:
    register = partial(pb_grpc.add_RunnerRegistryServiceServicer_to_server, Failing(error))
    async with serving("127.0.0.1:0", [register], [SERVICE]) as address, channel(address) as ch:
        await pb_grpc.RunnerRegistryServiceStub(ch).ListRunners(pb.ListRunnersRequest())


@pytest.mark.parametrize("kind", [k for k in errors.ServiceError.__subclasses__() if k is not errors.Unavailable])
async def test_every_error_crosses_with_its_context(kind: type[errors.ServiceError]) -> None:
    with pytest.raises(kind) as raised:
        await call(kind("what happened", param="aibrix.client", code="x"))
    assert type(raised.value) is kind
    assert raised.value.message == "what happened"
    assert raised.value.context == {"param": "aibrix.client", "code": "x"}


async def test_an_unexpected_error_tells_nothing() -> None:
    with pytest.raises(errors.ServiceError) as raised:
        await call(RuntimeError("password=canary"))
    assert "canary" not in str(raised.value)


async def test_a_server_that_is_not_there_is_unavailable() -> None:
    async with channel("127.0.0.1:1") as ch:
        with pytest.raises(errors.Unavailable) as raised:
            await pb_grpc.RunnerRegistryServiceStub(ch).ListRunners(pb.ListRunnersRequest())
    assert "127.0.0.1" not in str(raised.value)
