"""One watch of an emulated cluster: which changes it is told of, and how they leave."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

from aiohttp import web

from services.kit.kubernetes.resources import Resource
from tests.kubernetes.selectors import matches
from tests.kubernetes.store import Happening, Object

# A real server ends watches after half an hour or later, if it is not told to end them sooner.
LONGEST_S = 1800.0


class Watch:
    def __init__(self, kind: Resource, name: str, namespace: str, query: Mapping[str, str]) -> None:
        self.kind = kind
        self.name = name
        self.namespace = namespace
        self.labels = query.get("labelSelector", "")
        self.fields = query.get("fieldSelector", "")
        self.seconds = float(query.get("timeoutSeconds", LONGEST_S))
        self.wants_bookmarks = query.get("allowWatchBookmarks") in ("1", "true")
        self.is_silent = False
        self.is_aborted = False
        self._queue: asyncio.Queue[bytes | None] = asyncio.Queue()

    def happened(self, happening: Happening) -> None:
        """An object that begins to match is ADDED, one that no longer does is DELETED."""
        if happening.resource != self.name or self.namespace not in ("", happening.object["metadata"].get("namespace")):
            return
        before = happening.before is not None and matches(happening.before, self.labels, self.fields)
        after = happening.kind != "DELETED" and matches(happening.object, self.labels, self.fields)
        if before or after:
            self.event("MODIFIED" if before and after else "ADDED" if after else "DELETED", happening.object)

    def event(self, kind: str, found: Object) -> None:
        self.send(json.dumps({"type": kind, "object": found}).encode() + b"\n")

    def bookmark(self, version: int) -> None:
        if self.wants_bookmarks:
            metadata: Any = {"resourceVersion": str(version), "creationTimestamp": None}
            typed = {"apiVersion": self.kind.api_version, "kind": self.kind.kind}
            self.event("BOOKMARK", {**typed, "metadata": metadata})

    def send(self, data: bytes) -> None:
        if not self.is_silent:
            self._queue.put_nowait(data)

    def end(self) -> None:
        if not self.is_silent:
            self._queue.put_nowait(None)

    def abort(self) -> None:
        self.is_aborted = True
        self._queue.put_nowait(None)

    def silence(self) -> None:
        self.is_silent = True

    async def stream(self, request: web.Request, closing: asyncio.Event) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        try:
            async with asyncio.timeout(self.seconds):
                while (data := await self._queue.get()) is not None:
                    await response.write(data)
        except TimeoutError:
            if self.is_silent:
                await closing.wait()
        except ConnectionError:
            return response  # the client has gone
        if self.is_aborted and request.transport is not None:
            request.transport.abort()
        return response
