"""What a look at a job leads to, as data; and how it is written, many of them in one transaction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from services.kit.errors import ServiceError
from services.kit.together import Together
from services.kit.transactions import Transactions, Tx
from services.planner import metrics
from services.planner.service.bells import Bells
from services.planner.service.watch import WatchService
from services.planner.states import TERMINAL, JobEvent, JobState
from services.planner.store import events, leases, moves
from services.planner.store.events import Line, Timelines
from services.planner.store.jobs import Held

LONGEST_ERROR = 4000


@dataclass(frozen=True, kw_only=True)
class Change:
    """Lines come first, then the moves in order; the values go with the last statement."""

    lines: tuple[Line, ...] = ()
    moves: tuple[tuple[JobEvent, Line], ...] = ()
    values: Mapping[str, Any] = field(default_factory=dict)
    due: datetime | None = None
    """When somebody should look again. None: we go on at once, unless the job has ended."""
    rests: bool = False
    """Nobody needs to look again."""


def moved(event: JobEvent, line: Line, **values: Any) -> Change:
    return Change(moves=((event, line),), values=values)


def later(held: Held, seconds: float, *lines: Line, **values: Any) -> Change:
    """Look again in so many seconds; at the deadline, if that is earlier."""
    due = held.now + timedelta(seconds=seconds)
    return Change(lines=lines, values=values, due=due if held.is_late else min(due, held.job.expires_time))


def failed(event: JobEvent, code: str, message: str, *, label: str, source: str = "planner", **values: Any) -> Change:
    """The end of a job that somebody should know the reason of."""
    text = plain(message)[:LONGEST_ERROR]
    said = {"error_code": plain(code)[:64] or "failed", "error_message": text}
    return moved(event, Line(label, text, source), **said, **values)


def plain(text: str) -> str:
    """As both databases store it."""
    return text.replace("\0", "?")


class Writer:
    """Writes changes of jobs that this process holds, and tells those who wait for them."""

    def __init__(self, transactions: Transactions, bells: Bells, watch: WatchService) -> None:
        self.transactions = transactions
        self.bells = bells
        self.watch = watch
        self._together: Together[tuple[Held, Change], Held | None] = Together(self._write_all)

    async def write(self, held: Held, change: Change) -> Held | None:
        """The job after it; None if it is no longer ours, or has been cancelled meanwhile: then nothing is written."""
        after = await self._together((held, change))
        if after is not None:
            self._tell(held, after)
        return after

    async def let_go(self, held: Held) -> None:
        """Leave the job to whoever looks next."""

        async def work(tx: Tx) -> None:
            await leases.let_go(tx, held)

        await self.transactions.write(work)
        self.bells.to_act.ring()

    async def _write_all(self, changes: Sequence[tuple[Held, Change]]) -> Sequence[Held | ServiceError | None]:
        async def work(tx: Tx) -> list[Held | ServiceError | None]:
            # Rows are locked in one order everywhere, so that two planners do not wait for each other.
            ordered = sorted(changes, key=lambda one: one[0].job.id)
            async with events.telling(tx) as said:
                after = {held.job.id: await apply(tx, said, held, change) for held, change in ordered}
            return [after[held.job.id] for held, _ in changes]

        return await self.transactions.write(work)

    def _tell(self, before: Held, after: Held) -> None:
        job = after.job
        if job.revision != before.job.revision:
            self.watch.changed([job.id])
        if job.status in TERMINAL and before.job.status not in TERMINAL:
            metrics.ended(job)
            self.bells.to_act.ring()  # for its release, and for those that share its compute
        if job.status is JobState.RESOURCE_PREPARING and before.job.status is not job.status:
            self.bells.to_wake.ring()  # its compute may have been ready before we wrote that it waits
        if job.status in (*TERMINAL, JobState.RESOURCE_PREPARING, JobState.QUEUED):
            self.bells.to_plan.ring()


async def apply(tx: Tx, said: Timelines, held: Held, change: Change) -> Held | None:
    """Write one change; None if the job is no longer ours, or in another state than it was."""
    ending = _ending(change)
    now: Held | None = held
    if change.lines or not change.moves:
        now = await moves.note(tx, said, held, change.lines, **({} if change.moves else {**change.values, **ending}))
    for number, (event, line) in enumerate(change.moves, start=1):
        if now is None:
            return None
        values = {**change.values, **ending} if number == len(change.moves) else {}
        found = await moves.move(tx, said, event, line, *moves.held_by(now), **values)
        now = found[0] if found else None
    if now is not None:
        await _wake_others(tx, held, now)
    return now


def _ending(change: Change) -> dict[str, Any]:
    if change.due is None and not change.rests:
        return {}
    return {"due_time": change.due, "lease_owner": None, "lease_expire_time": None}


async def _wake_others(tx: Tx, before: Held, after: Held) -> None:
    """The next one on its compute, if the job leaves it."""
    left = before.job.provision_id
    gone = after.job.status in TERMINAL and before.job.status not in TERMINAL
    if left is not None and (gone or after.job.provision_id != left):
        await leases.wake_sharing(tx, left)
