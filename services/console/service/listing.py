"""The list of all templates, for metadata's registry, which asks every few seconds."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass

import orjson

from services.console.domain import Template
from services.console.service import checks
from services.console.store import templates
from services.kit.errors import InvalidArgument
from services.kit.transactions import Transactions, Tx

DEFAULT_PAGE = 100
LARGEST_PAGE = 1000
# The etag before the first template.
NONE_YET = "none"
LONGEST_TOKEN = 2048


@dataclass(frozen=True)
class Page:
    templates: Sequence[Template] = ()
    next_page_token: str = ""
    etag: str = ""


class TemplateListService:
    def __init__(self, transactions: Transactions) -> None:
        self.transactions = transactions

    async def list_templates(self, page_size: int, page_token: str, known_etag: str) -> Page:
        """Of all projects, by name and version; of those that share both, the oldest. Error: InvalidArgument (page_token)."""
        if not 0 <= page_size <= LARGEST_PAGE:
            raise checks.invalid("page_size", f"it must be from 1 to {LARGEST_PAGE}")
        size = page_size or DEFAULT_PAGE
        after = read_token(page_token) if page_token else None

        async def work(tx: Tx) -> tuple[str, Sequence[Template]]:
            # The etag first: what changes between the two reads is then seen as a change the next time.
            etag = await templates.find_etag(tx) or NONE_YET
            if after is None and known_etag == etag:
                return etag, ()
            return etag, await templates.list_all(tx, after, size + 1)

        etag, rows = await self.transactions.read(work)
        fitting = rows[: fitting_count(rows[:size])]
        token = make_token(fitting[-1]) if len(fitting) < len(rows) else ""
        return Page(oldest_of_each(fitting), token, etag)


def fitting_count(rows: Sequence[Template]) -> int:
    """How many fit into a message; at least one of some."""
    characters = 0
    for count, template in enumerate(rows):
        characters += len(template.spec_json)
        if characters > checks.PAGE_CHARACTERS and count:
            return count
    return len(rows)


def oldest_of_each(rows: Sequence[Template]) -> list[Template]:
    """The first of each (name, version); a page begins behind the last of the one before, so that no other has it."""
    first: dict[tuple[str, str], Template] = {}
    for template in rows:
        first.setdefault((template.name, template.version), template)
    return list(first.values())


def make_token(last: Template) -> str:
    return base64.urlsafe_b64encode(orjson.dumps([last.name, last.version])).decode()


def read_token(token: str) -> tuple[str, str]:
    """Error: InvalidArgument, param `page_token`."""
    try:
        match orjson.loads(base64.b64decode(token[:LONGEST_TOKEN], altchars=b"-_", validate=True)):
            case [str(name), str(version)] if "\0" not in name + version:
                return name, version
    except ValueError:
        pass  # said below
    raise InvalidArgument("Invalid 'page_token': it is not one of this list.", param="page_token", code="invalid_value")
