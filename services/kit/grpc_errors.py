"""The one place where errors become gRPC statuses, and back."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from inspect import isasyncgenfunction
from typing import Any, TypeVar, cast

import grpc
import structlog
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc import aio
from grpc_status import rpc_status

from services.kit import errors

M = TypeVar("M")

DOMAIN = "aibrix-batch"

CODES: dict[type[errors.ServiceError], grpc.StatusCode] = {
    errors.InvalidArgument: grpc.StatusCode.INVALID_ARGUMENT,
    errors.NotFound: grpc.StatusCode.NOT_FOUND,
    errors.AlreadyExists: grpc.StatusCode.ALREADY_EXISTS,
    errors.IllegalTransition: grpc.StatusCode.FAILED_PRECONDITION,
    errors.StaleLease: grpc.StatusCode.FAILED_PRECONDITION,
    errors.GoalChanged: grpc.StatusCode.FAILED_PRECONDITION,
    errors.LinesOverlap: grpc.StatusCode.FAILED_PRECONDITION,
    errors.ProtocolMismatch: grpc.StatusCode.FAILED_PRECONDITION,
    errors.Conflict: grpc.StatusCode.FAILED_PRECONDITION,
    errors.QuotaExceeded: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.ResourceExhausted: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.Unavailable: grpc.StatusCode.UNAVAILABLE,
}
ERRORS = {cls.reason: cls for cls in CODES}

# Seconds a call may take when its caller named no other limit.
DEFAULT_TIMEOUT_S = 15.0

log = structlog.get_logger(__name__)


def to_status(error: errors.ServiceError) -> status_pb2.Status:
    info = any_pb2.Any()
    info.Pack(error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=error.context))
    return status_pb2.Status(code=CODES[type(error)].value[0], message=error.message, details=[info])


def from_rpc_error(rpc_error: aio.AioRpcError) -> errors.ServiceError:
    status = rpc_status.from_call(cast(Any, rpc_error))
    info = error_details_pb2.ErrorInfo()
    for detail in status.details if status else ():
        if detail.Unpack(info) and info.domain == DOMAIN:
            return ERRORS.get(info.reason, errors.Unavailable)(status.message, **info.metadata)
    # gRPC's own text may name hosts: log it, never forward it.
    log.warning("call failed without a service error", code=str(rpc_error.code()), details=rpc_error.details())
    if rpc_error.code() in (
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.CANCELLED,
    ):
        return errors.Unavailable("a service is unavailable, retry later")
    return errors.ServiceError("internal error")


class ErrorInterceptor(aio.ServerInterceptor):
    """Turns a raised ServiceError into a rich status; hides everything else. Unary calls, and answers that are streams."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is not None and handler.unary_unary is not None:
            return grpc.unary_unary_rpc_method_handler(
                _unary(handler.unary_unary, method), handler.request_deserializer, handler.response_serializer
            )
        # Health and reflection bring streams of their own, which may be written in another way.
        if handler is not None and handler.unary_stream is not None and isasyncgenfunction(handler.unary_stream):
            return grpc.unary_stream_rpc_method_handler(
                _stream(handler.unary_stream, method), handler.request_deserializer, handler.response_serializer
            )
        return handler


def _unary(inner: Any, method: str) -> Any:
    async def unary_unary(request: Any, context: Any) -> Any:
        try:
            return await inner(request, context)
        except Exception as error:  # noqa: BLE001 - each has its status
            await _abort(error, context, method)

    return unary_unary


def _stream(inner: Any, method: str) -> Any:
    async def unary_stream(request: Any, context: Any) -> AsyncIterator[Any]:
        try:
            async for message in inner(request, context):
                yield message
        except Exception as error:  # noqa: BLE001 - likewise
            await _abort(error, context, method)

    return unary_stream


async def _abort(error: Exception, context: Any, method: str) -> None:
    """End the call with the status of `error`; always raises."""
    if isinstance(error, errors.ServiceError):
        await context.abort_with_status(rpc_status.to_status(to_status(error)))
    if isinstance(error, aio.AbortError):
        raise error
    if isinstance(error, NotImplementedError):
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "not implemented")
    log.error("unhandled error", method=method, exc_info=error)
    await context.abort(grpc.StatusCode.INTERNAL, "internal error")


class RaiseServiceErrors(aio.UnaryUnaryClientInterceptor):
    """Client side: a failed call raises the same ServiceError the server raised; every call has a deadline."""

    async def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:
        if details.timeout is None:
            details = details._replace(timeout=DEFAULT_TIMEOUT_S)
        call = await continuation(details, request)
        try:
            return await call
        except aio.AioRpcError as rpc_error:
            raise from_rpc_error(rpc_error) from rpc_error


async def raising(stream: AsyncIterator[M]) -> AsyncIterator[M]:
    """The answers of a streaming call; a failed one raises the same ServiceError the server raised."""
    try:
        async for message in stream:
            yield message
    except aio.AioRpcError as rpc_error:
        raise from_rpc_error(rpc_error) from rpc_error
