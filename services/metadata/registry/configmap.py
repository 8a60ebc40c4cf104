"""Templates or profiles in a ConfigMap, which the Kubernetes API tells of."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Self

from services.kit.clock import monotonic
from services.kit.kubernetes.api import Api
from services.kit.kubernetes.connect import Connect, connect
from services.kit.kubernetes.errors import ApiError, Unavailable
from services.kit.kubernetes.watch import Informer
from services.kit.lifecycle import wait_for
from services.metadata.registry.source import Document, Snapshot, SourceError

PREFIX = "configmap:"
# How long the first answer is waited for.
TIMEOUT_S = 20.0
# A watch that breaks is mended in a moment. What takes longer is a problem.
PATIENCE_S = 10.0
NAME = r"[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?"
# Names of objects and keys, as Kubernetes has them.
FORM = re.compile(
    rf"(?P<namespace>[a-z0-9](?:[a-z0-9-]{{0,61}}[a-z0-9])?)/(?P<name>{NAME})(?:/(?P<key>[\w.-]{{1,253}}))?", re.ASCII
)
FORBIDDEN = "the Kubernetes API answers 403: the service account needs `list` and `watch` on this ConfigMap"
NO_CONFIG_MAP = "the Kubernetes API answers something that is no ConfigMap"


class ConfigMapSource:
    """One key of one ConfigMap: the named one, else `usual_key`, else the only one there is. It is read while `follow` runs."""

    def __init__(self, namespace: str, name: str, key: str | None, usual_key: str, connect: Connect = connect) -> None:
        self.namespace = namespace
        self.config_map = name
        self.key = key
        self.usual_key = usual_key
        self.name = f"{PREFIX}{namespace}/{name}"
        self.api = Api(connect)
        self.informer = Informer(self.api, "configmaps", namespace, field=f"metadata.name={name}", on_change=self._tell)
        self._changed: Callable[[], None] | None = None

    @classmethod
    def from_setting(cls, text: str, usual_key: str) -> Self:
        """`configmap:NAMESPACE/NAME` or `configmap:NAMESPACE/NAME/KEY`. Error: ValueError."""
        match = FORM.fullmatch(text.removeprefix(PREFIX))
        if match is None:
            raise ValueError(f"'{text[:256]}' is not configmap:NAMESPACE/NAME or configmap:NAMESPACE/NAME/KEY")
        return cls(match["namespace"], match["name"], match["key"], usual_key)

    async def check(self) -> None:
        pass

    async def follow(self, changed: Callable[[], None]) -> None:
        self._changed = changed
        await self.informer.run()

    async def fetch(self, known: object | None) -> Snapshot | None:
        if not await wait_for(self.informer.tried, TIMEOUT_S):
            raise SourceError("the Kubernetes API does not answer: TimeoutError")
        self._check_watch()
        found = self.informer.items.get((self.namespace, self.config_map))
        if found is None:
            return Snapshot((), None, "there is no such ConfigMap")
        metadata, data = found["metadata"], found.get("data") or {}
        if not isinstance(data, dict) or not all(isinstance(text, str) for text in data.values()):
            raise SourceError(NO_CONFIG_MAP)
        fingerprint = (metadata.get("uid"), metadata.get("resourceVersion"))
        if fingerprint == known:
            return None
        return Snapshot((self._document(data),), fingerprint)

    async def close(self) -> None:
        await self.api.close()

    def _check_watch(self) -> None:
        """Error: SourceError, if what is known may be old."""
        error, since = self.informer.error, self.informer.stale_since
        if error is None:
            return
        is_young = since is not None and monotonic() - since < PATIENCE_S
        if self.informer.synced.is_set() and isinstance(error, Unavailable) and is_young:
            return
        raise SourceError(_why(error)) from error

    def _document(self, data: dict[str, str]) -> Document:
        key = self.key or (self.usual_key if self.usual_key in data or len(data) != 1 else next(iter(data)))
        problem = "" if key in data else "the ConfigMap has no such key"
        return Document(f"{self.name}/{key}", data.get(key), problem)

    def _tell(self, kind: str, found: dict[str, Any]) -> None:
        if self._changed is not None:
            self._changed()


def _why(error: ApiError) -> str:
    return FORBIDDEN if error.status == 403 else error.message
