"""Deployment templates of models: made, looked at, resolved, changed, deleted."""

from __future__ import annotations

import structlog

from services.console.domain import DeploymentTemplate, DeploymentTemplateChange, NewDeploymentTemplate
from services.console.service import checks, specs
from services.console.service.models import found
from services.console.service.planner import Planner
from services.console.store import models, templates
from services.kit.errors import AlreadyExists, Conflict, NotFound
from services.kit.ids import new_id
from services.kit.lifecycle import uninterrupted
from services.kit.settings import Settings
from services.kit.spec.catalog import some
from services.kit.spec.template import DEFAULT_VERSION
from services.kit.spec.versions import version_key
from services.kit.transactions import Transactions, Tx

STATUSES = ("active", "deprecated", "draft")

log = structlog.get_logger(__name__)


class DeploymentTemplateService:
    def __init__(self, transactions: Transactions, planner: Planner, settings: Settings) -> None:
        self.transactions = transactions
        self.planner = planner
        self.any_flag = settings.templates.inline_flags == "any"

    async def create_template(self, new: NewDeploymentTemplate) -> DeploymentTemplate:
        """Errors: InvalidArgument (param such as `spec.engine.type`), NotFound (the model), AlreadyExists."""
        checks.required(project_id=new.project_id, name=new.name, spec=new.spec_json)
        spec, text = specs.read_spec(new.spec_json, any_flag=self.any_flag)
        version, status = new.version or DEFAULT_VERSION, new.status or "active"
        specs.check_labels(spec, name=new.name, version=version, status=status)
        id = new_id("tmpl_")

        async def work(tx: Tx) -> DeploymentTemplate:
            if not checks.findable(new.model_id) or not await models.lock(
                tx, new.project_id, new.model_id, alone=False
            ):
                raise checks.missing("model", new.model_id, "model_id")
            template = DeploymentTemplate(
                id=id,
                model_id=new.model_id,
                name=new.name,
                version=version,
                status=status,
                spec_json=text,
                create_time=tx.now,
                update_time=tx.now,
            )
            if not await templates.insert_new(tx, new.project_id, template):
                message = f"Model {new.model_id} has a template '{new.name}' of version '{version}' already."
                raise AlreadyExists(message, param="version")
            await templates.set_changed(tx)
            return template

        template = await self.transactions.write(work)
        log.info("template created", template=template.label, template_id=id, project_id=new.project_id)
        return template

    async def get_template(self, project_id: str, model_id: str, id: str) -> DeploymentTemplate:
        async def work(tx: Tx) -> DeploymentTemplate:
            return await found_template(tx, project_id, model_id, id)

        return await self.transactions.read(work)

    async def list_templates(
        self,
        project_id: str,
        model_id: str,
        limit: int | None,
        after: str | None,
        *,
        status: str | None,
        name: str | None,
    ) -> tuple[list[DeploymentTemplate], bool]:
        """One page, newest first, and whether there is more behind it. Errors: InvalidArgument, NotFound (the model)."""
        size = checks.page_size(limit)
        checks.no_nul(name=name)
        if status:
            checks.one_of("status", status, STATUSES)

        async def work(tx: Tx) -> list[DeploymentTemplate]:
            await found(tx, project_id, model_id, "model_id")
            mark = None
            if after is not None:
                known = checks.findable(after)
                mark = await templates.find_mark(tx, project_id, model_id, after) if known else None
                if mark is None:
                    return []
            return list(await templates.list_page(tx, project_id, model_id, mark, size + 1, status, name))

        page = await self.transactions.read(work)
        fitting = cut(page[:size])
        return fitting, len(page) > len(fitting)

    async def resolve_template(
        self, project_id: str, model_id: str, name: str, version: str | None
    ) -> DeploymentTemplate:
        """As `resolved`, of a model that is there."""
        checks.required(name=name)

        async def work(tx: Tx) -> DeploymentTemplate:
            await found(tx, project_id, model_id, "model_id")
            return await resolved(tx, project_id, model_id, name, version)

        return await self.transactions.read(work)

    async def update_template(self, change: DeploymentTemplateChange) -> DeploymentTemplate:
        """Live jobs keep the spec that they were made with. Errors: InvalidArgument, NotFound, Conflict (another revision)."""
        checks.revision(change.revision)
        given: dict[str, str] = {}
        if change.status is not None:
            checks.one_of("status", change.status, STATUSES)
            given["status"] = change.status
        if change.spec_json is not None:
            _, given["spec_json"] = specs.read_spec(change.spec_json, any_flag=self.any_flag)

        async def work(tx: Tx) -> DeploymentTemplate:
            before = await found_template(tx, change.project_id, change.model_id, change.id)
            same = all(getattr(before, name) == value for name, value in given.items())
            if before.revision == change.revision + 1 and same:
                return before  # the same call, whose answer was lost
            after = await templates.update(tx, change.id, change.revision, **given)
            if after is None:
                now = await found_template(tx, change.project_id, change.model_id, change.id)
                raise checks.changed("deployment template", change.revision, now.revision)
            await templates.set_changed(tx)
            return after

        return await self.transactions.write(work)

    async def delete_template(self, project_id: str, model_id: str, id: str) -> None:
        """Errors: NotFound, Conflict (a live job uses it), Unavailable (the planner does not say)."""
        deletion_id = new_id("")
        # Announced before the planner is asked: whoever makes a job looks for it afterwards (see JobService).
        template = await self._announce(project_id, model_id, id, deletion_id)
        try:
            job = await self.planner.find_live_job(project_id, model_id, (template.name, template.version))
            if job is not None:
                message = f"Template {template.label} cannot be deleted: job {job.id} uses it and has not ended."
                raise Conflict(message, param="id")
        except BaseException:
            await uninterrupted(self._call_off(id, deletion_id))
            raise

        async def work(tx: Tx) -> None:
            if not await templates.bury(tx, id, deletion_id):
                await found_template(tx, project_id, model_id, id)
                message = f"Template {template.label} was not deleted: somebody else uses it or deletes it just now."
                raise Conflict(message, param="id")
            await templates.set_changed(tx)

        await self.transactions.write(work)
        log.info("template deleted", template=template.label, template_id=id, project_id=project_id)

    async def _announce(self, project_id: str, model_id: str, id: str, deletion_id: str) -> DeploymentTemplate:
        async def work(tx: Tx) -> DeploymentTemplate:
            template = await found_template(tx, project_id, model_id, id)
            await templates.announce(tx, id, deletion_id)
            return template

        return await self.transactions.write(work)

    async def _call_off(self, id: str, deletion_id: str) -> None:
        async def work(tx: Tx) -> None:
            await templates.call_off(tx, id, deletion_id)

        await self.transactions.write(work)


async def found_template(tx: Tx, project_id: str, model_id: str, id: str) -> DeploymentTemplate:
    """The template of this model. Error: NotFound."""
    known = checks.findable(model_id, id)
    template = await templates.find(tx, project_id, model_id, id) if known else None
    if template is None:
        raise checks.missing("deployment template", id)
    return template


async def resolved(
    tx: Tx,
    project_id: str,
    model_id: str,
    name: str,
    version: str | None,
    params: tuple[str, str] = ("name", "version"),
) -> DeploymentTemplate:
    """The named version in any status; without one (or with an empty one) the latest active.

    Errors: NotFound (no such name or version), Conflict (versions exist, none is active). `params`: what the caller calls the
    name and the version.
    """
    versions = await templates.list_versions(tx, project_id, model_id, name) if checks.findable(name) else []
    if not versions:
        message = f"Model {model_id} has no template '{checks.shown(name)}'."
        raise NotFound(message, param=params[0])
    ordered = sorted(versions, key=lambda row: version_key(row["version"]), reverse=True)
    if version:
        chosen = next((row for row in ordered if row["version"] == version), None)
        if chosen is None:
            listed = some(f"'{row['version']}'" for row in ordered)
            message = f"Template '{checks.shown(name)}' has no version '{checks.shown(version)}'. There are: {listed}."
            raise NotFound(message, param=params[1])
    else:
        chosen = next((row for row in ordered if row["status"] == "active"), None)
        if chosen is None:
            listed = some(f"{row['version']} ({row['status']})" for row in ordered)
            raise Conflict(f"No version of template '{checks.shown(name)}' is active: {listed}.", param=params[1])
    return await found_template(tx, project_id, model_id, chosen["id"])


def cut(page: list[DeploymentTemplate]) -> list[DeploymentTemplate]:
    """As much of a page as fits into a message; at least one template."""
    characters = 0
    for count, template in enumerate(page):
        characters += len(template.spec_json)
        if characters > checks.PAGE_CHARACTERS and count:
            return page[:count]
    return page
