"""A port on our loopback that leads to a port on a machine's loopback, through whatever SSH connection there is now.

The port stays ours, and the same, while connections to the machine come and go: who was cut off connects again to where it
was, and nobody else can listen there meanwhile.
"""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress
from typing import Any, Self, cast

import asyncssh

HOST = "127.0.0.1"
BACKLOG = 1024
# Data that one request may have on its way in each direction. Few round trips, also over an ocean.
WINDOW = 4 * 1024 * 1024
LARGEST_PACKET = 64 * 1024


class Forward:
    """Use `open`, then `lead` whenever there is a new connection, and `close` in the end."""

    def __init__(self, port: int) -> None:
        self._far_port = port
        self._connection: asyncssh.SSHClientConnection | None = None
        self._server: asyncio.Server | None = None
        self._near: set[_Near] = set()
        self.port = 0
        """Where it listens on our loopback."""
        self.forbidden = False
        """The machine's SSH server, asked last, forwards nothing (to that port)."""

    @classmethod
    async def open(cls, port: int) -> Self:
        """`port`: on the machine's loopback. Error: OSError."""
        forward = cls(port)
        loop = asyncio.get_running_loop()
        forward._server = await loop.create_server(lambda: _Near(forward), HOST, 0, backlog=BACKLOG)
        forward.port = forward._server.sockets[0].getsockname()[1]
        return forward

    def lead(self, connection: asyncssh.SSHClientConnection) -> None:
        """From now on through this one."""
        self._connection = connection

    def close(self) -> None:
        """Also what goes through it now."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for near in list(self._near):
            near.abort()

    def _opened(self, near: _Near) -> None:
        self._near.add(near)
        connection = self._connection
        if connection is None or connection.is_closed():
            near.abort()
            return
        near.task = asyncio.get_running_loop().create_task(self._dial(connection, near))

    async def _dial(self, connection: asyncssh.SSHClientConnection, near: _Near) -> None:
        try:
            await connection.create_connection(
                lambda: _Far(near), HOST, self._far_port, window=WINDOW, max_pktsize=LARGEST_PACKET
            )
            self.forbidden = False
        except (asyncssh.Error, OSError) as error:
            self.forbidden = getattr(error, "code", None) == asyncssh.OPEN_ADMINISTRATIVELY_PROHIBITED
            near.abort()  # nobody listens there, or the connection broke: the client sees a broken connection

    def _closed(self, near: _Near) -> None:
        self._near.discard(near)


class _Near(asyncio.Protocol):
    """The end on our side: what is sent before the far end is there waits."""

    __slots__ = ("_early", "_forward", "_transport", "far", "task")

    def __init__(self, forward: Forward) -> None:
        self._forward = forward
        self._transport: asyncio.Transport | None = None
        self._early: list[bytes] = []
        self.far: asyncssh.SSHTCPChannel[bytes] | None = None
        self.task: asyncio.Task[None] | None = None
        """Dials. It is left to end by itself: a channel that opens too late is closed in `joined`."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        near: socket.socket | None = transport.get_extra_info("socket")
        if near is not None:
            near.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._forward._opened(self)

    def data_received(self, data: bytes) -> None:
        if self.far is not None:
            self.far.write(data)
        else:
            self._early.append(data)
            self.pause()

    def eof_received(self) -> bool:
        """Half closed: answers may still come. An HTTP client that ends without waiting is simply gone."""
        if self.far is not None:
            self.far.write_eof()
            return True
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._forward._closed(self)
        if self.far is not None:
            far, self.far = self.far, None
            far.close()

    def pause_writing(self) -> None:
        if self.far is not None:
            self.far.pause_reading()

    def resume_writing(self) -> None:
        if self.far is not None:
            self.far.resume_reading()

    # What the far end does

    def joined(self, far: asyncssh.SSHTCPChannel[bytes]) -> None:
        if self._transport is None:
            far.abort()
            return
        self.far = far
        for data in self._early:
            far.write(data)
        self._early.clear()
        self.resume()

    def send(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)

    def end(self) -> None:
        if self._transport is not None:
            with suppress(OSError):
                self._transport.write_eof()

    def pause(self) -> None:
        if self._transport is not None:
            self._transport.pause_reading()

    def resume(self) -> None:
        if self._transport is not None:
            self._transport.resume_reading()

    def finish(self) -> None:
        """After all that was said is sent."""
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()


class _Far(asyncssh.SSHTCPSession[bytes]):
    """The end on the machine."""

    def __init__(self, near: _Near) -> None:
        self._near = near

    def connection_made(self, chan: asyncssh.SSHTCPChannel[bytes]) -> None:
        self._channel = chan

    def session_started(self) -> None:
        self._near.joined(self._channel)

    def data_received(self, data: bytes, datatype: Any) -> None:
        self._near.send(data)

    def eof_received(self) -> bool:
        self._near.end()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self._near.far = None
        if exc is None:
            self._near.finish()
        else:
            self._near.abort()

    def pause_writing(self) -> None:
        self._near.pause()

    def resume_writing(self) -> None:
        self._near.resume()
