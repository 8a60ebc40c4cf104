"""What a cluster holds, followed: a list, then a watch that resumes where it was."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import aclosing
from typing import Literal

import structlog

from services.kit.clock import monotonic
from services.kit.kubernetes.api import Api, Object, Objects
from services.kit.kubernetes.backoff import Backoff
from services.kit.kubernetes.errors import ApiError, Expired, Unavailable
from services.kit.kubernetes.stream import Event

Kind = Literal["ADDED", "MODIFIED", "DELETED"]
OnChange = Callable[[Kind, Object], None]
"""Told of each change, after `items` has it; DELETED comes with the last state that is known. It does not block or raise."""

# How long one watch lasts. So late, and `api.GRACE_S` more, a connection is noticed whose other end is gone without a word.
WATCH_S = 40
# A watch that ends sooner without an event is no success.
SHORT_S = 1.0
# So many failures in a row, and it is listed anew: after its store was restored, a server may not know our version at all.
RELIST_AFTER = 3
# How long one list may take.
LIST_S = 30.0

log = structlog.get_logger(__name__)


class Informer:
    """The objects of one resource that match, as they are now. Do not change them: they are the cache.

    `run` is one task; everything else may be read meanwhile.
    """

    def __init__(
        self,
        api: Api,
        resource: str,
        namespace: str,
        *,
        selector: str = "",
        field: str = "",
        on_change: OnChange | None = None,
    ) -> None:
        self.api = api
        self.resource = resource
        self.namespace = namespace
        self.selector = selector
        self.field = field
        self.on_change = on_change
        self.items: dict[tuple[str, str], Object] = {}
        """By (namespace, name)."""
        self.synced = asyncio.Event()
        """Set when `items` was complete for the first time."""
        self.tried = asyncio.Event()
        """Set when the first list came, or failed to."""
        self.stale_since: float | None = None
        """`clock.monotonic()` when the server was heard of last, while it cannot be heard (before the first list: when `run`
        began). None: all is well."""
        self.error: ApiError | None = None
        """Why it cannot be heard. None: all is well."""
        self._heard = monotonic()
        self._version: str | None = None
        """Where to go on watching. None: list first."""
        self._backoff = Backoff()

    async def run(self) -> None:
        """Follow until cancelled. What goes wrong is in `error` and tried again; what `on_change` raises ends it."""
        self._heard = self.stale_since = monotonic()
        while True:
            try:
                if self._version is None:
                    await self._list()
                await self._watch(self._version or "")
            except ApiError as error:
                pause = self._failed(error)
                await asyncio.sleep(pause)

    async def _list(self) -> None:
        objects, version = await self.api.list(
            self.resource, self.namespace, selector=self.selector, field=self.field, timeout=LIST_S, retries=False
        )
        self._replace(objects)
        self._version = version
        self._hear()
        self.synced.set()
        self.tried.set()

    async def _watch(self, version: str) -> None:
        """One watch, to its end. Error: ApiError."""
        began = monotonic()
        watch = self.api.watch(
            self.resource,
            self.namespace,
            version,
            selector=self.selector,
            field=self.field,
            seconds=WATCH_S,
            on_open=self._hear,
        )
        async with aclosing(watch) as events:
            async for event in events:
                self._take(event)
                self._hear()
                self._recovered()
        self._hear()
        if monotonic() - began >= SHORT_S:
            self._recovered()
        elif self._version == version:
            raise Unavailable("the Kubernetes API ends watches as soon as they begin")

    def _take(self, event: Event) -> None:
        kind, found = event
        try:
            version = found["metadata"]["resourceVersion"]
            if kind != "BOOKMARK":
                self._changed(kind, found)
        except (KeyError, TypeError) as error:
            raise Unavailable("the Kubernetes API sends an event about no object") from error
        self._version = version

    def _changed(self, kind: str, found: Object) -> None:
        key = _key(found)
        before = self.items.get(key)
        if kind == "DELETED":
            if before is not None:
                del self.items[key]
                self._tell("DELETED", found)
        else:
            self._put(key, found)

    def _replace(self, objects: Objects) -> None:
        """Take over a list: what is not in it was deleted meanwhile."""
        found = {_key(item): item for item in objects}
        for key in self.items.keys() - found.keys():
            self._tell("DELETED", self.items.pop(key))
        for key, item in found.items():
            self._put(key, item)

    def _put(self, key: tuple[str, str], found: Object) -> None:
        before = self.items.get(key)
        if before is not None and _mark(before, "uid") != _mark(found, "uid"):
            self._tell("DELETED", self.items.pop(key))
            before = None
        self.items[key] = found
        if before is None:
            self._tell("ADDED", found)
        elif _mark(before, "resourceVersion") != _mark(found, "resourceVersion"):
            self._tell("MODIFIED", found)

    def _tell(self, kind: Kind, found: Object) -> None:
        if self.on_change is not None:
            self.on_change(kind, found)

    def _hear(self) -> None:
        self._heard = monotonic()
        self.stale_since = self.error = None

    def _recovered(self) -> None:
        if self._backoff.failures >= RELIST_AFTER:
            log.info("a watch of the Kubernetes API works again", resource=self.resource, namespace=self.namespace)
        self._backoff.reset()

    def _failed(self, error: ApiError) -> float:
        """Seconds to wait."""
        if self.stale_since is None:
            self.stale_since = self._heard
        self.error = error
        self.tried.set()
        pause = self._backoff.pause(error.retry_after if isinstance(error, Unavailable) else None)
        if isinstance(error, Expired) or self._backoff.failures >= RELIST_AFTER:
            self._version = None
        if self._backoff.failures == RELIST_AFTER:
            log.warning(
                "a watch of the Kubernetes API fails",
                resource=self.resource,
                namespace=self.namespace,
                problem=error.message,
            )
        return pause


def _key(found: Object) -> tuple[str, str]:
    metadata = found["metadata"]
    return metadata.get("namespace", ""), metadata["name"]


def _mark(found: Object, name: str) -> object:
    return found["metadata"].get(name)
