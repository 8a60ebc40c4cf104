"""Looks at the input file of a new batch, and starts the batch or fails it."""

from __future__ import annotations

import asyncio
import threading
from datetime import timedelta

import structlog

from services.kit.errors import InvalidArgument, NotFound, ServiceError
from services.kit.ids import new_id
from services.kit.lifecycle import background
from services.kit.objects import ObjectStore
from services.kit.settings import Settings
from services.kit.spec.block import parse_block
from services.kit.spec.profile import Quota
from services.kit.spec.resolved import parse_resolved
from services.kit.transactions import Transactions, Tx
from services.metadata import metrics, validation
from services.metadata.domain import Batch, BatchError, File, Validated, Work
from services.metadata.service.batches import Order, largest_quota
from services.metadata.service.bells import Bells
from services.metadata.store import batches, files, leases

# After an outage of the object store, a batch rests this long before its file is looked at again.
REST = timedelta(seconds=2)
# After an error of our own, likewise.
LONG_REST = timedelta(seconds=30)

log = structlog.get_logger(__name__)


class InspectionService:
    def __init__(self, transactions: Transactions, objects: ObjectStore, bells: Bells, settings: Settings) -> None:
        self.transactions = transactions
        self.objects = objects
        self.bells = bells
        self.ttl = timedelta(seconds=settings.metadata.lease_ttl_s)
        self.largest = largest_quota(settings)
        self.line_bytes = settings.metadata.max_line_bytes
        self.owner = new_id("validator:")
        self.found_one = False

    async def inspect_next(self) -> bool:
        """Take a batch that waits for its validation, and validate it; whether there was one."""
        claimed = await self._claim()
        if claimed is None:
            return False
        held, file = claimed
        try:
            with metrics.VALIDATION_SECONDS.time():
                await self._inspect(held, file)
        except InvalidArgument as error:
            # An earlier version took this block; nobody can read it now, and waiting would not help.
            await self._fail(held, [BatchError(code="invalid_request", message=error.message)])
        except ServiceError as error:
            log.warning("validation is put off", batch_id=held.batch.id, reason=error.reason, error=error.message)
            await self._put_off(held, REST)
        except validation.Abandoned:
            log.info("validation was taken over or is over", batch_id=held.batch.id)
        except Exception:
            log.exception("validation broke", batch_id=held.batch.id)
            await self._put_off(held, LONG_REST)
        return True

    async def validate(self, order: Order) -> Validated:
        """What validating this batch would find. Errors: Unavailable, ServiceError."""
        new, quota = order.new, order.quota or self.largest

        async def work(tx: Tx) -> File | None:
            return await files.find(tx, new.project_id, new.input_file_id)

        file = await self.transactions.read(work)
        if wrong := unusable(new.input_file_id, new.project_id, file, quota):
            return Validated(errors=[wrong])
        assert file is not None
        gone = threading.Event()
        try:
            found = await asyncio.to_thread(self._read, file, new.endpoint, quota, gone)
        except NotFound:
            return Validated(errors=[cannot_find(new.input_file_id, new.project_id)])
        finally:
            gone.set()
        if found.errors:
            return Validated(errors=found.errors)
        return Validated(total_count=found.count, model=order.block.model or found.model)

    def _read(self, file: File, endpoint: str, quota: Quota, gone: threading.Event) -> validation.Findings:
        """In a thread. Errors: ServiceError; Abandoned, once `gone` is set."""
        limits = validation.Limits(lines=quota.max_requests_per_batch, line_bytes=self.line_bytes)
        return validation.check(self.objects.stream_sync(file.object_key), endpoint, limits, lambda: not gone.is_set())

    async def _claim(self) -> tuple[Work, File | None] | None:
        """The batch that waits longest, leased, and its input file. None: none waits."""

        async def look(tx: Tx) -> bool:
            return await leases.has_unvalidated(tx)

        async def work(tx: Tx) -> tuple[Work, File | None] | None:
            id = await leases.pick_unvalidated(tx)
            if id is None:
                return None
            held = await leases.take(tx, id, self.owner, self.ttl, attempts=0)
            return held, await files.find(tx, held.batch.project_id, held.batch.input_file_id)

        # Where there was one there may be another. Otherwise a look costs no write lock.
        if not self.found_one and not await self.transactions.read(look):
            return None
        claimed = await self.transactions.write(work)
        self.found_one = claimed is not None
        return claimed

    async def _put_off(self, held: Work, rest: timedelta) -> None:
        async def work(tx: Tx) -> None:
            await leases.release(tx, held.batch.id, held.lease_token, rest)

        await self.transactions.write(work)

    async def _inspect(self, held: Work, file: File | None) -> None:
        batch = held.batch
        block = parse_block(batch.aibrix_json)
        profile = parse_resolved(held.resolved_json, block).profile
        quota = profile.spec.quota if profile else self.largest
        if wrong := unusable(batch.input_file_id, batch.project_id, file, quota):
            await self._fail(held, [wrong])
            return
        assert file is not None
        found = await self._read_under_lease(held, file, quota)
        if isinstance(found, NotFound):
            await self._fail(held, [cannot_find(batch.input_file_id, batch.project_id)])
            return
        if isinstance(found, Exception):
            raise found
        if found.errors:
            await self._fail(held, found.errors)
            return
        await self._start(held, file, found, block.model)

    async def _read_under_lease(
        self, held: Work, file: File, quota: Quota
    ) -> validation.Findings | ServiceError | validation.Abandoned:
        """What the file holds, read in a thread. The thread stops when the lease is lost or the server goes down."""
        gone = threading.Event()

        async with background(self._renew(held, gone)):
            try:
                return await asyncio.to_thread(self._read, file, held.batch.endpoint, quota, gone)
            except (ServiceError, validation.Abandoned) as error:
                return error  # raised in here, it would come out as a group
            finally:
                gone.set()

    async def _renew(self, held: Work, gone: threading.Event) -> None:
        async def work(tx: Tx) -> bool:
            return await leases.renew(tx, held.batch.id, held.lease_token, self.ttl) is not None

        while not gone.is_set():
            await asyncio.sleep(self.ttl.total_seconds() / 4)
            try:
                if not await self.transactions.write(work):
                    gone.set()
            except ServiceError as error:
                log.warning("lease of a validation not renewed", batch_id=held.batch.id, error=error.message)

    async def _start(self, held: Work, file: File, found: validation.Findings, model: str | None) -> None:
        batch, token = held.batch, held.lease_token
        index_key = f"indexes/{batch.id}/{token}"
        await self.objects.put(index_key, bytes(found.index))

        async def work(tx: Tx) -> Batch | None:
            # With the file locked: DeleteFile either sees this batch or was first.
            if await files.lock(tx, batch.project_id, file.id) is None:
                missing = [cannot_find(batch.input_file_id, batch.project_id)]
                return await batches.fail_validation(tx, batch.id, token, missing, has_objects=True)
            return await batches.start(
                tx,
                batch.id,
                token,
                model=model or found.model,
                total_count=found.count,
                index_key=index_key,
                input_key=file.object_key,
                input_bytes=file.bytes,
            )

        started = await self.transactions.write(work)
        if started is None:
            # Cancelled, expired or taken over meanwhile: nothing names this index.
            await self.objects.delete([index_key])
            return
        log.info("batch validated", batch_id=batch.id, state=started.state, total=started.total_count)
        self.bells.to_lease.ring()

    async def _fail(self, held: Work, errors: list[BatchError]) -> None:
        token = held.lease_token

        async def work(tx: Tx) -> Batch | None:
            # A validator before this one may have written an index before it died.
            return await batches.fail_validation(tx, held.batch.id, token, errors, has_objects=token > 1)

        failed = await self.transactions.write(work)
        if failed is not None:
            metrics.ended(failed)
            log.info("batch failed validation", batch_id=failed.id, code=errors[0].code, errors=len(errors))


def unusable(file_id: str, project_id: str, file: File | None, quota: Quota) -> BatchError | None:
    """What is wrong with the input file before anything of it is read."""
    if file is None:
        return cannot_find(file_id, project_id)
    if file.purpose != "batch":
        message = f"The purpose of file {file.id} is '{file.purpose[:64]}', but a batch needs one of purpose 'batch'."
        return BatchError(code="invalid_request", message=message, param="input_file_id")
    if file.bytes > quota.input_bytes():
        message = f"The batch input file is larger than the {quota.input_bytes()} maximum."
        return BatchError(code="file_too_large", message=message, param="input_file_id")
    return None


def cannot_find(file_id: str, project_id: str) -> BatchError:
    message = f"Cannot find file {file_id}, or organization {project_id} does not have access to it."
    return BatchError(code="invalid_request", message=message, param="file_id")
