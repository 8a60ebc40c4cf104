"""API keys that people make: shown once, kept as a hash, good until they expire or are revoked."""

from __future__ import annotations

import re
import secrets
import string
from datetime import timedelta
from hashlib import sha256

import structlog

from services.console.access import ApiKey, NewApiKey, Principal
from services.console.service import checks
from services.console.store import access_keys as keys
from services.kit.errors import InvalidArgument, NotFound, ServiceError
from services.kit.ids import new_id
from services.kit.transactions import Transactions, Tx

# The form of all keys here, also of those that the gateway's file holds: gateway/auth.py.
PREFIX = "ab_"
ALPHABET = string.ascii_letters + string.digits
KEY_LENGTH = 32  # of 62 characters each: 190 random bits
SHOWN = 10
LONGEST_NAME = 128
MEMBER, ADMIN = "member", "admin"
LIFE_S = (60, 10 * 366 * 86_400)
HASH = re.compile(r"[0-9a-f]{64}")
USE_NOTED = timedelta(minutes=1)

log = structlog.get_logger(__name__)


class ApiKeyService:
    def __init__(self, transactions: Transactions) -> None:
        self.transactions = transactions

    async def create_key(self, new: NewApiKey) -> ApiKey:
        """With the key itself, which is nowhere else. Error: InvalidArgument."""
        check_new(new)
        text = PREFIX + "".join(secrets.choice(ALPHABET) for _ in range(KEY_LENGTH))
        id = new_id("key_")

        async def work(tx: Tx) -> ApiKey:
            life = None if new.expires_after_s is None else timedelta(seconds=new.expires_after_s)
            key = ApiKey(
                id=id,
                project_id=new.project_id,
                name=new.name,
                prefix=text[:SHOWN],
                key=text,
                create_time=tx.now,
                expires_time=tx.now + life if life else None,
                role=new.role or MEMBER,
                created_by=new.created_by,
            )
            await keys.insert(tx, key, sha256(text.encode()).hexdigest())
            return key

        key = await self.transactions.write(work)
        log.info("API key created", key_id=id, project_id=new.project_id, role=key.role, created_by=key.created_by)
        return key

    async def list_keys(self, project_id: str, limit: int | None, after: str | None) -> tuple[list[ApiKey], bool]:
        """One page, newest first, and whether there is more behind it."""
        size = checks.page_size(limit)

        async def work(tx: Tx) -> list[ApiKey]:
            mark = None
            if after is not None:
                mark = await keys.find_mark(tx, project_id, after) if checks.findable(after) else None
                if mark is None:
                    return []
            return list(await keys.list_page(tx, project_id, mark, size + 1))

        page = await self.transactions.read(work)
        return page[:size], len(page) > size

    async def delete_key(self, project_id: str, id: str) -> None:
        """Revoke it. Error: NotFound."""

        async def work(tx: Tx) -> bool:
            return checks.findable(id) and await keys.revoke(tx, project_id, id)

        if not await self.transactions.write(work):
            raise checks.missing("API key", id)
        log.info("API key revoked", key_id=id, project_id=project_id)

    async def authenticate(self, key_hash: str) -> Principal:
        """Whose key this is. Error: NotFound (unknown, expired or revoked)."""

        async def look(tx: Tx) -> tuple[ApiKey | None, bool]:
            key = await keys.find_by_hash(tx, key_hash) if HASH.fullmatch(key_hash) else None
            used = key.last_used_time if key else None
            return key, used is None or used <= tx.now - USE_NOTED

        key, note = await self.transactions.read(look)
        if key is None:
            raise NotFound("No such API key.", param="key_hash")
        if note:
            await self._note_use(key)
        return Principal(project_id=key.project_id, key_id=key.id, name=key.name, role=key.role)

    async def _note_use(self, key: ApiKey) -> None:
        async def work(tx: Tx) -> None:
            await keys.set_used(tx, key.id, USE_NOTED)

        try:
            await self.transactions.write(work)
        except ServiceError as error:
            # A full disk keeps nobody out.
            log.warning("the use of an API key was not noted", key_id=key.id, error=error.message)


def check_new(new: NewApiKey) -> None:
    """Error: InvalidArgument."""
    checks.required(project_id=new.project_id, name=new.name)
    checks.plain("project_id", new.project_id, checks.LONGEST_ID)
    checks.plain("name", new.name, LONGEST_NAME)
    checks.prose("created_by", new.created_by, checks.LONGEST_ID)
    if new.role:
        checks.one_of("role", new.role, (MEMBER, ADMIN))
    seconds, (shortest, longest) = new.expires_after_s, LIFE_S
    if seconds is not None and not shortest <= seconds <= longest:
        side, bound = ("below_min", f">= {shortest}") if seconds < shortest else ("above_max", f"<= {longest}")
        raise InvalidArgument(
            f"Invalid 'expires_after_s': integer {side.replace('_', ' ')}imum value. Expected a value {bound}, "
            f"but got {seconds} instead.",
            param="expires_after_s",
            code=f"integer_{side}_value",
        )
