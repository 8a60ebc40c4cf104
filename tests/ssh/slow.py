"""A door before a server that lets nothing out of it for a while."""

from __future__ import annotations

import asyncio

HOST = "127.0.0.1"
CHUNK_BYTES = 65536


class SlowDoor:
    """Passes connections on; the first byte of the server's reaches its client `delay_s` after the connection was made."""

    def __init__(self, delay_s: float) -> None:
        self.delay_s = delay_s
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self._behind = 0

    async def open(self, port: int, behind: int) -> None:
        self._behind = behind
        self._server = await asyncio.start_server(self._connected, HOST, port)

    async def close(self) -> None:
        """Connections end too."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            await self._pass(reader, writer)
        except OSError:
            pass  # one of the two is gone, so the other goes
        except asyncio.CancelledError:
            pass  # the door closes
        finally:
            self._connections.discard(task)
            writer.transport.abort()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server_reader, server_writer = await asyncio.open_connection(HOST, self._behind)
        ways = [
            asyncio.create_task(copy(reader, server_writer, 0)),
            asyncio.create_task(copy(server_reader, writer, self.delay_s)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            server_writer.transport.abort()


async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, delay_s: float) -> None:
    await asyncio.sleep(delay_s)
    while chunk := await reader.read(CHUNK_BYTES):
        writer.write(chunk)
        await writer.drain()
