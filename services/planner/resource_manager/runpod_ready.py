"""What a pod says of itself in its log, which only the account can read: its SSH host key, and whether CUDA starts."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import cast

from services.planner.resource_manager.runpod_client import RunPodClient

LOG_TAIL = 5000
LOG_S = 10.0
# A container that restarted wrote another key below the first: the last one counts, so look a moment longer.
LOG_IDLE_S = 1.0


@dataclass(frozen=True)
class Attested:
    """What the container wrote about itself; RunPod shows it to the account only."""

    host_key: str = ""
    cuda: str = ""
    """Result of cuInit: `0` is success. Empty or `unknown`: not tried."""


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
