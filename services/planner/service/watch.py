"""Tells those who watch a job that it has changed: at once if it did so here, after a second if another replica did it."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import contextmanager

from services.kit.errors import QuotaExceeded
from services.kit.lifecycle import wait_for
from services.kit.transactions import Transactions, Tx
from services.planner.domain import Job
from services.planner.service import checks, views
from services.planner.service.bells import Bell
from services.planner.states import TERMINAL
from services.planner.store import jobs

MOST_WATCHERS = 1000
# So that no project takes the places of all others.
MOST_OF_A_PROJECT = 100
CODE = "rate_limit_exceeded"
RETRY_AFTER_S = 5
# Seconds after which a watcher looks by itself, in case that nobody told it.
LOOK_S = 30.0


class WatchService:
    def __init__(
        self, transactions: Transactions, most: int = MOST_WATCHERS, most_of_a_project: int = MOST_OF_A_PROJECT
    ) -> None:
        self.transactions = transactions
        self.most = most
        self.most_of_a_project = most_of_a_project
        self._bells: dict[str, Bell] = {}
        self._watchers: Counter[str] = Counter()
        self._of_projects: Counter[str] = Counter()
        self._revisions: dict[str, int] = {}
        self._closing = asyncio.Event()

    def changed(self, ids: Iterable[str]) -> None:
        """These jobs have changed here."""
        for id in ids:
            if bell := self._bells.get(id):
                bell.ring()

    def stop(self) -> None:
        """Send everybody home who watches: the server goes down."""
        self._closing.set()
        self.changed(list(self._bells))

    async def watch(self, project_id: str, id: str, after_revision: int) -> AsyncIterator[Job]:
        """The job as it is, unless it has no later revision, and again whenever it changes, until it has ended.

        Changes that follow each other faster than they are read are one. Errors: NotFound, QuotaExceeded (too many watch already).
        """
        with self._watching(project_id, id) as bell:
            seen = after_revision
            while not self._closing.is_set():
                rung = bell.listen()
                job = await self._find(project_id, id)
                self._revisions[id] = job.revision
                if job.revision > seen:
                    seen = job.revision
                    yield job
                if job.status in TERMINAL:
                    return
                await wait_for(rung, LOOK_S)

    async def look(self) -> None:
        """Find out what other replicas changed of the jobs that are watched here."""
        if not self._bells:
            return

        async def work(tx: Tx) -> dict[str, int]:
            return dict(await jobs.list_revisions(tx, list(self._bells)))

        for id, revision in (await self.transactions.read(work)).items():
            if revision > self._revisions.get(id, 0):
                self.changed([id])

    @contextmanager
    def _watching(self, project_id: str, id: str) -> Iterator[Bell]:
        if self._of_projects[project_id] >= self.most_of_a_project:
            raise too_many(f"This project watches {self.most_of_a_project} jobs, which is the most.")
        if self._of_projects.total() >= self.most:
            raise too_many(f"{self.most} jobs are watched here, which is the most.")
        self._of_projects[project_id] += 1
        self._watchers[id] += 1
        try:
            yield self._bells.setdefault(id, Bell())
        finally:
            self._of_projects[project_id] -= 1
            if not self._of_projects[project_id]:
                del self._of_projects[project_id]
            self._watchers[id] -= 1
            if not self._watchers[id]:
                del self._watchers[id], self._bells[id]
                self._revisions.pop(id, None)

    async def _find(self, project_id: str, id: str) -> Job:
        async def work(tx: Tx) -> Job | None:
            held = await jobs.find(tx, project_id, id)
            return await views.shown_whole(tx, held) if held else None

        job = None if "\0" in id else await self.transactions.read(work)
        if job is None:
            raise checks.missing_job(id)
        return job


def too_many(message: str) -> QuotaExceeded:
    """That there are too many watchers, for now."""
    return QuotaExceeded(
        f"{message} Try again later, or ask for the job itself.", code=CODE, retry_after_s=str(RETRY_AFTER_S)
    )
