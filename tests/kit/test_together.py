"""Calls that go together: who gets which answer, and what a cancelled caller leaves behind."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from services.kit.errors import InvalidArgument, ServiceError
from services.kit.together import Together


class Gate:
    """Doubles numbers, group by group; each group waits until it is let through."""

    def __init__(self) -> None:
        self.groups: list[list[int]] = []
        self.open = asyncio.Semaphore(0)
        self.broken = False

    async def run(self, asked: Sequence[int]) -> list[int | ServiceError]:
        self.groups.append(list(asked))
        await self.open.acquire()
        if self.broken:
            raise InvalidArgument("all of them")
        return [InvalidArgument("odd") if number % 2 else number * 2 for number in asked]


async def started(gate: Gate, together: Together[int, int], *numbers: int) -> list[asyncio.Task[int]]:
    """Calls that have come as far as they come by themselves."""
    tasks = [asyncio.get_running_loop().create_task(together(number)) for number in numbers]
    for _ in range(5):
        await asyncio.sleep(0)
    return tasks


async def test_the_first_goes_alone_and_the_rest_together() -> None:
    gate = Gate()
    together = Together(gate.run, most=3)
    tasks = await started(gate, together, 0)
    tasks += await started(gate, together, 2, 4, 6, 8)
    assert gate.groups == [[0]]
    for _ in range(3):
        gate.open.release()
    assert await asyncio.gather(*tasks) == [0, 4, 8, 12, 16]
    assert gate.groups == [[0], [2, 4, 6], [8]]


async def test_each_gets_its_own_error() -> None:
    gate = Gate()
    together = Together(gate.run)
    tasks = await started(gate, together, 2)
    tasks += await started(gate, together, 3, 4)
    gate.open.release()
    gate.open.release()
    first, second, third = await asyncio.gather(*tasks, return_exceptions=True)
    assert (first, third) == (4, 8)
    assert isinstance(second, InvalidArgument)


async def test_an_error_of_the_group_is_everybodys() -> None:
    gate = Gate()
    together = Together(gate.run)
    tasks = await started(gate, together, 2)
    gate.broken = True
    gate.open.release()
    with pytest.raises(InvalidArgument):
        await tasks[0]
    gate.broken = False
    (again,) = await started(gate, together, 6)
    gate.open.release()
    assert await again == 12


async def test_who_is_cancelled_while_waiting_is_left_out() -> None:
    gate = Gate()
    together = Together(gate.run)
    (first,) = await started(gate, together, 0)
    second, third = await started(gate, together, 2, 4)
    second.cancel()
    gate.open.release()
    gate.open.release()
    assert (await first, await third) == (0, 8)
    assert gate.groups == [[0], [4]]
    with pytest.raises(asyncio.CancelledError):
        await second


async def test_who_is_cancelled_while_leading_still_serves_the_others() -> None:
    gate = Gate()
    together = Together(gate.run)
    (first,) = await started(gate, together, 0)
    gate.open.release()
    await first
    leader, follower = await started(gate, together, 2, 4)
    assert gate.groups == [[0], [2, 4]]
    leader.cancel()
    gate.open.release()
    assert await follower == 8
    with pytest.raises(asyncio.CancelledError):
        await leader
