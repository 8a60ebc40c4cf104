"""Bytes on their way into the object store: counted, hashed and looked at as they pass."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Protocol

from gateway.body import over
from gateway.errors import too_large
from gateway.jsonl import JsonlCheck
from services.kit.objects import ObjectStore

GATHER = 1024 * 1024  # each hop into the store costs; a hundred small ones cost as much as the bytes


class Digest(Protocol):
    def update(self, data: bytes, /) -> None: ...


class Intake:
    """One file. `check` may be there without being `strict`: the purpose comes after the bytes, and decides."""

    def __init__(
        self,
        read: Callable[[], Awaitable[bytes]],
        *,
        limit: int,
        digest: Digest | None = None,
        check: JsonlCheck | None = None,
        strict: bool = False,
    ) -> None:
        self._read = read
        self._limit = limit
        self._digest = digest
        self._check = check
        self._strict = strict
        self._hashed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._hashed.set_result(None)
        self.size = 0

    async def store(self, objects: ObjectStore, key: str) -> None:
        """Errors: Refused 408 and 413, InvalidArgument, and the object store's. After one, nothing stands under `key`."""
        await objects.put_stream(key, self._through())
        if self._check is not None:
            self._check.finish()
            if self._strict and self._check.problem is not None:
                await objects.delete([key])
                raise self._check.problem

    async def _through(self) -> AsyncIterator[bytes]:
        while chunk := await self._gathered():
            self.size += len(chunk)
            if self.size > self._limit:
                raise too_large(over(self._limit))
            if self._check is not None:
                self._check.feed(chunk)
                if self._strict and self._check.problem is not None:
                    raise self._check.problem
            if self._digest is not None:
                await self._hash(self._digest, chunk)
            yield chunk
        await self._hashed

    async def _hash(self, digest: Digest, chunk: bytes) -> None:
        """In a thread, without the GIL, while the store takes the chunk and the socket fills the next."""
        await self._hashed
        self._hashed = asyncio.get_running_loop().run_in_executor(None, digest.update, chunk)

    async def _gathered(self) -> bytes:
        pieces: list[bytes] = []
        size = 0
        while size < GATHER and (piece := await self._read()):
            pieces.append(piece)
            size += len(piece)
        return b"".join(pieces)
