"""A template is deleted while a job is made with it: never do both succeed, and who deletes may die at any point."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from brix.console.v1 import deployment_templates_pb2 as pb
from brix.console.v1 import jobs_pb2
from brix.type.v1.job_pb2 import Job
from services.console.service import jobs
from services.kit.errors import Conflict, NotFound, Unavailable
from services.kit.settings import Settings
from tests.console.conftest import Console, serving_console

ROUNDS = 40
LONGEST_S = 10.0


class Gate:
    """Holds the planner's call of this kind, once, until the test lets it go on."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.reached, self.opened = asyncio.Event(), asyncio.Event()

    async def __call__(self, what: str) -> None:
        if what == self.what:
            self.reached.set()
            await self.opened.wait()


async def delete(console: Console, template: pb.DeploymentTemplate) -> None:
    asked = {"project_id": "default", "model_id": template.model_id, "id": template.id}
    await console.templates.DeleteDeploymentTemplate(pb.DeleteDeploymentTemplateRequest(**asked))


def make(console: Console, template: pb.DeploymentTemplate, **fields: Any) -> Any:
    named = {"model_template_name": template.name, "model_template_version": template.version}
    return console.job(model_id=template.model_id, **named, **fields)


async def is_there(console: Console, template: pb.DeploymentTemplate) -> bool:
    try:
        await console.resolve(template.model_id, template.name, template.version)
    except NotFound:
        return False
    return True


def live(console: Console, template: pb.DeploymentTemplate) -> list[str]:
    """Jobs that will run; one that is being cancelled will not."""
    ended = (Job.CANCELLING, Job.CANCELLED)
    jobs = console.planner.jobs.values()
    return [one.id for one in jobs if one.model_template_version == template.version and one.status not in ended]


@pytest.fixture
async def template(console: Console) -> pb.DeploymentTemplate:
    return await console.template((await console.model()).id)


async def enqueued(console: Console) -> None:
    async with asyncio.timeout(LONGEST_S):
        while not console.planner.jobs:
            await asyncio.sleep(0.01)


KEYS: list[dict[str, str]] = [{}, {"idempotency_key": "k", "request_hash": "h"}]


@pytest.mark.parametrize("key", KEYS, ids=["", "key"])
async def test_a_job_that_comes_after_the_question_is_undone(
    console: Console, template: pb.DeploymentTemplate, key: dict[str, str]
) -> None:
    console.planner.pause = gate = Gate("after ListJobs")
    deletion = asyncio.create_task(delete(console, template))
    await gate.reached.wait()
    job = asyncio.create_task(make(console, template, **key))
    await enqueued(console)
    gate.opened.set()
    await deletion
    with pytest.raises(NotFound, match=r"was deleted while the job was made\. Job job_1 is cancelled") as undone:
        await job
    assert undone.value.context["param"] == "model_template_name"
    assert console.planner.jobs["job_1"].status == Job.CANCELLING
    with pytest.raises(NotFound, match="has no"):
        await make(console, template, **key)
    assert len(console.planner.jobs) == 1


async def test_a_job_that_comes_before_the_question_keeps_its_template(
    console: Console, template: pb.DeploymentTemplate
) -> None:
    console.planner.pause = gate = Gate("before ListJobs")
    deletion = asyncio.create_task(delete(console, template))
    await gate.reached.wait()
    job = asyncio.create_task(make(console, template))
    await enqueued(console)
    gate.opened.set()
    assert (await job).status == Job.QUEUED
    with pytest.raises(Conflict, match="job_1 uses it"):
        await deletion
    assert await is_there(console, template)


async def test_a_deletion_that_takes_too_long_does_not_happen(
    console: Console, template: pb.DeploymentTemplate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its console may be dead: jobs do not wait for it for ever."""
    monkeypatch.setattr(jobs, "DELETION_S", 0.1)
    console.planner.pause = gate = Gate("after ListJobs")
    deletion = asyncio.create_task(delete(console, template))
    await gate.reached.wait()
    assert (await make(console, template)).status == Job.QUEUED
    gate.opened.set()
    with pytest.raises(Conflict, match="was not deleted") as refused:
        await deletion
    assert refused.value.context["param"] == "id"
    assert await is_there(console, template)


async def test_a_deletion_that_fails_holds_nobody_up(
    console: Console, template: pb.DeploymentTemplate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "LOOK_S", LONGEST_S)
    console.planner.is_down = True
    with pytest.raises(Unavailable):
        await delete(console, template)
    console.planner.is_down = False
    async with asyncio.timeout(LONGEST_S / 2):
        await make(console, template)
    with pytest.raises(Conflict):
        await delete(console, template)
    async with asyncio.timeout(LONGEST_S / 2):
        await make(console, template)


async def test_of_deletions_at_once_one_says_that_it_did_it(console: Console, template: pb.DeploymentTemplate) -> None:
    outcomes = await asyncio.gather(*(delete(console, template) for _ in range(5)), return_exceptions=True)
    assert outcomes.count(None) == 1
    assert {type(outcome) for outcome in outcomes} <= {type(None), Conflict, NotFound}
    assert not await is_there(console, template)


async def test_a_retry_needs_no_template(console: Console, template: pb.DeploymentTemplate) -> None:
    job = await make(console, template)
    await console.planner.move(job.id, Job.FAILED)
    await delete(console, template)
    asked = jobs_pb2.RetryJobRequest(project_id="default", id=job.id)
    assert (await console.jobs.RetryJob(asked)).retry_of == job.id


@pytest.fixture
async def both(make_settings: Callable[..., Settings], database_url: str) -> AsyncIterator[tuple[Console, Console]]:
    """Two consoles over one database, before one planner."""
    settings = make_settings(console={"database_url": database_url})
    async with (
        serving_console(settings) as first,
        serving_console(settings, first.clock, first.settings.planner_addr) as second,
    ):
        yield first, second


async def test_never_do_both_succeed(both: tuple[Console, Console]) -> None:
    console, other = both
    chance = random.Random(7)

    async def pause(what: str) -> None:
        await asyncio.sleep(chance.choice((0.0, 0.001, 0.004)))

    console.planner.pause = pause
    model_id = (await console.model()).id
    deleted = made = 0
    for number in range(ROUNDS):
        template = await console.template(model_id, version=f"v{number}")
        outcomes = await asyncio.gather(make(console, template), delete(other, template), return_exceptions=True)
        job, deletion = outcomes
        if deletion is None:
            deleted += 1
            assert isinstance(job, NotFound), outcomes
            assert live(console, template) == []
            assert not await is_there(console, template)
        else:
            made += 1
            assert isinstance(deletion, Conflict), outcomes
            assert isinstance(job, Job), outcomes
            assert live(console, template) == [job.id]
            assert await is_there(console, template)
    assert deleted + made == ROUNDS
