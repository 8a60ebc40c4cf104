"""Whether a pod can be used: an SSH server that speaks, and what the pod says of itself in its log."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import cast

from services.planner.resource_manager.runpod_client import RunPodClient

BANNER_S = 5.0
MOST_BANNER_BYTES = 4096
LOG_TAIL = 5000
LOG_S = 10.0
# A container that restarted wrote another key below the first: the last one counts, so look a moment longer.
LOG_IDLE_S = 1.0
_BANNER = re.compile(rb"(?:^|\n)SSH-(?:2\.0|1\.99)-")


@dataclass(frozen=True)
class Attested:
    """What the container wrote about itself; RunPod shows it to the account only."""

    host_key: str = ""
    cuda: str = ""
    """Result of cuInit: `0` is success. Empty or `unknown`: not tried."""


async def speaks_ssh(host: str, port: int) -> bool:
    """Whether an SSH server says hello. An open port is not enough: the host's port forwarding takes connections before sshd runs."""
    try:
        async with asyncio.timeout(BANNER_S):
            reader, writer = await asyncio.open_connection(host, port)
            try:
                return await _greets(reader)
            finally:
                writer.close()
    except (OSError, ValueError):
        return False


async def _greets(reader: asyncio.StreamReader) -> bool:
    said = b""
    while len(said) < MOST_BANNER_BYTES and (piece := await reader.read(1024)):
        said += piece
        if _BANNER.search(said):
            return True
    return False


async def attested(client: RunPodClient, pod_id: str, nonce: str) -> Attested:
    """What the log has now under our nonce. Empty where it has nothing yet. Error: ProviderError."""
    found = Attested()
    loop = asyncio.get_running_loop()
    async with aclosing(cast(AsyncGenerator[str], client.lines(pod_id, LOG_TAIL))) as lines:
        try:
            async with asyncio.timeout(LOG_S) as deadline:
                until = loop.time() + LOG_S
                async for line in lines:
                    found = _read(line, nonce, found)
                    if found.host_key:
                        deadline.reschedule(min(until, loop.time() + LOG_IDLE_S))
        except TimeoutError:
            # The stream stays open for what is yet to come; what it had is read.
            return found
    return found


def _read(line: str, nonce: str, found: Attested) -> Attested:
    name = re.escape(nonce)
    # The blob of an ed25519 key always has these 19 bytes in front and 68 characters in all.
    if match := re.search(
        rf"\bHOSTKEY {name} (ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI[A-Za-z0-9+/]{{43}})(?:\s|$)", line
    ):
        return Attested(match[1], found.cuda)
    if match := re.search(rf"\bCUDA {name} (\w{{1,20}})(?:\s|$)", line):
        return Attested(found.host_key, match[1])
    return found
