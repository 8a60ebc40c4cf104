"""Tells an autoscaler how many runners the present work deserves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping

import structlog

from services.kit.errors import InvalidArgument, ServiceError
from services.kit.lifecycle import wait_for
from services.kit.settings import Settings
from services.kit.transactions import Transactions, Tx
from services.metadata.scaling import Backlog, Wishes, read_wishes
from services.metadata.service.bells import Bells
from services.metadata.store import backlog

METRIC = "backlog-slots"
# Seconds between two looks at the database of those who watch: the end of work rings no bell, nor does another replica.
POLL_S = 1.0

log = structlog.get_logger(__name__)


class BacklogService:
    """`metadata` is that of a ScaledObject's trigger. Each call may raise InvalidArgument with the key that is wrong."""

    def __init__(self, transactions: Transactions, bells: Bells, settings: Settings) -> None:
        self.transactions = transactions
        self.bells = bells
        self.slot_count = settings.runner.slots
        self._closing = asyncio.Event()

    def stop_waiting(self) -> None:
        """End the streams of all who watch: the server goes down."""
        self._closing.set()
        self.bells.to_lease.ring()

    def slots_per_runner(self, metadata: Mapping[str, str]) -> int:
        return read_wishes(metadata).slots_per_runner or self.slot_count

    async def slots(self, metadata: Mapping[str, str], metric: str) -> float:
        """How many slots the work deserves."""
        wishes = read_wishes(metadata)
        if metric != METRIC:
            message = f"Invalid value for 'metricName': the only metric is '{METRIC}'."
            raise InvalidArgument(message, param="metricName", code="invalid_value")

        async def look(tx: Tx) -> Backlog:
            return await backlog.measure(tx, wishes)

        return (await self.transactions.read(look)).slots()

    async def is_active(self, metadata: Mapping[str, str]) -> bool:
        """Whether there is any work."""
        return await self._is_any(read_wishes(metadata))

    async def watch_active(self, metadata: Mapping[str, str]) -> AsyncIterator[bool]:
        """Whether there is any work: now, and whenever that changes, until the server goes down."""
        wishes = read_wishes(metadata)
        known: bool | None = None
        while not self._closing.is_set():
            rung = self.bells.to_lease.listen()
            try:
                active = await self._is_any(wishes)
            except ServiceError as error:
                # KEDA would come back ever later: better that it waits here.
                log.warning("no look at the backlog, trying again", error=error.message)
            else:
                if active is not known:
                    known = active
                    yield active
            # The bell only says that there is more: who knows of some need not look again each time.
            await wait_for(self._closing if known else rung, POLL_S)

    async def _is_any(self, wishes: Wishes) -> bool:
        async def look(tx: Tx) -> bool:
            return await backlog.is_any(tx, wishes)

        return await self.transactions.read(look)
