"""This machine: one place for a job on its CPU, and its GPUs, as many as NVIDIA's driver shows."""

from __future__ import annotations

import asyncio
import math
import re
import shutil
import socket
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import structlog

from services.kit.settings import Settings, child_environment
from services.planner.domain import Machine, Offer, ProvisionSpec
from services.planner.resource_manager.base import Order, Probe, ProviderError, Ready
from services.planner.resource_manager.choice import group_of

CPU_PLACES = 1
QUERY = ("--query-gpu=name,memory.total", "--format=csv,noheader,nounits")
QUERY_S = 10.0
SIZES_GB = (2, 4, 6, 8, 10, 11, 12, 16, 20, 24, 32, 40, 48, 64, 72, 80, 94, 96, 128, 141, 144, 180, 192, 288)
DRIVER = Path("/proc/driver/nvidia/gpus")
MODEL = re.compile(r"^Model:\s*(?P<name>.+?)\s*$", re.MULTILINE)

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Gpu:
    name: str
    memory_gb: int
    """0: not known."""


class Local:
    """Nothing is made and nothing is lost: a place is taken by a row in the store, and free when the row is released."""

    name: ClassVar[str] = "local"
    target: ClassVar[str] = "Local"

    def __init__(self, settings: Settings) -> None:
        self.host = socket.gethostname()
        self._gpus: Counter[Gpu] | None = None
        self._looking = asyncio.Lock()

    async def catalog(self) -> list[Offer]:
        """The CPU, and an offer for each kind of GPU."""
        gpus = await self._count()
        return [
            Offer(provider=self.name, instance_type=f"{self.host}/cpu"),
            *(
                Offer(
                    provider=self.name,
                    instance_type=f"{self.host}/{gpu.name}",
                    accelerator=gpu.name,
                    memory_gb=gpu.memory_gb,
                    gpus=count,
                )
                for gpu, count in gpus.items()
            ),
        ]

    def narrowed(self, spec: ProvisionSpec, offer: Offer) -> Offer | None:
        wanted = group_of(spec).gpus_per_replica
        if bool(wanted) != bool(offer.gpus) or wanted > offer.gpus:
            return None
        return replace(offer, gpus=wanted)

    def capacity(self, offer: Offer) -> int:
        if not offer.accelerator:
            return CPU_PLACES
        gpus = self._gpus or Counter()
        return sum(count for gpu, count in gpus.items() if gpu.name == offer.accelerator)

    async def launch(self, order: Order) -> Machine:
        if not order.offer.instance_type.startswith(f"{self.host}/"):  # another planner's machine, before it died
            raise ProviderError("NoCapacity", f"{order.offer.instance_type} is not this machine", retryable=True)
        return Machine(id=order.name, name=order.name, state="ready", host=self.host)

    async def probe(self, machine: Machine) -> Probe:
        return Ready(replace(machine, state="ready"))

    async def release(self, machine: Machine) -> bool:
        return True

    async def list(self) -> list[Machine]:
        return []

    async def close(self) -> None:
        pass

    async def _count(self) -> Counter[Gpu]:
        """Counted once: GPUs do not come while a machine runs."""
        async with self._looking:
            if self._gpus is None:
                self._gpus = Counter(await find_gpus())
                log.info("local accelerators", gpus={gpu.name: count for gpu, count in self._gpus.items()})
            return self._gpus


async def find_gpus() -> Sequence[Gpu]:
    """What nvidia-smi lists; without it, what the driver shows. None, if there is neither."""
    program = shutil.which("nvidia-smi")
    if program is not None:
        with suppress(OSError):  # TimeoutError is one
            return await _query(program)
        log.warning("nvidia-smi does not answer: GPUs are counted without their memory")
    return await asyncio.to_thread(_driver_gpus)


async def _query(program: str) -> list[Gpu]:
    """Error: OSError, also if it fails or hangs."""
    pipe = asyncio.subprocess.PIPE
    started = await asyncio.create_subprocess_exec(
        program, *QUERY, stdin=asyncio.subprocess.DEVNULL, stdout=pipe, stderr=pipe, env=child_environment()
    )
    try:
        async with asyncio.timeout(QUERY_S):
            output, _ = await started.communicate()
    finally:
        if started.returncode is None:
            started.kill()
            await started.wait()
    if started.returncode:
        raise OSError(f"nvidia-smi ended with {started.returncode}")
    return list(parse_query(output.decode(errors="replace")))


def parse_query(text: str) -> Sequence[Gpu]:
    """Lines such as `NVIDIA H200, 143771`: the memory in MiB, or a word, if the driver does not tell."""
    gpus = []
    for line in text.splitlines():
        name, comma, mebibytes = line.rpartition(",")
        if comma and name.strip():
            known = mebibytes.strip().isdecimal()
            gpus.append(Gpu(name.strip(), _size(int(mebibytes)) if known else 0))
    return gpus


def _size(mebibytes: int) -> int:
    """What the card is sold as, in GB: a driver shows a little less, such as 22.5 GiB of the 24 GB of an L4."""
    least = math.floor(mebibytes / 1024)
    return next((size for size in SIZES_GB if size >= least), least)


def _driver_gpus() -> list[Gpu]:
    if not DRIVER.is_dir():
        return []
    texts = [path.read_text(errors="replace") for path in sorted(DRIVER.glob("*/information"))]
    return [Gpu(match["name"], 0) for text in texts if (match := MODEL.search(text))]
