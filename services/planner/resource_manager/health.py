"""Whether a machine that its provider calls up can do work: the seam `HealthCheck`, and the check that the platform has."""

from __future__ import annotations

import asyncio
import re
from typing import Protocol

from services.planner.domain import Machine
from services.planner.resource_manager.base import Pending, Probe, Ready

BANNER_S = 5.0
MOST_BANNER_BYTES = 4096
# A server may say other lines first (RFC 4253, section 4.2).
_BANNER = re.compile(rb"(?:^|\n)SSH-(?:2\.0|1\.99)-")


class HealthCheck(Protocol):
    """Asked about a machine that its provider calls up, with its address filled in.

    A check that logs in and starts CUDA goes here: what never works again is Gone("Unhealthy", why).
    """

    async def __call__(self, machine: Machine) -> Probe: ...


async def ssh_banner(machine: Machine) -> Probe:
    """Ready when an SSH server says hello. Nothing is sent, so it tells nothing of GPUs, nor whose server it is."""
    if await speaks_ssh(machine.host, machine.ssh_port):
        return Ready(machine)
    return Pending(f"no SSH server answers on {machine.host}:{machine.ssh_port}", machine)


async def speaks_ssh(host: str, port: int) -> bool:
    """An open port is not enough: something in between may take connections before sshd runs."""
    try:
        async with asyncio.timeout(BANNER_S):
            reader, writer = await asyncio.open_connection(host, port)
            try:
                return await _greets(reader)
            finally:
                writer.transport.abort()
    except (OSError, ValueError):  # a TimeoutError is an OSError
        return False


async def _greets(reader: asyncio.StreamReader) -> bool:
    said = b""
    while len(said) < MOST_BANNER_BYTES and (piece := await reader.read(1024)):
        said += piece
        if _BANNER.search(said):
            return True
    return False
