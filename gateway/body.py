"""The body of a request: read in pieces, each within a time limit, never as a whole unless it is small."""

from __future__ import annotations

import asyncio

from aiohttp import web

from gateway.errors import Refused, too_large
from gateway.multipart import Multipart, boundary_of

FORM_OVERHEAD = 1024 * 1024  # boundaries, headers and fields around a file
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


async def expect_later(request: web.Request) -> None:
    """`Expect: 100-continue` is answered when the body is wanted, so that a refused upload is never sent."""


class Body:
    def __init__(self, request: web.Request, idle_timeout_s: float) -> None:
        """Error: Refused 415 for an encoding. What is compressed would be a small request with a large body."""
        encoding = request.headers.get("Content-Encoding", "identity").strip().lower()
        if encoding not in {"", "identity"}:
            raise Refused(
                415,
                "Unsupported Content-Encoding. Send the body as it is.",
                code="unsupported_encoding",
                headers={"Accept-Encoding": "identity"},
            )
        self._request = request
        self._idle_timeout_s = idle_timeout_s
        self._expected = request.headers.get("Expect", "").strip().lower() == "100-continue"

    async def read(self) -> bytes:
        """What has arrived; none at the end. Error: Refused 408 if nothing comes."""
        if self._expected:
            self._expected = False
            await self._request.writer.write(CONTINUE)
            self._request.writer.output_size = 0
        try:
            async with asyncio.timeout(self._idle_timeout_s):
                return await self._request.content.readany()
        except TimeoutError as error:
            raise Refused(
                408, "Timed out waiting for the body of your request.", code="request_timeout", close=True
            ) from error

    async def read_all(self, limit: int) -> bytes:
        """Error: Refused 413."""
        message = f"The body of your request is too large. Expected at most {limit} bytes."
        if (self._request.content_length or 0) > limit:
            raise too_large(message)
        pieces: list[bytes] = []
        size = 0
        while piece := await self.read():
            size += len(piece)
            if size > limit:
                raise too_large(message)
            pieces.append(piece)
        return b"".join(pieces)

    def multipart(self, limit: int) -> Multipart:
        """Errors: Refused 413 (when its length says so), 415; InvalidArgument (no boundary)."""
        boundary = boundary_of(self._request.headers.get("Content-Type", ""))
        self.refuse_longer(limit)
        return Multipart(self.read, boundary)

    def refuse_longer(self, limit: int) -> None:
        if (self._request.content_length or 0) > limit + FORM_OVERHEAD:
            raise too_large(over(limit))


def over(limit: int) -> str:
    return f"File exceeds the maximum allowed size. Expected at most {limit} bytes."


async def read_json(request: web.Request, idle_timeout_s: float, limit: int) -> bytes:
    """Errors: Refused 408, 413, 415."""
    if request.content_type != "application/json":
        raise Refused(
            415, "Unsupported content type. This endpoint expects 'application/json'.", code="unsupported_media_type"
        )
    return await Body(request, idle_timeout_s).read_all(limit)
