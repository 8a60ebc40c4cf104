"""Templates or profiles in a ConfigMap that the Kubernetes API is asked for."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from typing import Any, Self

import aiohttp
import yaml

from services.metadata.registry.source import Document, Snapshot, SourceError

PREFIX = "configmap:"
TIMEOUT_S = 10.0
NAME = r"[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?"
# Names of objects and keys, as Kubernetes has them.
FORM = re.compile(
    rf"(?P<namespace>[a-z0-9](?:[a-z0-9-]{{0,61}}[a-z0-9])?)/(?P<name>{NAME})(?:/(?P<key>[\w.-]{{1,253}}))?", re.ASCII
)
HINTS = {
    401: ": its credentials are not accepted",
    403: ": the service account needs `get` on this ConfigMap",
}
NO_CONFIG_MAP = "the Kubernetes API answers something that is no ConfigMap"

Connect = Callable[[], Awaitable[Any]]
"""Makes a kubernetes.aio.client.ApiClient. The package has no types."""


async def connect() -> Any:
    """A client with the credentials of the pod, else with those of the kubeconfig. Error: SourceError."""
    # Imported here: it takes a second, and few need it.
    client, config = await asyncio.to_thread(_kubernetes)
    configuration = client.Configuration()
    try:
        await asyncio.to_thread(config.load_incluster_config, client_configuration=configuration)
    except config.ConfigException:
        try:
            await config.load_kube_config(client_configuration=configuration, persist_config=False)
        except (config.ConfigException, OSError, ValueError, yaml.YAMLError) as error:
            raise SourceError("there are credentials of neither a pod nor a kubeconfig") from error
    return await asyncio.to_thread(client.ApiClient, configuration)  # it reads certificates


def _kubernetes() -> tuple[Any, Any]:
    from kubernetes.aio import client, config

    return client, config


class ConfigMapSource:
    """One key of one ConfigMap: the named one, else `usual_key`, else the only one there is."""

    def __init__(self, namespace: str, name: str, key: str | None, usual_key: str, connect: Connect = connect) -> None:
        self.namespace = namespace
        self.config_map = name
        self.key = key
        self.usual_key = usual_key
        self.connect = connect
        self.name = f"{PREFIX}{namespace}/{name}"
        self.client: Any = None

    @classmethod
    def from_setting(cls, text: str, usual_key: str) -> Self:
        """`configmap:NAMESPACE/NAME` or `configmap:NAMESPACE/NAME/KEY`. Error: ValueError."""
        match = FORM.fullmatch(text.removeprefix(PREFIX))
        if match is None:
            raise ValueError(f"'{text[:256]}' is not configmap:NAMESPACE/NAME or configmap:NAMESPACE/NAME/KEY")
        return cls(match["namespace"], match["name"], match["key"], usual_key)

    async def check(self) -> None:
        pass

    async def fetch(self, known: object | None) -> Snapshot | None:
        found = await self._get()
        if found is None:
            return Snapshot((), None, "there is no such ConfigMap")
        metadata = found.metadata
        if metadata is None:
            raise SourceError(NO_CONFIG_MAP)
        fingerprint = (metadata.uid, metadata.resource_version)
        if fingerprint == known and metadata.resource_version:
            return None
        return Snapshot((self._document(found.data or {}),), fingerprint)

    async def close(self) -> None:
        client, self.client = self.client, None
        if client is not None:
            await client.close()

    async def _get(self) -> Any:
        """The ConfigMap, or None if there is none. Error: SourceError."""
        try:
            async with asyncio.timeout(2 * TIMEOUT_S):
                if self.client is None:
                    self.client = await self.connect()
                return await self._read()
        except (aiohttp.ClientError, OSError) as error:  # TimeoutError is an OSError
            raise SourceError(f"the Kubernetes API does not answer: {type(error).__name__}") from error

    async def _read(self) -> Any:
        client, _ = _kubernetes()
        try:
            return await client.CoreV1Api(self.client).read_namespaced_config_map(
                self.config_map, self.namespace, _request_timeout=TIMEOUT_S
            )
        except client.ApiException as error:
            if error.status == 404:
                return None
            if error.status == 401:
                await self.close()  # a kubeconfig's token may be a new one by now
            if not error.status:  # so the package says that a body has an unknown type
                raise SourceError(NO_CONFIG_MAP) from error
            raise SourceError(f"the Kubernetes API answers {error.status}{HINTS.get(error.status, '')}") from error
        except ValueError as error:
            raise SourceError(NO_CONFIG_MAP) from error

    def _document(self, data: dict[str, str]) -> Document:
        key = self.key or (self.usual_key if self.usual_key in data or len(data) != 1 else next(iter(data)))
        problem = "" if key in data else "the ConfigMap has no such key"
        return Document(f"{self.name}/{key}", data.get(key), problem)
