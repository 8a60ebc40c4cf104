"""Group commit: calls that come while one is on its way wait, and then go together as one transaction."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from services.kit.errors import ServiceError
from services.kit.lifecycle import uninterrupted

A = TypeVar("A")
R = TypeVar("R")


class _Call(Generic[A, R]):
    __slots__ = ("asked", "outcome")

    def __init__(self, asked: A) -> None:
        self.asked = asked
        self.outcome: tuple[R | BaseException] | None = None


class Together(Generic[A, R]):
    """`run` is given what up to `most` callers ask, in order, and returns for each a result, or the error that is its own.

    An error that `run` raises is that of all of them. A caller that is cancelled before its turn is left out.
    """

    def __init__(self, run: Callable[[Sequence[A]], Awaitable[Sequence[R | ServiceError]]], most: int = 64) -> None:
        self._run = run
        self._most = most
        self._waiting: deque[_Call[A, R]] = deque()
        self._turn = asyncio.Lock()

    async def __call__(self, asked: A) -> R:
        mine: _Call[A, R] = _Call(asked)
        self._waiting.append(mine)
        try:
            async with self._turn:
                while mine.outcome is None:  # unless one before took it along
                    await uninterrupted(self._serve())
        finally:
            if mine in self._waiting:
                self._waiting.remove(mine)
        (outcome,) = mine.outcome
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    async def _serve(self) -> None:
        group = [self._waiting.popleft() for _ in range(min(self._most, len(self._waiting)))]
        try:
            outcomes: Sequence[R | BaseException] = await self._run([call.asked for call in group])
        except Exception as error:  # noqa: BLE001 - each caller raises it
            outcomes = [error] * len(group)
        for call, outcome in zip(group, outcomes, strict=True):
            call.outcome = (outcome,)
