"""Uploads: files that arrive in parts."""

from __future__ import annotations

from dataclasses import replace

from services.kit.errors import IllegalTransition, InvalidArgument
from services.kit.ids import new_id
from services.kit.objects import ObjectStore
from services.kit.settings import Settings
from services.kit.transactions import Transactions, Tx
from services.metadata.domain import UPLOAD_LIFE, File, NewUpload, Upload, UploadPart
from services.metadata.service import checks
from services.metadata.service.bells import Bells
from services.metadata.states import UploadEvent, UploadState
from services.metadata.store import files, keys, uploads
from services.metadata.store.tables import uploads as table

MOST_PARTS = 10_000


class UploadService:
    def __init__(self, transactions: Transactions, objects: ObjectStore, bells: Bells, settings: Settings) -> None:
        self.transactions = transactions
        self.objects = objects
        self.bells = bells
        self.limits = settings.gateway

    async def create_upload(self, new: NewUpload) -> Upload:
        self._check_new(new)
        id = new_id("upload_")

        async def work(tx: Tx) -> Upload:
            if new.idempotency_key is not None:
                key, said = new.idempotency_key, new.request_hash
                claim = await keys.claim(tx, new.project_id, "upload", key, said, id)
                checks.same_request(key, claim.request_hash, said)
                if claim.resource_id != id and (earlier := await uploads.find(tx, new.project_id, claim.resource_id)):
                    return as_seen(earlier, tx)
            upload = as_upload(new, id, tx)
            await uploads.insert(tx, upload)
            return upload

        return await self.transactions.write(work)

    def _check_new(self, new: NewUpload) -> None:
        checks.required(project_id=new.project_id, purpose=new.purpose, mime_type=new.mime_type)
        checks.filename(new.filename)
        checks.at_most("mime_type", new.mime_type, 255)
        checks.one_of("purpose", new.purpose, checks.PURPOSES)
        largest = self.limits.max_batch_file_bytes if new.purpose == "batch" else self.limits.max_upload_bytes
        checks.between("bytes", new.bytes, 1, largest)
        checks.lifetime("expires_after.seconds", new.expires_after_s)
        checks.idempotency(new.idempotency_key, new.request_hash)

    async def get_upload(self, project_id: str, id: str) -> Upload:
        async def work(tx: Tx) -> Upload:
            upload = await uploads.find(tx, project_id, id) if "\0" not in id else None
            if upload is None:
                raise checks.missing("upload", id)
            return as_seen(upload, tx)

        return await self.transactions.read(work)

    async def add_part(self, project_id: str, upload_id: str, object_key: str, size: int) -> UploadPart:
        checks.object_key(object_key, f"uploads/{upload_id}/")
        checks.between("bytes", size, 0, self.limits.max_part_bytes)
        id = new_id("part_")

        async def work(tx: Tx) -> UploadPart:
            upload = await self._lock(tx, project_id, upload_id)
            if known := await uploads.find_part(tx, upload_id, object_key):
                return known
            require_pending(upload, "add a part to")
            if await uploads.count_parts(tx, upload_id) >= MOST_PARTS:
                raise InvalidArgument(f"An upload has at most {MOST_PARTS} parts.", param="data")
            part = UploadPart(id=id, upload_id=upload_id, object_key=object_key, bytes=size, create_time=tx.now)
            await uploads.insert_part(tx, part)
            return part

        return await self.transactions.write(work)

    async def list_parts(self, project_id: str, upload_id: str, part_ids: list[str]) -> tuple[Upload, list[UploadPart]]:
        """The parts in the order of `part_ids`."""

        async def work(tx: Tx) -> tuple[Upload, list[UploadPart]]:
            upload = await uploads.find(tx, project_id, upload_id) if "\0" not in upload_id else None
            if upload is None:
                raise checks.missing("upload", upload_id)
            upload = as_seen(upload, tx)
            require_pending(upload, "complete")
            return upload, await uploads.list_parts(tx, upload_id)

        upload, parts = await self.transactions.read(work)
        return upload, in_order(upload, parts, part_ids)

    async def complete_upload(self, project_id: str, upload_id: str, object_key: str) -> tuple[Upload, File]:
        checks.object_key(object_key, "files/")
        id = new_id("file-")
        stored = (await self.objects.head(object_key)).bytes

        async def work(tx: Tx) -> tuple[Upload, File]:
            upload = await self._lock(tx, project_id, upload_id)
            if upload.state is UploadState.COMPLETED and upload.file_id is not None:
                made = await files.find_any(tx, upload.file_id)
                if made is not None and made.object_key == object_key:
                    return upload, made
            require_pending(upload, "complete")
            if stored != upload.bytes:
                raise add_up(stored, upload)
            file = file_of(upload, id, object_key, tx)
            await files.insert(tx, file)
            (moved,) = await uploads.move(tx, UploadEvent.COMPLETE, table.c.id == upload_id, file_id=id)
            return moved, file

        done = await self.transactions.write(work)
        self.bells.to_clean.ring()
        return done

    async def cancel_upload(self, project_id: str, id: str) -> Upload:
        async def work(tx: Tx) -> Upload:
            upload = await self._lock(tx, project_id, id)
            if upload.state is UploadState.CANCELLED:
                return upload
            require_pending(upload, "cancel")
            (moved,) = await uploads.move(tx, UploadEvent.CANCEL, table.c.id == id)
            return moved

        upload = await self.transactions.write(work)
        self.bells.to_clean.ring()
        return upload

    @staticmethod
    async def _lock(tx: Tx, project_id: str, id: str) -> Upload:
        upload = await uploads.lock(tx, project_id, id) if "\0" not in id else None
        if upload is None:
            raise checks.missing("upload", id)
        return as_seen(upload, tx)

    async def expire_uploads(self) -> int:
        """Expire uploads past their time; how many."""
        return len(await self.transactions.write(uploads.expire_due))

    async def delete_useless_parts(self) -> int:
        """Delete the objects of parts that nothing needs, then forget them; how many."""

        async def due(tx: Tx) -> list[UploadPart]:
            return await uploads.list_useless_parts(tx, 500)

        parts = await self.transactions.read(due)
        if parts:
            await self.objects.delete([part.object_key for part in parts])

            async def work(tx: Tx) -> None:
                await uploads.delete_parts(tx, [part.id for part in parts])

            await self.transactions.write(work)
        return len(parts)


def as_seen(upload: Upload, tx: Tx) -> Upload:
    """An upload past its time is expired for everybody, also before the janitor writes so."""
    if upload.state is UploadState.PENDING and upload.expire_time <= tx.now:
        return replace(upload, state=UploadState.EXPIRED)
    return upload


def require_pending(upload: Upload, what: str) -> None:
    if upload.state is not UploadState.PENDING:
        state = upload.state.lower()
        raise IllegalTransition(f"Cannot {what} an upload with status '{state}'.", state=upload.state)


def in_order(upload: Upload, parts: list[UploadPart], part_ids: list[str]) -> list[UploadPart]:
    known = {part.id: part for part in parts}
    unknown = next((id for id in part_ids if id not in known), None)
    if unknown is not None:
        message = f"No part '{unknown[:128]}' in upload '{upload.id}'."
        raise InvalidArgument(message, param="part_ids", code="invalid_value")
    if len(set(part_ids)) != len(part_ids):
        raise InvalidArgument("A part is named twice.", param="part_ids", code="invalid_value")
    total = sum(known[id].bytes for id in part_ids)
    if total != upload.bytes:
        raise add_up(total, upload)
    return [known[id] for id in part_ids]


def add_up(total: int, upload: Upload) -> InvalidArgument:
    message = f"The parts add up to {total} bytes, but the upload was declared with {upload.bytes} bytes."
    return InvalidArgument(message, param="part_ids", code="invalid_value")


def as_upload(new: NewUpload, id: str, tx: Tx) -> Upload:
    return Upload(
        id=id,
        project_id=new.project_id,
        state=UploadState.PENDING,
        purpose=new.purpose,
        filename=new.filename,
        mime_type=new.mime_type,
        bytes=new.bytes,
        create_time=tx.now,
        expire_time=tx.now + UPLOAD_LIFE,
        expires_after_s=new.expires_after_s,
    )


def file_of(upload: Upload, id: str, object_key: str, tx: Tx) -> File:
    life = checks.life_of(upload.purpose, upload.expires_after_s)
    return File(
        id=id,
        project_id=upload.project_id,
        purpose=upload.purpose,
        filename=upload.filename,
        bytes=upload.bytes,
        create_time=tx.now,
        expire_time=tx.now + life if life else None,
        object_key=object_key,
    )
