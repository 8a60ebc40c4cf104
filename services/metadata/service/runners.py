"""Which runners there are, what they can run, and which models they reach."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timedelta

from services.kit.errors import InvalidArgument
from services.kit.settings import Settings
from services.kit.transactions import Transactions, Tx
from services.metadata.domain import Model, RunnerInfo
from services.metadata.service import checks
from services.metadata.service.batches import default_endpoints
from services.metadata.store import runners

OWNER = "aibrix-batch"
MOST_NAMES = 10_000
# Runners report every five seconds; one that missed two reports may be dead.
HEARD = timedelta(seconds=12)


class RunnerRegistryService:
    def __init__(
        self,
        transactions: Transactions,
        settings: Settings,
        served: Callable[[], Iterable[tuple[str, datetime]]] = tuple,
    ) -> None:
        """`served`: the models that active templates serve, and since when they are known."""
        self.transactions = transactions
        self.served = served
        self.memory = timedelta(seconds=settings.metadata.runner_memory_s)
        self.endpoints = default_endpoints(settings)

    async def report_runner(self, runner: RunnerInfo, *, leaving: bool) -> tuple[list[str], list[str]]:
        """The server's default endpoints, and those of the runner's targets that another one has, too."""
        checks.required(id=runner.id)
        checks.at_most("id", runner.id, 255)
        for name in (runner.version, *runner.targets, *runner.models):
            checks.no_nul(runner=name)
        if len(runner.targets) > MOST_NAMES or len(runner.models) > MOST_NAMES:
            raise InvalidArgument("a runner reports too many targets or models", param="runner")

        async def work(tx: Tx) -> set[str]:
            await runners.report(tx, runner, leaving=leaving)
            return await runners.others_targets(tx, runner.id, HEARD)

        return self.endpoints, sorted(set(runner.targets) & await self.transactions.write(work))

    async def list_runners(self) -> Sequence[RunnerInfo]:
        async def work(tx: Tx) -> Sequence[RunnerInfo]:
            return await runners.list_live(tx, self.memory)

        return await self.transactions.read(work)

    async def list_models(self) -> list[Model]:
        """What active templates serve, and what live runners report of their endpoints."""

        async def work(tx: Tx) -> list[Model]:
            found = dict(self.served()) | await runners.list_models(tx, self.memory)
            return [Model(id=id, create_time=found[id], owned_by=OWNER) for id in sorted(found)]

        return await self.transactions.read(work)

    async def forget_silent(self) -> int:
        """Forget runners that have not reported for long; how many."""

        async def work(tx: Tx) -> int:
            return await runners.forget_silent(tx, self.memory)

        return await self.transactions.write(work)
