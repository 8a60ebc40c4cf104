"""Calls of providers: each has a deadline, and whatever goes wrong is a ProviderError."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping
from dataclasses import replace
from typing import TypeVar

import structlog

from services.planner.domain import Offer
from services.planner.resource_manager.base import Provider, ProviderError

T = TypeVar("T")
# Seconds. A provider that paces itself (Lambda: a launch every 12 s) waits inside of a call.
LAUNCH_S = 300.0
CALL_S = 60.0
CATALOG_S = 30.0

log = structlog.get_logger(__name__)


async def ask(provider: str, call: Awaitable[T], seconds: float = CALL_S) -> T:
    """What the provider answers. Error: ProviderError; ambiguous, if it is not one that the provider itself raised."""
    try:
        async with asyncio.timeout(seconds):
            return await call
    except ProviderError:
        raise
    except TimeoutError as error:
        message = f"no answer within {seconds:g} s"
        raise ProviderError("ProviderUnavailable", message, retryable=True, ambiguous=True) from error
    except Exception as error:
        log.exception("a provider broke", provider=provider)
        message = f"the provider's code failed: {type(error).__name__}"
        raise ProviderError("ProviderUnavailable", message, retryable=True, ambiguous=True) from error


async def catalogs(providers: Mapping[str, Provider]) -> tuple[list[Offer], dict[str, ProviderError]]:
    """All offers, in the order of the providers and then of their catalogs, and the providers that did not tell theirs. They
    are asked at once: a slow one holds up the answer, not the others."""
    listed: dict[str, list[Offer]] = {}
    unavailable: dict[str, ProviderError] = {}

    async def one(name: str, provider: Provider) -> None:
        try:
            # Whatever an offer says: this is who is asked for it.
            listed[name] = [replace(offer, provider=name) for offer in await ask(name, provider.catalog(), CATALOG_S)]
        except ProviderError as error:
            log.warning("a catalog is not available", provider=name, code=error.code, error=error.message)
            unavailable[name] = error

    async with asyncio.TaskGroup() as group:
        for name, provider in providers.items():
            group.create_task(one(name, provider))
    return [offer for name in providers for offer in listed.get(name, ())], unavailable
