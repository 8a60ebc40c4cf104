"""The client that is used now, and those that are used no more but by calls that still run."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from services.kit.kubernetes.connect import Connect
from services.kit.kubernetes.errors import NoCredentials

# Kubeconfigs may name a program that makes credentials.
CONNECT_S = 30.0


class Session:
    """A client, until the last of its users is done with it."""

    def __init__(self, client: Any) -> None:
        self.client = client
        self.users = 0
        self.is_retired = False


class Sessions:
    def __init__(self, connect: Connect) -> None:
        self.connect = connect
        self.namespace = ""
        self._current: Session | None = None
        # Two calls at once would make two clients, and one of them is never closed.
        self._connecting = asyncio.Lock()

    async def current(self) -> Session:
        """Error: NoCredentials."""
        async with self._connecting:
            if self._current is None:
                self._current = await self._connected()
            return self._current

    async def _connected(self) -> Session:
        try:
            async with asyncio.timeout(CONNECT_S):
                client, self.namespace = await self.connect()
        except TimeoutError as error:
            raise NoCredentials(f"the credentials did not come within {CONNECT_S:g} s") from error
        return Session(client)

    @asynccontextmanager
    async def using(self) -> AsyncIterator[Session]:
        """Error: NoCredentials."""
        session = await self.current()
        session.users += 1
        try:
            yield session
        finally:
            session.users -= 1
            if session.is_retired and not session.users:
                await session.client.close()

    def retire(self, session: Session) -> None:
        """Its credentials are no longer accepted: let the next call connect anew. The caller is one of its users."""
        session.is_retired = True
        if self._current is session:
            self._current = None

    async def close(self) -> None:
        async with self._connecting:
            session, self._current = self._current, None
        if session is not None:
            session.is_retired = True
            await session.client.close()
