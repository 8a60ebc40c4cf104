"""A client of the Kubernetes API with the credentials of the pod, else with those of the kubeconfig."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import yaml

from services.kit.kubernetes.errors import NoCredentials

POD_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")

Connect = Callable[[], Awaitable[tuple[Any, str]]]
"""Makes a kubernetes.aio.client.ApiClient (the package has no types), and says which namespace is ours."""


async def connect() -> tuple[Any, str]:
    """The client, which the caller closes, and the namespace of the credentials. Error: NoCredentials."""
    # Imported here: it takes a second, and few need it.
    client, config = await asyncio.to_thread(_kubernetes)
    configuration = client.Configuration()
    try:
        await asyncio.to_thread(config.load_incluster_config, client_configuration=configuration)
        namespace = (await asyncio.to_thread(POD_NAMESPACE.read_text)).strip()
    except (config.ConfigException, OSError):
        try:
            await config.load_kube_config(client_configuration=configuration, persist_config=False)
            _, current = await asyncio.to_thread(config.list_kube_config_contexts)
            namespace = current["context"].get("namespace") or "default"
        except (config.ConfigException, OSError, ValueError, LookupError, TypeError, yaml.YAMLError) as error:
            raise NoCredentials("there are credentials of neither a pod nor a kubeconfig") from error
    made = await asyncio.to_thread(client.ApiClient, configuration)  # it reads certificates
    made.user_agent = "aibrix-batch"
    return made, namespace


def _kubernetes() -> tuple[Any, Any]:
    from kubernetes.aio import client, config

    return client, config
