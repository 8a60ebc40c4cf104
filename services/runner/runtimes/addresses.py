"""Connections that a policy allows, judged by the very address that is connected to: a name that changes where it leads
between check and connect gains nothing.

Redirects and proxies from the environment must be off in the session that uses this connector: each would move the
request to another place after the check.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import ThreadedResolver

from services.kit.spec.addresses import AddressPolicy, as_address

if TYPE_CHECKING:
    from aiohttp.client_reqrep import ClientRequest
    from aiohttp.connector import Connection
    from aiohttp.tracing import Trace


class AddressRefused(OSError):
    """The host is at an address that the policy does not allow. aiohttp shows it as a connection error."""


class CheckedResolver(AbstractResolver):
    """Resolves once, and refuses the name unless all of its addresses are allowed."""

    def __init__(self, policy: AddressPolicy, resolver: AbstractResolver | None = None) -> None:
        self._policy = policy
        self._resolver = resolver or ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        results = await self._resolver.resolve(host, port, family)
        for result in results:
            if not self._policy.allows_address(host, result["host"], port):
                raise AddressRefused(f"{host} leads to an address that may not be connected to")
        return results

    async def close(self) -> None:
        await self._resolver.close()


class CheckedConnector(aiohttp.TCPConnector):
    """A pool of connections to allowed addresses. One for each policy: whoever finds a pooled connection may use it."""

    def __init__(
        self,
        policy: AddressPolicy,
        *,
        resolver: AbstractResolver | None = None,
        limit: int = 0,
        keepalive_timeout: float = 15.0,
    ) -> None:
        super().__init__(
            resolver=CheckedResolver(policy, resolver),
            limit=limit,
            keepalive_timeout=keepalive_timeout,
            ttl_dns_cache=10,
        )
        self._policy = policy

    async def connect(self, req: ClientRequest, traces: list[Trace], timeout: aiohttp.ClientTimeout) -> Connection:
        """aiohttp asks no resolver about a host that is an address already, so that one is judged here."""
        host, port = req.url.host or "", req.url.port or 0
        if as_address(host) is not None and not self._policy.allows_address(host, host, port):
            refusal = AddressRefused(f"{host} is an address that may not be connected to")
            raise aiohttp.ClientConnectorError(req.connection_key, refusal) from refusal
        return await super().connect(req, traces, timeout)


def connector(policy: AddressPolicy | None, *, limit: int = 0, keepalive_timeout: float = 15.0) -> aiohttp.TCPConnector:
    """The connector for `Endpoint.policy`; without a policy the operator chose the URL, and anything goes."""
    if policy is None:
        return aiohttp.TCPConnector(limit=limit, keepalive_timeout=keepalive_timeout, ttl_dns_cache=10)
    return CheckedConnector(policy, limit=limit, keepalive_timeout=keepalive_timeout)
