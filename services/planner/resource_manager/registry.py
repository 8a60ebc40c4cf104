"""Which providers there are: ours in one table, those of other packages by entry point. PROVISIONER says which are used."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from importlib.metadata import EntryPoint, entry_points
from pkgutil import resolve_name

import structlog

from services.kit.settings import Settings
from services.planner.resource_manager.base import Provider, ProviderClass

GROUP = "aibrix_batch.providers"
# Name in PROVISIONER to class. To add one: a file beside this one, a row here, and its tests.
PROVIDERS = {
    "local": "services.planner.resource_manager.local:Local",
    "static": "services.planner.resource_manager.static:Static",
    "kubernetes": "services.planner.resource_manager.kubernetes:Kubernetes",
    "runpod": "services.planner.resource_manager.runpod:RunPod",
    "lambdaCloud": "services.planner.resource_manager.lambda_cloud:LambdaCloud",
}
CALLS = ("catalog", "launch", "probe", "release", "list", "close")
CLOSE_S = 10.0

log = structlog.get_logger(__name__)


def load_providers(settings: Settings) -> dict[str, Provider]:
    """The providers that PROVISIONER names, in its order.

    Error: ValueError, if a name is not known or stands there twice, if two packages have a provider of this name, if a
    package's provider cannot be used, or if the credentials of one are missing (with the name of the variable).
    """
    names = [name for part in settings.provisioner.split(",") if (name := part.strip())]
    if not names:
        raise ValueError("PROVISIONER names no provider")
    if len(set(names)) < len(names):
        raise ValueError("PROVISIONER names a provider twice")
    return {name: _load(name, settings) for name in names}


async def close_all(providers: Iterable[Provider]) -> None:
    """Let go of what providers hold. One that fails or hangs holds up no other."""

    async def close(provider: Provider) -> None:
        try:
            async with asyncio.timeout(CLOSE_S):
                await provider.close()
        except Exception:
            log.exception("a provider was not closed", provider=provider.name)

    async with asyncio.TaskGroup() as group:
        for provider in providers:
            group.create_task(close(provider))


def _load(name: str, settings: Settings) -> Provider:
    found = [entry for entry in entry_points(group=GROUP) if entry.name == name]
    origins = [*([PROVIDERS[name]] if name in PROVIDERS else []), *map(_origin, found)]
    if not origins:
        known = ", ".join(sorted({*PROVIDERS, *(entry.name for entry in entry_points(group=GROUP))}))
        raise ValueError(f"PROVISIONER: there is no provider {name!r}; known are {known}")
    if len(origins) > 1:
        raise ValueError(f"two providers are called {name}: {' and '.join(origins)}; uninstall one of them")
    if not found:
        ours: ProviderClass = resolve_name(PROVIDERS[name])
        return ours(settings)
    return _from_package(found[0], settings)


def _from_package(entry: EntryPoint, settings: Settings) -> Provider:
    """A provider that was asked for by name and cannot be used stops the start: jobs would wait for it in vain."""
    try:
        theirs: ProviderClass = entry.load()
        provider = theirs(settings)
    except ValueError:  # it says which setting is missing
        raise
    except (Exception, SystemExit) as error:
        raise ValueError(f"the provider {entry.name} ({_origin(entry)}) cannot be used: {error}") from error
    missing = [call for call in CALLS if not callable(getattr(provider, call, None))]
    if missing or provider.name != entry.name or not isinstance(provider.target, str):
        why = f"it lacks {', '.join(missing)}" if missing else "its `name` or `target` is not what base.py says"
        raise ValueError(f"the provider {entry.name} ({_origin(entry)}) cannot be used: {why}")
    return provider


def _origin(entry: EntryPoint) -> str:
    """Where its code is, and which package brought it."""
    return f"{entry.value} of the package {entry.dist.name}" if entry.dist else entry.value
