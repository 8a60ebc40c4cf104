"""The console and the real planner, over one database of each kind. There is no metadata: jobs stay in the queue."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from brix.console.v1 import access_pb2, jobs_pb2, models_pb2
from brix.console.v1 import deployment_templates_pb2 as templates_pb2
from brix.type.v1 import job_pb2
from services.kit.errors import (
    AlreadyExists,
    Conflict,
    IllegalTransition,
    InvalidArgument,
    NotFound,
    QuotaExceeded,
)
from services.kit.grpc_errors import raising
from services.kit.settings import Settings
from services.planner import server as planner
from services.planner.service.watch import MOST_OF_A_PROJECT
from tests.conftest import free_port
from tests.console.conftest import Console, a_spec, serving_console
from tests.metadata.conftest import eventually

Job = job_pb2.Job


@pytest.fixture
async def console(make_settings: Callable[..., Settings], database_url: str) -> AsyncIterator[Console]:
    on_one = {name: {"database_url": database_url} for name in ("console", "planner")}
    settings = make_settings(**on_one, metadata_addr=f"127.0.0.1:{free_port()}")
    async with planner.run(settings) as address, serving_console(settings, planner_addr=address) as served:
        yield served


def of(id: str) -> dict[str, str]:
    return {"project_id": "default", "id": id}


async def watched(console: Console, id: str, until: set[int]) -> Job:
    job = Job()
    async for job in raising(console.jobs.WatchJob(jobs_pb2.WatchJobRequest(**of(id)))):
        if job.status in until:
            break
    return job


async def cancelled(console: Console, **needed: str) -> Job:
    job = await console.job(**needed)
    await console.jobs.CancelJob(jobs_pb2.CancelJobRequest(**of(job.id)))
    return await watched(console, job.id, {Job.CANCELLED})


async def test_a_job_from_its_making_to_its_end(console: Console) -> None:
    model_id, needed = await console.ready()
    made = await console.job(
        **needed,
        name="nightly",
        client_json='{"max_concurrency": 8}',
        resource_request_json='{"replicas": 1, "regions": null, "spot": false}',
        metadata_json='{"team": "search"}',
        budget_usd=1.5,
        priority="high",
    )
    assert (made.status, made.priority, made.model, made.name) == (Job.QUEUED, 10, "owner/model", "nightly")
    assert made.expires_time.seconds - made.create_time.seconds == 86_400
    for refused in (
        console.models.DeleteModel(models_pb2.DeleteModelRequest(**of(model_id))),
        console.templates.DeleteDeploymentTemplate(
            templates_pb2.DeleteDeploymentTemplateRequest(
                project_id="default", model_id=model_id, id=(await console.resolve(model_id)).id
            )
        ),
    ):
        with pytest.raises(Conflict):
            await refused
    await console.jobs.CancelJob(jobs_pb2.CancelJobRequest(**of(made.id)))
    ended = await watched(console, made.id, {Job.CANCELLED})
    assert ended.HasField("cancelled_time")
    with pytest.raises(IllegalTransition):
        await console.jobs.CancelJob(jobs_pb2.CancelJobRequest(**of(made.id)))
    again = await console.jobs.RetryJob(jobs_pb2.RetryJobRequest(**of(made.id), created_by="somebody"))
    assert (again.retry_of, again.status, again.created_by) == (made.id, Job.QUEUED, "somebody")
    for field in ("client_json", "metadata_json", "budget_usd", "priority", "model_template_spec_json", "name"):
        assert getattr(again, field) == getattr(made, field)
    with pytest.raises(IllegalTransition):
        await console.jobs.RetryJob(jobs_pb2.RetryJobRequest(**of(again.id)))


async def test_one_key_is_one_job(console: Console) -> None:
    _, needed = await console.ready()
    asked = needed | {"idempotency_key": "k", "request_hash": "h"}
    first = await console.job(**asked)
    await console.access.UpdateQuota(access_pb2.UpdateQuotaRequest(project_id="default", max_live_jobs=1))
    assert (await console.job(**asked)).id == first.id
    with pytest.raises(AlreadyExists):
        await console.job(**(asked | {"request_hash": "other"}))
    with pytest.raises(QuotaExceeded):
        await console.job(**needed)


async def test_lists_and_filters(console: Console) -> None:
    model_id, needed = await console.ready()
    jobs = [await cancelled(console, **needed), *[await console.job(**needed) for _ in range(3)]]
    ids = [job.id for job in reversed(jobs)]

    async def listed(**fields: object) -> tuple[list[str], bool]:
        page = await console.jobs.ListJobs(jobs_pb2.ListJobsRequest(project_id="default", **fields))
        return [job.id for job in page.data], page.has_more

    assert await listed() == (ids, False)
    assert await listed(limit=2) == (ids[:2], True)
    assert await listed(limit=2, after=ids[1]) == (ids[2:], False)
    assert await listed(status=["cancelled", "failed"]) == (ids[3:], False)
    assert await listed(model_id=model_id, model_template_name="llama") == (ids, False)
    assert await listed(model_id="other") == ([], False)
    assert await listed(after="nothing") == ([], False)


async def test_what_only_the_planner_knows(console: Console) -> None:
    _, needed = await console.ready()
    with pytest.raises(InvalidArgument) as wrong:
        await console.job(**needed, resource_request_json='{"providers": ["nobody"]}')
    assert wrong.value.context["param"].startswith("resource_request.providers")
    for call in (
        console.jobs.GetJob(jobs_pb2.GetJobRequest(**of("nothing"))),
        console.jobs.CancelJob(jobs_pb2.CancelJobRequest(**of("nothing"))),
        console.jobs.RetryJob(jobs_pb2.RetryJobRequest(**of("nothing"))),
    ):
        with pytest.raises(NotFound):
            await call
    with pytest.raises(NotFound):
        await watched(console, "nothing", set())


async def test_no_project_takes_the_watchers_of_the_others(console: Console) -> None:
    _, needed = await console.ready()
    theirs = await console.model(project_id="other")
    await console.template(theirs.id, project_id="other")
    ids = {
        "default": (await console.job(**needed)).id,
        "other": (await console.job(model_template_name="llama", project_id="other")).id,
    }

    async def watch(project: str) -> Any:
        call = console.jobs.WatchJob(jobs_pb2.WatchJobRequest(project_id=project, id=ids[project]))
        assert (await anext(raising(call))).id == ids[project]
        return call

    calls = await asyncio.gather(*(watch("default") for _ in range(MOST_OF_A_PROJECT)))
    with pytest.raises(QuotaExceeded, match="This project watches 100 jobs") as refused:
        await watch("default")
    assert refused.value.context == {"code": "rate_limit_exceeded", "retry_after_s": "5"}
    calls.append(await watch("other"))
    calls[0].cancel()

    async def has_room() -> bool:
        try:
            calls.append(await watch("default"))
        except QuotaExceeded:
            return False
        return True

    await eventually(has_room)
    for call in calls:
        call.cancel()


async def test_what_cannot_be_cancelled_is_named(console: Console) -> None:
    _, needed = await console.ready()
    job = await cancelled(console, **needed)
    with pytest.raises(IllegalTransition) as refused:
        await console.jobs.CancelJob(jobs_pb2.CancelJobRequest(**of(job.id)))
    assert refused.value.context == {"param": "id", "state": "CANCELLED"}


async def test_a_quota_of_gpus_counts_what_waits(console: Console) -> None:
    model_id, _ = await console.ready()
    spec = a_spec(accelerator={"type": "A10", "count": 4}, parallelism={"tp": 4})
    await console.template(model_id, "four", spec)
    await console.access.UpdateQuota(access_pb2.UpdateQuotaRequest(project_id="default", max_gpus=8))
    asked = {"model_id": model_id, "model_template_name": "four"}
    for _ in range(2):
        await console.job(**asked)
    with pytest.raises(QuotaExceeded, match=r"takes 4 GPUs\. The live jobs of this project take 8, and it may have 8"):
        await console.job(**asked)
    assert (await console.access.GetQuota(access_pb2.GetQuotaRequest(project_id="default"))).live_jobs == 2
