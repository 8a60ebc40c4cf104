"""Fairness on the event loop: so many workers go on per round, the others in the rounds after it.

When hundreds of answers arrive together, their workers would hold the loop for tens of milliseconds, and everything else
on it (renewals of leases, other roles) would wait as often as it has steps. In turns, answers also come back spread out.
"""

from __future__ import annotations

import asyncio
from collections import deque


class Turnstile:
    def __init__(self, per_round: int) -> None:
        self._per_round = per_round
        self._left = per_round
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._scheduled = False

    def try_pass(self) -> bool:
        """Whether there is a turn left in this round."""
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._next_round)
        if self._left == 0:
            return False
        self._left -= 1
        return True

    async def wait(self) -> None:
        """Wait for a turn, after `try_pass` found none."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        await turn

    def _next_round(self) -> None:
        self._left = self._per_round
        while self._left and self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                self._left -= 1
        # Nobody went and nobody waits: sleep until the next one comes.
        self._scheduled = self._left < self._per_round
        if self._scheduled:
            asyncio.get_running_loop().call_soon(self._next_round)
