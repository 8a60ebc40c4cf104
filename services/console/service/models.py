"""Models: made, looked at, listed, changed, deleted."""

from __future__ import annotations

import re
import secrets
from dataclasses import replace
from datetime import datetime

import structlog

from services.console.domain import Model, ModelChange, NewModel
from services.console.service import checks
from services.console.service.planner import Planner
from services.console.store import models, templates
from services.kit.errors import AlreadyExists, Conflict
from services.kit.ids import new_id
from services.kit.transactions import Transactions, Tx

ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", re.ASCII)
LONGEST_NAME = 255
LONGEST_SERVING_NAME = 512
LONGEST_CATEGORY = 128
LONGEST_DESCRIPTION = 4096
# With `model-` before it and a suffix behind it an id has 64 characters at most, as paths allow.
LONGEST_SLUG = 48

log = structlog.get_logger(__name__)


class ModelService:
    def __init__(self, transactions: Transactions, planner: Planner) -> None:
        self.transactions = transactions
        self.planner = planner

    async def create_model(self, new: NewModel) -> Model:
        """Errors: InvalidArgument, AlreadyExists."""
        check_new(new)
        slug = slug_of(new.name)
        # The second is for a model whose name is another, and whose slug is the same.
        ids = [new.id] if new.id else [f"model-{slug}"] * bool(slug) + [suffixed(slug)]

        async def work(tx: Tx) -> Model:
            for id in ids:
                model = as_model(new, id, tx.now)
                if await models.insert_new(tx, model):
                    return model
                if await models.find_by_name(tx, new.project_id, new.name):
                    raise taken("name", new.name)
            raise taken("id", ids[-1])

        model = await self.transactions.write(work)
        log.info("model created", model_id=model.id, project_id=model.project_id)
        return model

    async def get_model(self, project_id: str, id: str) -> Model:
        async def work(tx: Tx) -> Model:
            return await found(tx, project_id, id)

        return await self.transactions.read(work)

    async def list_models(
        self, project_id: str, limit: int | None, after: str | None, *, search: str | None, category: str | None
    ) -> tuple[list[Model], bool]:
        """One page, newest first, and whether there is more behind it."""
        size = checks.page_size(limit)
        checks.prose("search", search or "", LONGEST_NAME)
        checks.no_nul(category=category)

        async def work(tx: Tx) -> list[Model]:
            mark = None
            if after is not None:
                mark = await models.find_mark(tx, project_id, after) if checks.findable(after) else None
                if mark is None:
                    return []
            return list(await models.list_page(tx, project_id, mark, size + 1, search, category))

        page = await self.transactions.read(work)
        return page[:size], len(page) > size

    async def update_model(self, change: ModelChange) -> Model:
        """Errors: InvalidArgument, NotFound, Conflict (another revision)."""
        checks.revision(change.revision)
        check_texts(change.serving_name, change.description, change.category)
        given = {
            name: value
            for name in ("serving_name", "description", "category")
            if (value := getattr(change, name)) is not None
        }
        if given.get("serving_name") == "":
            given["serving_name"] = None

        async def work(tx: Tx) -> Model:
            before = await found(tx, change.project_id, change.id)
            if before.revision == change.revision + 1 and replace(before, **given) == before:
                return before  # the same call, whose answer was lost
            after = await models.update(tx, change.project_id, change.id, change.revision, **given)
            if after is None:
                now = await found(tx, change.project_id, change.id)
                raise checks.changed("model", change.revision, now.revision)
            return after

        return await self.transactions.write(work)

    async def delete_model(self, project_id: str, id: str) -> None:
        """Errors: NotFound, Conflict (templates or live jobs use it), Unavailable (the planner does not say)."""
        await self.get_model(project_id, id)
        if job := await self.planner.find_live_job(project_id, id):
            raise Conflict(f"Model {id} cannot be deleted: job {job.id} uses it and has not ended.", param="id")

        async def work(tx: Tx) -> None:
            if not await models.lock(tx, project_id, id, alone=True):
                raise checks.missing("model", id)
            if await templates.has_any(tx, project_id, id):
                raise Conflict(f"Model {id} cannot be deleted: it has deployment templates.", param="id")
            await models.bury(tx, project_id, id)

        await self.transactions.write(work)
        log.info("model deleted", model_id=id, project_id=project_id)


async def found(tx: Tx, project_id: str, id: str, param: str = "id") -> Model:
    """The model of this project. Error: NotFound with `param`."""
    model = await models.find(tx, project_id, id) if checks.findable(id) else None
    if model is None:
        raise checks.missing("model", id, param)
    return model


def check_new(new: NewModel) -> None:
    checks.required(project_id=new.project_id, name=new.name)
    checks.plain("project_id", new.project_id, checks.LONGEST_ID)
    checks.plain("name", new.name, LONGEST_NAME)
    if new.id and not ID.fullmatch(new.id):
        raise checks.invalid("id", "it must be 1 to 64 letters, digits, '_' and '-', the first a letter or a digit")
    check_texts(new.serving_name, new.description, new.category)


def check_texts(serving_name: str | None, description: str | None, category: str | None) -> None:
    checks.plain("serving_name", serving_name or "", LONGEST_SERVING_NAME)
    if serving_name and serving_name.startswith("-"):
        # It stands on a command line, where a leading dash would make a flag of it.
        raise checks.invalid("serving_name", "it may not begin with a dash")
    checks.prose("description", description or "", LONGEST_DESCRIPTION)
    checks.plain("category", category or "", LONGEST_CATEGORY)


def slug_of(name: str) -> str:
    """The part of an id that a person recognizes; empty for a name without Latin letters and digits."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:LONGEST_SLUG].strip("-")


def suffixed(slug: str) -> str:
    return f"model-{slug}-{secrets.token_hex(4)}" if slug else new_id("model-")


def as_model(new: NewModel, id: str, now: datetime) -> Model:
    return Model(
        id=id,
        project_id=new.project_id,
        name=new.name,
        serving_name=new.serving_name or None,
        description=new.description,
        category=new.category,
        create_time=now,
        update_time=now,
    )


def taken(param: str, value: str) -> AlreadyExists:
    return AlreadyExists(f"There is a model with the {param} '{checks.shown(value)}' already.", param=param)
