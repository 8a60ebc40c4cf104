"""Secrets of a project: they go in, are encrypted at rest, and come out only inside of this process."""

from __future__ import annotations

import re

import structlog

from services.console.access import Secret
from services.console.service import checks
from services.console.service.access_cipher import CannotOpen, KeyRing, Place, Sealed
from services.console.store import access_secrets as store
from services.kit.errors import Conflict, InvalidArgument
from services.kit.ids import new_id
from services.kit.transactions import Row, Transactions, Tx

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
LARGEST_VALUE = 64 * 1024  # in UTF-8

log = structlog.get_logger(__name__)


class SecretService:
    def __init__(self, transactions: Transactions, ring: KeyRing) -> None:
        self.transactions = transactions
        self.ring = ring

    async def create_secret(self, project_id: str, name: str, value: str) -> Secret:
        """The same name again replaces the value. Errors: InvalidArgument, Conflict (this server has no keys)."""
        check_new(project_id, name, value)
        if not self.ring:
            raise Conflict("This server keeps no secrets: it has no SECRETS_ENCRYPTION_KEY.")
        fresh = new_id("secret_")

        async def work(tx: Tx) -> Secret:
            id = await store.claim_name(tx, project_id, name, fresh)
            sealed = self.ring.seal(value, place(id))
            return await store.put_value(tx, id, sealed.ciphertext, sealed.version)

        secret = await self.transactions.write(work)
        log.info("secret stored", secret_id=secret.id, project_id=project_id)
        return secret

    async def list_secrets(self, project_id: str, limit: int | None, after: str | None) -> tuple[list[Secret], bool]:
        """One page, newest first, and whether there is more behind it. Never a value."""
        size = checks.page_size(limit)

        async def work(tx: Tx) -> list[Secret]:
            mark = None
            if after is not None:
                mark = await store.find_mark(tx, project_id, after) if checks.findable(after) else None
                if mark is None:
                    return []
            return list(await store.list_page(tx, project_id, mark, size + 1))

        page = await self.transactions.read(work)
        return page[:size], len(page) > size

    async def delete_secret(self, project_id: str, id: str) -> None:
        """Error: NotFound."""

        async def work(tx: Tx) -> bool:
            return checks.findable(id) and await store.bury(tx, project_id, id)

        if not await self.transactions.write(work):
            raise checks.missing("secret", id)
        log.info("secret deleted", secret_id=id, project_id=project_id)

    async def decrypt(self, project_id: str, name: str) -> str:
        """The value, for a part of this process that needs it; no call of the API leads here.

        Errors: NotFound, Conflict (no key of this server opens it, or the row is not what was stored).
        """

        async def work(tx: Tx) -> Row | None:
            return await store.find_value(tx, project_id, name) if NAME.fullmatch(name) else None

        row = await self.transactions.read(work)
        if row is None:
            raise checks.missing("secret", name, "name")
        try:
            return self.ring.open(Sealed(row["ciphertext"], row["key_version"]), place(row["id"]))
        except CannotOpen as error:
            log.error("a secret cannot be decrypted", secret_id=row["id"], error=str(error))
            raise Conflict(f"The secret '{name}' cannot be decrypted: {error}.", param="name") from error


def place(id: str) -> Place:
    return Place("secrets", id, "ciphertext")


def check_new(project_id: str, name: str, value: str) -> None:
    """Messages never hold the value. Error: InvalidArgument."""
    checks.required(project_id=project_id, name=name, value=value)
    checks.plain("project_id", project_id, checks.LONGEST_ID)
    if not NAME.fullmatch(name):
        raise checks.invalid(
            "name", "it must be 1 to 128 letters, digits, '_', '.' and '-', the first none of the last two"
        )
    checks.no_nul(value=value)
    if len(value.encode()) > LARGEST_VALUE:
        message = f"Invalid 'value': string too long. Expected at most {LARGEST_VALUE} bytes."
        raise InvalidArgument(message, param="value", code="string_above_max_length")
