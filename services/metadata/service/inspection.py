"""Looks at the input file of a new batch, and starts the batch or fails it."""

from __future__ import annotations

import asyncio
import threading
from datetime import timedelta

import structlog

from services.kit.errors import NotFound, ServiceError
from services.kit.ids import new_id
from services.kit.lifecycle import background
from services.kit.objects import ObjectStore
from services.kit.settings import Settings
from services.kit.spec.block import parse_block
from services.metadata import metrics, validation
from services.metadata.domain import Batch, BatchError, File, Work
from services.metadata.service.bells import Bells
from services.metadata.store import batches, files, leases
from services.metadata.store.transactions import Transactions, Tx

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
        self.limits = validation.Limits(lines=settings.metadata.max_lines, line_bytes=settings.metadata.max_line_bytes)
        self.largest_file = settings.gateway.max_batch_file_bytes
        self.owner = new_id("validator:")

    async def inspect_next(self) -> bool:
        """Take a batch that waits for its validation, and validate it; whether there was one."""
        held = await self._claim()
        if held is None:
            return False
        try:
            with metrics.VALIDATION_SECONDS.time():
                await self._inspect(held)
        except ServiceError as error:
            log.warning("validation is put off", batch_id=held.batch.id, reason=error.reason, error=error.message)
            await self._put_off(held, REST)
        except validation.Abandoned:
            log.info("validation was taken over or is over", batch_id=held.batch.id)
        except Exception:
            log.exception("validation broke", batch_id=held.batch.id)
            await self._put_off(held, LONG_REST)
        return True

    async def _claim(self) -> Work | None:
        async def look(tx: Tx) -> bool:
            return await leases.has_unvalidated(tx)

        async def work(tx: Tx) -> Work | None:
            id = await leases.pick_unvalidated(tx)
            return await leases.take(tx, id, self.owner, self.ttl, attempts=0) if id else None

        return await self.transactions.write(work) if await self.transactions.read(look) else None

    async def _put_off(self, held: Work, rest: timedelta) -> None:
        async def work(tx: Tx) -> None:
            await leases.release(tx, held.batch.id, held.lease_token, rest)

        await self.transactions.write(work)

    async def _inspect(self, held: Work) -> None:
        batch = held.batch
        file = await self._file(batch)
        if isinstance(file, BatchError):
            await self._fail(held, [file])
            return
        found = await self._read_under_lease(held, file)
        if isinstance(found, NotFound):
            await self._fail(held, [cannot_find(batch)])
            return
        if isinstance(found, Exception):
            raise found
        if found.errors:
            await self._fail(held, found.errors)
            return
        await self._start(held, file, found)

    async def _file(self, batch: Batch) -> File | BatchError:
        async def work(tx: Tx) -> File | None:
            return await files.find(tx, batch.project_id, batch.input_file_id)

        file = await self.transactions.read(work)
        if file is None:
            return cannot_find(batch)
        if file.purpose != "batch":
            message = (
                f"The purpose of file {file.id} is '{file.purpose[:64]}', but a batch needs one of purpose 'batch'."
            )
            return BatchError(code="invalid_request", message=message, param="input_file_id")
        if file.bytes > self.largest_file:
            message = f"The batch input file is larger than the {self.largest_file} maximum."
            return BatchError(code="file_too_large", message=message, param="input_file_id")
        return file

    async def _read_under_lease(
        self, held: Work, file: File
    ) -> validation.Findings | ServiceError | validation.Abandoned:
        """What the file holds, read in a thread. The thread stops when the lease is lost or the server goes down."""
        gone = threading.Event()

        def read() -> validation.Findings:
            chunks = self.objects.stream_sync(file.object_key)
            return validation.check(chunks, held.batch.endpoint, self.limits, lambda: not gone.is_set())

        async with background(self._renew(held, gone)):
            try:
                return await asyncio.to_thread(read)
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

    async def _start(self, held: Work, file: File, found: validation.Findings) -> None:
        batch, token = held.batch, held.lease_token
        index_key = f"indexes/{batch.id}/{token}"
        await self.objects.put(index_key, bytes(found.index))

        async def work(tx: Tx) -> Batch | None:
            # With the file locked: DeleteFile either sees this batch or was first.
            if await files.lock(tx, batch.project_id, file.id) is None:
                return await batches.fail_validation(tx, batch.id, token, [cannot_find(batch)])
            return await batches.start(
                tx,
                batch.id,
                token,
                model=parse_block(batch.aibrix_json).model or found.model,
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
        async def work(tx: Tx) -> Batch | None:
            return await batches.fail_validation(tx, held.batch.id, held.lease_token, errors)

        failed = await self.transactions.write(work)
        if failed is not None:
            metrics.ended(failed)
            log.info("batch failed validation", batch_id=failed.id, code=errors[0].code, errors=len(errors))
            self.bells.to_clean.ring()


def cannot_find(batch: Batch) -> BatchError:
    id = batch.input_file_id
    message = f"Cannot find file {id}, or organization {batch.project_id} does not have access to it."
    return BatchError(code="invalid_request", message=message, param="file_id")
