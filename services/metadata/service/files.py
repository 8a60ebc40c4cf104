"""Files: recording, listing and forgetting them."""

from __future__ import annotations

import structlog

from services.kit.errors import IllegalTransition, ServiceError
from services.kit.ids import new_id
from services.kit.objects import ObjectStore
from services.kit.transactions import Transactions, Tx
from services.metadata.domain import File, NewFile
from services.metadata.service import checks
from services.metadata.store import files, keys

LARGEST_PAGE = 10_000

log = structlog.get_logger(__name__)


class FileService:
    def __init__(self, transactions: Transactions, objects: ObjectStore) -> None:
        self.transactions = transactions
        self.objects = objects

    async def create_file(self, new: NewFile) -> tuple[File, bool]:
        """The file, and whether an earlier call with another object made it."""
        check_new(new)
        id = new_id("file-")

        async def work(tx: Tx) -> File:
            if known := await files.find_by_object_key(tx, new.project_id, new.object_key):
                return known
            if new.idempotency_key is not None:
                key, said = new.idempotency_key, new.request_hash
                claim = await keys.claim(tx, new.project_id, "file", key, said, id)
                checks.same_request(key, claim.request_hash, said)
                if claim.resource_id != id and (earlier := await files.find_any(tx, claim.resource_id)):
                    return earlier
            file = as_file(new, id, tx)
            if not await files.insert_new(tx, file):
                rival = await files.find_by_object_key(tx, new.project_id, new.object_key)
                return rival or self._refuse(new)
            return file

        file = await self.transactions.write(work)
        return file, file.object_key != new.object_key

    @staticmethod
    def _refuse(new: NewFile) -> File:
        raise checks.missing("file", new.object_key)

    async def get_file(self, project_id: str, id: str) -> File:
        async def work(tx: Tx) -> File | None:
            return await files.find(tx, project_id, id)

        file = await self.transactions.read(work) if "\0" not in id else None
        if file is None:
            raise checks.missing("file", id)
        return file

    async def list_files(
        self, project_id: str, purpose: str | None, page_size: int, after: str | None, *, ascending: bool
    ) -> tuple[list[File], bool]:
        """One page, and whether there is more behind it."""
        checks.no_nul(purpose=purpose, after=after)
        size = checks.page_size(page_size, LARGEST_PAGE, LARGEST_PAGE)

        async def work(tx: Tx) -> list[File]:
            return list(await files.page(tx, project_id, purpose, after, ascending, size + 1))

        found = await self.transactions.read(work)
        return found[:size], len(found) > size

    async def delete_file(self, project_id: str, id: str) -> None:
        """Forget the file, then delete its object; what is left of that if we die, the janitor does."""

        async def work(tx: Tx) -> File:
            # Lock, then look: a batch that starts to read the file waits here or is seen.
            file = await files.lock(tx, project_id, id) if "\0" not in id else None
            if file is None or (file.expire_time is not None and file.expire_time <= tx.now):
                raise checks.missing("file", id)
            await self._bury(tx, file)
            return file

        file = await self.transactions.write(work)
        await self.delete_object(file)

    @staticmethod
    async def _bury(tx: Tx, file: File) -> None:
        if await files.is_in_use(tx, file.id):
            raise IllegalTransition(
                f"File {file.id} cannot be deleted: a batch that has not ended reads it.",
                param="id",
                code="file_in_use",
            )
        await files.bury(tx, file.id)

    async def delete_object(self, file: File) -> None:
        async def work(tx: Tx) -> None:
            await files.set_object_deleted(tx, [file.id])

        try:
            await self.objects.delete([file.object_key])
            await self.transactions.write(work)
        except ServiceError as error:
            log.warning("object of a deleted file is left to the janitor", file_id=file.id, error=error.message)

    async def expire_files(self) -> int:
        """Delete files past their time that no live batch reads; how many."""

        async def due(tx: Tx) -> list[File]:
            return list(await files.list_expired(tx, 500))

        expired = 0
        for file in await self.transactions.read(due):

            async def work(tx: Tx, file: File = file) -> bool:
                locked = await files.lock(tx, file.project_id, file.id)
                if locked is None or await files.is_in_use(tx, file.id):
                    return False
                await files.bury(tx, file.id)
                return True

            expired += await self.transactions.write(work)
        return expired

    async def delete_objects_of_deleted(self) -> int:
        """Delete the objects of deleted files; how many."""

        async def due(tx: Tx) -> list[File]:
            return list(await files.list_undeleted_objects(tx, 500))

        gone = await self.transactions.read(due)
        if gone:
            await self.objects.delete([file.object_key for file in gone])

            async def work(tx: Tx) -> None:
                await files.set_object_deleted(tx, [file.id for file in gone])

            await self.transactions.write(work)
        return len(gone)


def check_new(new: NewFile) -> None:
    checks.required(project_id=new.project_id, purpose=new.purpose)
    checks.filename(new.filename)
    checks.one_of("purpose", new.purpose, checks.PURPOSES)
    checks.object_key(new.object_key, "files/")
    checks.lifetime("expires_after.seconds", new.expires_after_s)
    checks.idempotency(new.idempotency_key, new.request_hash)
    checks.between("bytes", new.bytes, 0, 1 << 53)


def as_file(new: NewFile, id: str, tx: Tx) -> File:
    life = checks.life_of(new.purpose, new.expires_after_s)
    return File(
        id=id,
        project_id=new.project_id,
        purpose=new.purpose,
        filename=new.filename,
        bytes=new.bytes,
        create_time=tx.now,
        expire_time=tx.now + life if life else None,
        object_key=new.object_key,
    )
