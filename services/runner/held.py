"""A lease while we hold it: renewed in time, its goal known, and given up by ourselves before anybody else takes it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from services.kit import clock
from services.kit.errors import ServiceError, StaleLease
from services.kit.lines import LineSet
from services.runner.domain import Goal, Lease, LeaseStatus
from services.runner.leases import Leases

# Shares of the time to live: between renewals, before another try, and until we stop by ourselves.
RENEW = 0.25
TRY_AGAIN = 0.05
FENCE = 0.75

log = structlog.get_logger(__name__)


class LeaseLost(Exception):
    """The batch may be somebody else's: stop, and change nothing any more."""


class HeldLease:
    def __init__(self, leases: Leases, lease: Lease, sent_at: float, describe: Callable[[], tuple[str, int]]) -> None:
        """`describe` says the phase and the requests in flight, for people who watch."""
        self._leases = leases
        self._describe = describe
        self._ttl_s = lease.ttl_s
        # Metadata counts from some moment after the call was sent. The call that took the lease may have waited long for
        # it: then the time is taken from its answer for now, and made sure of by renewing at once.
        self._known_at = clock.monotonic()
        self._is_sure = self._known_at - sent_at < self._ttl_s * RENEW
        self._deadline_at = clock.monotonic() + lease.deadline_s
        self.batch_id = lease.batch_id
        self.token = lease.token
        self.goal = lease.goal
        self.committed = lease.committed
        self.draining = False
        self.interrupted = asyncio.Event()
        """The goal is no longer to run, or this runner leaves."""
        if self.goal is not Goal.RUN:
            self.interrupted.set()

    def drain(self) -> None:
        self.draining = True
        self.interrupted.set()

    def start_running(self) -> bool:
        """Whether lines may be run now; forgets an interruption that is over."""
        if self.goal is not Goal.RUN or self.draining:
            return False
        self.interrupted.clear()
        return True

    def learn(self, status: LeaseStatus) -> None:
        """What metadata says in its answers."""
        self._ttl_s = status.ttl_ms / 1000
        self._deadline_at = clock.monotonic() + status.deadline_ms / 1000
        self._aim(status.goal)

    def add_committed(self, lines: LineSet) -> None:
        self.committed = self.committed | lines

    async def keep(self) -> None:
        """Renew for as long as it goes. Error: LeaseLost."""
        rest = self._ttl_s * RENEW if self._is_sure else 0.0
        while True:
            await asyncio.sleep(rest)
            rest = self._ttl_s * (RENEW if await self._renewed() else TRY_AGAIN)
            if clock.monotonic() >= self._fence_at():
                raise LeaseLost("the lease could not be renewed in time")

    async def expire(self) -> None:
        """Stop at the deadline, also if metadata does not answer then."""
        while True:
            rest = self._deadline_at - clock.monotonic()
            if rest <= 0 and self.goal is Goal.RUN:
                self._aim(Goal.EXPIRE)
            await asyncio.sleep(max(rest, self._ttl_s * RENEW))

    async def refresh(self) -> None:
        """Ask for the goal now. Errors: LeaseLost, and outages."""
        await self._renew(self._ttl_s * RENEW)

    async def _renewed(self) -> bool:
        try:
            await self._renew(max(0.05, min(self._ttl_s * RENEW, self._fence_at() - clock.monotonic())))
        except ServiceError as error:
            log.warning("lease not renewed, trying again", error=error.message)
            return False
        return True

    async def _renew(self, timeout_s: float) -> None:
        sent_at = clock.monotonic()
        phase, in_flight = self._describe()
        try:
            status = await self._leases.renew(self.batch_id, self.token, phase, in_flight, timeout_s)
        except StaleLease as error:
            raise LeaseLost(error.message) from error
        self._known_at = max(self._known_at, sent_at)
        self.learn(status)

    def _fence_at(self) -> float:
        return self._known_at + self._ttl_s * FENCE

    def _aim(self, goal: Goal) -> None:
        if goal is not self.goal:
            log.info("goal changed", goal=goal.value, before=self.goal.value)
        self.goal = goal
        if goal is not Goal.RUN:
            self.interrupted.set()
