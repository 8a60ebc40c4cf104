"""The work protocol, second half: what the holder of a batch commits, and how it ends."""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from datetime import timedelta

import orjson
import structlog

from services.kit.errors import GoalChanged, IllegalTransition, InvalidArgument, LinesOverlap
from services.kit.ids import new_id
from services.kit.lines import LineSet
from services.kit.objects import ObjectStore
from services.kit.settings import Settings
from services.kit.transactions import Transactions, Tx
from services.metadata import metrics
from services.metadata.domain import (
    DEFAULT_FILE_LIFE,
    Batch,
    Commit,
    Committed,
    File,
    Finish,
    LeaseStatus,
    ResultFile,
    Segment,
    Work,
    lease_status,
)
from services.metadata.service import checks
from services.metadata.service.bells import Bells
from services.metadata.service.leases import require_current, stale
from services.metadata.states import LIFECYCLE, OUTCOMES, TERMINAL, BatchEvent, BatchState, Goal
from services.metadata.store import batches, files, leases, segments
from services.metadata.store.tables import batches as table

LARGEST_PAGE = 5000
MOST_ERRORS = 100
GIVEN_UP = frozenset({"input_unavailable", "internal_error"})
# Far above any setting for the lines of a batch.
MOST_LINES = 1 << 24

log = structlog.get_logger(__name__)


class CommitService:
    def __init__(self, transactions: Transactions, objects: ObjectStore, bells: Bells, settings: Settings) -> None:
        self.transactions = transactions
        self.objects = objects
        self.bells = bells
        self.ttl = timedelta(seconds=settings.metadata.lease_ttl_s)

    async def commit_segment(self, commit: Commit) -> Committed:
        check_segment(commit)
        lines = line_set(commit)
        digest = digest_of(commit, lines)
        id, token, sequence = commit.batch_id, commit.segment.token, commit.segment.sequence

        async def work(tx: Tx) -> tuple[Committed, bool]:
            held = require_current(await leases.lock(tx, id), id, token)
            known = await segments.find_digest(tx, id, token, sequence)
            if known is None:
                await self._add(tx, held.batch, commit, lines, digest)
            elif known != digest:
                raise LinesOverlap(f"segment {sequence} of token {token} was committed with other lines", batch_id=id)
            batch = await leases.renew(tx, id, token, self.ttl, **await segments.sums(tx, id))
            if batch is None:
                raise stale(id, token)
            return Committed(
                status=lease_status(batch, tx.now, self.ttl), committed_count=batch.committed_count
            ), known is None

        with metrics.COMMIT_SECONDS.time():
            committed, is_new = await self.transactions.write(work)
        if is_new:
            metrics.SEGMENTS.inc()
            metrics.LINES.labels("completed").inc(commit.segment.completed_count)
            metrics.LINES.labels("failed").inc(commit.segment.failed_count)
        return committed

    @staticmethod
    async def _add(tx: Tx, batch: Batch, commit: Commit, lines: LineSet, digest: str) -> None:
        if batch.state is BatchState.FINALIZING:
            raise IllegalTransition("the batch is being finalized: nothing is committed any more", state=batch.state)
        if lines.max() >= batch.total_count:
            raise InvalidArgument(f"the batch has only {batch.total_count} lines", param="lines")
        before = await segments.committed(tx, batch.id)
        if not lines.isdisjoint(before):
            raise LinesOverlap("the segment holds lines that are committed already", batch_id=batch.id)
        await segments.insert(tx, batch.id, commit.segment, commit.usage, digest)
        await segments.set_committed(tx, batch.id, before | lines)

    async def list_segments(
        self, batch_id: str, token: int, *, page_size: int, after: tuple[int, int]
    ) -> tuple[list[Segment], bool]:
        """One page, and whether there is more behind it."""
        size = checks.page_size(page_size, LARGEST_PAGE, LARGEST_PAGE)

        async def work(tx: Tx) -> list[Segment]:
            require_current(await leases.find(tx, batch_id), batch_id, token)
            return await segments.page(tx, batch_id, after, size + 1)

        found = await self.transactions.read(work)
        return found[:size], len(found) > size

    async def begin_finalize(self, batch_id: str, token: int) -> LeaseStatus:
        async def work(tx: Tx) -> LeaseStatus:
            batch = require_current(await leases.lock(tx, batch_id), batch_id, token).batch
            if batch.state is BatchState.IN_PROGRESS:
                missing = batch.total_count - batch.committed_count
                if missing and batch.goal(tx.now) is Goal.RUN:
                    raise IllegalTransition(f"{missing} lines are not committed yet", state=batch.state)
                (batch,) = await batches.move(tx, BatchEvent.FINALIZE, table.c.id == batch_id)
            renewed = await leases.renew(tx, batch_id, token, self.ttl)
            if renewed is None:
                raise stale(batch_id, token)
            return lease_status(renewed, tx.now, self.ttl)

        return await self.transactions.write(work)

    async def finish_batch(self, finish: Finish) -> Batch:
        check_finish(finish)

        async def look(tx: Tx) -> Work | None:
            return await leases.find(tx, finish.batch_id)

        if done := finished_by(await self.transactions.read(look), finish):
            return done
        for result in (finish.output, finish.error):
            await self._require_stored(result)

        async def work(tx: Tx) -> tuple[Batch, bool]:
            found = await leases.lock(tx, finish.batch_id)
            if done := finished_by(found, finish):
                return done, False
            held = require_current(found, finish.batch_id, finish.token)
            check_outcome(held.batch, finish, tx)
            return await self._end(tx, held.batch, finish), True

        batch, is_new = await self.transactions.write(work)
        if is_new:
            metrics.ended(batch)
            log.info(
                "batch ended",
                batch_id=batch.id,
                state=batch.state,
                total=batch.total_count,
                completed=batch.completed_count,
                failed=batch.failed_count,
            )
            self.bells.to_clean.ring()
        return batch

    async def _require_stored(self, result: ResultFile | None) -> None:
        """A file id is shown to users only if the object behind it is there, whole."""
        if result is None:
            return
        stored = (await self.objects.head(result.object_key)).bytes
        if stored != result.bytes:
            message = f"the object has {stored} bytes, not {result.bytes}"
            raise InvalidArgument(message, param="object_key")

    @staticmethod
    async def _end(tx: Tx, batch: Batch, finish: Finish) -> Batch:
        values: dict[str, object] = {"errors": [asdict(error) for error in finish.errors] or None}
        for kind, result in (("output", finish.output), ("error", finish.error)):
            if result is not None:
                file = result_file(batch, kind, result, tx)
                await files.insert(tx, file)
                values[f"{kind}_file_id"] = file.id
        moved = await batches.move(tx, OUTCOMES[finish.outcome], table.c.id == batch.id, **values)
        (ended,) = moved
        return ended


def check_segment(commit: Commit) -> None:
    segment = commit.segment
    if segment.token < 1 or segment.sequence < 1:
        raise InvalidArgument("token and sequence count from 1", param="segment.sequence")
    kinds = (
        (segment.output_key, segment.completed_count, segment.output_bytes),
        (segment.error_key, segment.failed_count, segment.error_bytes),
    )
    for key, count, size in kinds:
        if count < 0 or size < 0 or (key is None) != (count == 0):
            raise InvalidArgument("an object goes with lines of its kind, and only with them", param="segment")
        if key is not None:
            checks.object_key(key, f"segments/{commit.batch_id}/")
    if any(tokens < 0 for tokens in asdict(commit.usage).values()):
        raise InvalidArgument("a token count is negative", param="usage")


def line_set(commit: Commit) -> LineSet:
    """The lines of a segment; refused before a far-away `first` makes a huge number of it."""
    first, bits = commit.lines.first, commit.lines.bits
    if not 0 <= first <= MOST_LINES or len(bits) > MOST_LINES // 8:
        raise InvalidArgument("the line set is out of range", param="lines")
    lines = LineSet.from_bytes(bits, first)
    count = commit.segment.completed_count + commit.segment.failed_count
    if not lines or len(lines) != count:
        raise InvalidArgument(f"the line set has {len(lines)} lines, the counts say {count}", param="lines")
    return lines


def digest_of(commit: Commit, lines: LineSet) -> str:
    """What the same call has again after a lost answer."""
    parts = [asdict(commit.segment), asdict(commit.usage), lines.to_bytes(lines.min()).hex(), lines.min()]
    return hashlib.sha256(orjson.dumps(parts, option=orjson.OPT_SORT_KEYS)).hexdigest()


def finished_by(work: Work | None, finish: Finish) -> Batch | None:
    """The batch, if this very call ended it before."""
    if work is None or work.batch.state not in TERMINAL or work.lease_token != finish.token:
        return None
    return work.batch if work.batch.state is finish.outcome else None


def check_finish(finish: Finish) -> None:
    if finish.outcome not in OUTCOMES:
        raise InvalidArgument("the outcome must be COMPLETED, CANCELLED, EXPIRED or FAILED", param="outcome")
    for result in (finish.output, finish.error):
        if result is not None:
            checks.object_key(result.object_key, f"results/{finish.batch_id}/{finish.token}/")
            if result.line_count < 1 or result.bytes < 1:
                raise InvalidArgument("a result file without lines is left out", param="line_count")
    if (finish.outcome is BatchState.FAILED) != bool(finish.errors) or len(finish.errors) > MOST_ERRORS:
        raise InvalidArgument(f"FAILED comes with 1 to {MOST_ERRORS} errors, others with none", param="errors")
    checks.no_nul(errors="".join(error.code + error.message for error in finish.errors))


def check_outcome(batch: Batch, finish: Finish, tx: Tx) -> None:
    """Whether this outcome agrees with the state, the deadline and the lines; of several outcomes the first wins."""
    outcome = finish.outcome
    if batch.state is BatchState.CANCELLING and outcome is not BatchState.CANCELLED and not is_given_up(finish):
        raise GoalChanged("the batch is being cancelled: finish it as CANCELLED", goal=Goal.CANCEL)
    LIFECYCLE.after(batch.state, OUTCOMES[outcome])
    if outcome is BatchState.FAILED:
        return
    if outcome is BatchState.EXPIRED and batch.expire_time > tx.now:
        raise IllegalTransition("the deadline of the batch has not passed", state=batch.state)
    if outcome is BatchState.COMPLETED and batch.committed_count != batch.total_count:
        if batch.goal(tx.now) is Goal.EXPIRE:
            raise GoalChanged("the deadline of the batch has passed: finish it as EXPIRED", goal=Goal.EXPIRE)
        raise IllegalTransition("lines are not committed yet", state=batch.state)
    check_counts(batch, finish)


def is_given_up(finish: Finish) -> bool:
    """It cannot end otherwise, cancelled or not: nobody can write the lines that were not run."""
    return finish.outcome is BatchState.FAILED and finish.errors[0].code in GIVEN_UP


def check_counts(batch: Batch, finish: Finish) -> None:
    """Every line stands in one of the two files: the completed ones in the output, all others in the error file."""
    output = finish.output.line_count if finish.output else 0
    error = finish.error.line_count if finish.error else 0
    expected = (batch.completed_count, batch.total_count - batch.completed_count)
    if (output, error) != expected:
        message = f"the files have {output} and {error} lines, but must have {expected[0]} and {expected[1]}"
        raise InvalidArgument(message, param="line_count")


def result_file(batch: Batch, kind: str, result: ResultFile, tx: Tx) -> File:
    seconds = batch.output_expires_after_s
    life = DEFAULT_FILE_LIFE if seconds is None else timedelta(seconds=seconds)
    return File(
        id=new_id("file-"),
        project_id=batch.project_id,
        purpose="batch_output",
        filename=f"{batch.id}_{kind}.jsonl",
        bytes=result.bytes,
        create_time=tx.now,
        expire_time=tx.now + life,
        object_key=result.object_key,
    )
