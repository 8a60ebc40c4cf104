"""Several runners, leases that end, commits that come twice, cancels and deadlines, in any order, against a small model."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from services.kit.errors import GoalChanged, IllegalTransition, LinesOverlap, ServiceError, StaleLease
from services.kit.lines import LineSet
from services.kit.objects import open_store
from services.kit.settings import Settings
from services.kit.sql import Database, create_engine
from services.kit.transactions import Transactions
from services.metadata.domain import Batch, BatchError, Commit, Finish, Lines, ResultFile, Segment, Usage
from services.metadata.service.batches import BatchService
from services.metadata.service.bells import Bells
from services.metadata.service.commits import CommitService
from services.metadata.service.leases import LeaseService
from services.metadata.states import TERMINAL, BatchState, Goal
from services.metadata.store import batches, leases, segments
from services.metadata.store.tables import schema
from tests.metadata.conftest import CHAT, Clock

S = BatchState
TOTAL = 6
TTL_S = 10
WINDOW_S = 100
LIVE = (S.IN_PROGRESS, S.FINALIZING, S.CANCELLING)

which = st.integers(0, 1)
# How many leases ago the caller got its token: mostly the last one, else a zombie's.
age = st.sampled_from([0, 0, 0, 0, 1])
sequences = st.integers(1, 4)
outcomes = st.sampled_from([S.COMPLETED, S.COMPLETED, S.EXPIRED, S.EXPIRED, S.CANCELLED, S.FAILED])


@dataclass
class Model:
    """What one batch should look like."""

    id: str
    state: BatchState = S.IN_PROGRESS
    token: int = 0
    held: bool = False
    lease_end: float = 0.0
    good: set[int] = field(default_factory=set)
    bad: set[int] = field(default_factory=set)
    commits: dict[tuple[int, int], tuple[frozenset[int], frozenset[int]]] = field(default_factory=dict)

    @property
    def done(self) -> int:
        return len(self.good) + len(self.bad)

    def current(self, token: int) -> bool:
        return self.held and self.token == token

    def goal(self, now: float) -> Goal:
        if self.state is S.CANCELLING:
            return Goal.CANCEL
        return Goal.EXPIRE if now >= WINDOW_S and self.done < TOTAL else Goal.RUN


class Machine(RuleBasedStateMachine):
    url = ""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.runner = asyncio.Runner()
        self.clock, self.now = Clock(), 0.0
        settings = Settings(data_dir=self.folder, default_endpoint="http://127.0.0.1:9")
        self.engine = create_engine(self.url or settings.database_url())
        self.transactions = Transactions(Database(self.engine), self.clock)
        self.objects = open_store(settings)
        bells = Bells()
        self.batches = BatchService(self.transactions, bells, settings)
        self.leases = LeaseService(self.transactions, bells, settings)
        self.commits = CommitService(self.transactions, self.objects, bells, settings)
        self.models = [Model("batch_0"), Model("batch_1")]
        self.runner.run(self.prepare())

    async def prepare(self) -> None:
        async with self.engine.begin() as connection:
            await connection.run_sync(schema.drop_all)
            await connection.run_sync(schema.create_all)

        async def work(tx):
            for model in self.models:
                batch = Batch(
                    id=model.id,
                    project_id="p",
                    state=S.VALIDATING,
                    endpoint=CHAT,
                    input_file_id="f",
                    completion_window="x",
                    create_time=tx.now,
                    expire_time=tx.now + timedelta(seconds=WINDOW_S),
                )
                row = batches.row_of(batch, target="External", priority=0, resolved_json=None)
                await batches.insert_all(tx, [row])
                await batches.start(tx, model.id, 0, total_count=TOTAL, index_key="i", input_key="k", input_bytes=1)

        await self.transactions.write(work)

    def teardown(self) -> None:
        self.runner.run(self.engine.dispose())
        self.runner.close()
        shutil.rmtree(self.folder)

    def outcome(self, call):
        """What a call raised, or None."""
        try:
            self.runner.run(call)
        except ServiceError as error:
            return type(error)
        return None

    @rule(runner=st.sampled_from(["a", "b", "c"]))
    def acquire(self, runner):
        self.lease(runner, "")

    def lease(self, runner, batch_id):
        free = {m.id: m for m in self.models if m.state in LIVE and not (m.held and m.lease_end > self.now)}
        asked = {"wait_ms": 0, "protocol_version": 1, "batch_id": batch_id}
        lease = self.runner.run(self.leases.acquire_lease(runner, ["External"], **asked))
        assert (lease is None) == (not free)
        if lease is None:
            return
        model = free[lease.batch.id]
        assert lease.token == model.token + 1
        assert lease.goal is model.goal(self.now)
        assert set(LineSet.from_bytes(lease.committed.bits, lease.committed.first)) == model.good | model.bad
        model.token, model.held, model.lease_end = lease.token, True, self.now + TTL_S

    def pick(self, which, age):
        """A batch, and a token of it that was given out; nobody calls without having leased."""
        model = self.models[which]
        if age == 0 and not model.held and model.state in LIVE:
            self.lease("d", model.id)
        return model, max(model.token - age, 1)

    @rule(
        which=which,
        age=age,
        sequence=sequences,
        lines=st.dictionaries(st.integers(0, TOTAL - 1), st.booleans(), min_size=1, max_size=3),
    )
    def commit(self, which, age, sequence, lines):
        good = frozenset(line for line, is_good in lines.items() if is_good)
        self.send(*self.pick(which, age), sequence, good, frozenset(lines) - good)

    @rule(which=which, sequence=sequences)
    def commit_the_rest(self, which, sequence):
        model, token = self.pick(which, 0)
        rest = frozenset(range(TOTAL)) - model.good - model.bad
        if rest:
            self.send(model, token, sequence, rest, frozenset())

    @rule(which=which, age=age, sequence=sequences)
    def commit_again(self, which, age, sequence):
        model, token = self.pick(which, age)
        if (token, sequence) in model.commits:
            self.send(model, token, sequence, *model.commits[token, sequence])

    def send(self, model, token, sequence, good, bad):
        expected = self.commit_expected(model, token, sequence, good, bad)
        assert self.outcome(self.commits.commit_segment(a_commit(model.id, token, sequence, good, bad))) is expected
        if expected is None:
            model.lease_end = self.now + TTL_S
            model.commits[token, sequence] = (good, bad)
            model.good |= good
            model.bad |= bad

    @staticmethod
    def commit_expected(model, token, sequence, good, bad):
        if not model.current(token):
            return StaleLease
        if (token, sequence) in model.commits:
            return None if model.commits[token, sequence] == (good, bad) else LinesOverlap
        if model.state is S.FINALIZING:
            return IllegalTransition
        return LinesOverlap if (good | bad) & (model.good | model.bad) else None

    @rule(which=which, age=age)
    def renew(self, which, age):
        model, token = self.pick(which, age)
        expected = None if model.current(token) else StaleLease
        assert self.outcome(self.leases.renew_lease(model.id, token, phase="x", in_flight=1)) is expected
        if expected is None:
            model.lease_end = self.now + TTL_S

    @rule(which=which, age=age)
    def release(self, which, age):
        model, token = self.pick(which, age)
        assert self.outcome(self.leases.release_lease(model.id, token, reason="x", retry_after_ms=0)) is None
        if model.current(token):
            model.held = False

    @rule(seconds=st.sampled_from([1, 5, TTL_S, TTL_S, WINDOW_S]))
    def time_passes(self, seconds):
        self.clock.advance(seconds)
        self.now += seconds

    @rule(which=which)
    def cancel(self, which):
        model = self.models[which]
        refused = model.state in TERMINAL and model.state is not S.CANCELLED
        expected = IllegalTransition if refused else None
        assert self.outcome(self.batches.cancel_batch("p", model.id)) is expected
        if model.state in (S.IN_PROGRESS, S.FINALIZING):
            model.state = S.CANCELLING

    @rule(which=which, age=age)
    def finalize(self, which, age):
        model, token = self.pick(which, age)
        expected = None
        if not model.current(token):
            expected = StaleLease
        elif model.state is S.IN_PROGRESS and model.done < TOTAL and model.goal(self.now) is Goal.RUN:
            expected = IllegalTransition
        assert self.outcome(self.commits.begin_finalize(model.id, token)) is expected
        if expected is None:
            model.lease_end = self.now + TTL_S
            if model.state is S.IN_PROGRESS:
                model.state = S.FINALIZING

    @rule(which=which, age=age, outcome=outcomes)
    def finish(self, which, age, outcome):
        model, token = self.pick(which, age)
        expected = self.finish_expected(model, token, outcome)
        assert self.outcome(self.send_finish(model, token, outcome)) is expected
        if expected is None:
            model.state, model.held = outcome, False

    def finish_expected(self, model, token, outcome):
        if model.state in TERMINAL and model.token == token and model.state is outcome:
            return None
        if not model.current(token):
            return StaleLease
        if model.state is S.CANCELLING:
            return None if outcome is S.CANCELLED else GoalChanged
        legal = {
            S.CANCELLED: False,
            S.FAILED: True,
            S.EXPIRED: self.now >= WINDOW_S,
            S.COMPLETED: model.state is S.FINALIZING,
        }[outcome]
        if not legal:
            return IllegalTransition
        if outcome is S.COMPLETED and model.done < TOTAL:
            return GoalChanged
        return None

    async def send_finish(self, model, token, outcome):
        files = {}
        if outcome is not S.FAILED:
            for kind, count in (("output", len(model.good)), ("error", TOTAL - len(model.good))):
                if count:
                    key = f"results/{model.id}/{token}/{kind}.jsonl"
                    await self.objects.put(key, b"x" * count)
                    files[kind] = ResultFile(object_key=key, bytes=count, line_count=count)
        errors = [BatchError(code="x", message="y")] if outcome is S.FAILED else []
        finish = Finish(batch_id=model.id, token=token, outcome=outcome, errors=errors, **files)
        await self.commits.finish_batch(finish)

    @invariant()
    def the_database_says_what_the_model_says(self):
        async def look(tx):
            return [(await leases.find(tx, model.id), await segments.committed(tx, model.id)) for model in self.models]

        for model, (work, lines) in zip(self.models, self.runner.run(self.transactions.read(look)), strict=True):
            batch = work.batch
            assert batch.state is model.state
            assert (work.lease_token, work.lease_owner is not None) == (model.token, model.held)
            assert (batch.completed_count, batch.failed_count) == (len(model.good), len(model.bad))
            assert batch.usage.total_tokens == model.done
            assert set(lines) == model.good | model.bad
            if batch.state is S.COMPLETED:
                assert batch.completed_count + batch.failed_count == batch.total_count


def a_commit(id, token, sequence, good, bad):
    lines = LineSet.of([*good, *bad])
    segment = Segment(
        token=token,
        sequence=sequence,
        output_key=f"segments/{id}/{token}-{sequence}.out.jsonl" if good else None,
        error_key=f"segments/{id}/{token}-{sequence}.err.jsonl" if bad else None,
        completed_count=len(good),
        failed_count=len(bad),
    )
    return Commit(
        batch_id=id,
        segment=segment,
        lines=Lines(first=lines.min(), bits=lines.to_bytes(lines.min())),
        usage=Usage(total_tokens=len(lines)),
    )


def test_on_sqlite():
    run_state_machine_as_test(Machine, settings=hypothesis_settings(max_examples=50, stateful_step_count=40))


def test_on_postgres(postgres_url):
    class OnPostgres(Machine):
        url = postgres_url

    run_state_machine_as_test(OnPostgres, settings=hypothesis_settings(max_examples=15, stateful_step_count=30))
