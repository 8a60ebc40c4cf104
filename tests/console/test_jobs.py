from __future__ import annotations

import asyncio
import json
from datetime import timedelta

import grpc
import pytest
import sqlalchemy as sa

from brix.console.v1 import access_pb2, jobs_pb2, models_pb2
from brix.console.v1 import deployment_templates_pb2 as templates_pb2
from brix.type.v1 import job_pb2
from services.console.domain import KEY_LIFE
from services.console.store.tables import job_requests
from services.kit.errors import (
    AlreadyExists,
    Conflict,
    IllegalTransition,
    InvalidArgument,
    NotFound,
    QuotaExceeded,
    Unavailable,
)
from services.kit.grpc_errors import raising
from services.kit.sql import create_engine
from tests.console.conftest import Console, a_spec, serving_console
from tests.metadata.conftest import CHAT, eventually

Job = job_pb2.Job


async def get(console: Console, id: str, project_id: str = "default") -> Job:
    return await console.jobs.GetJob(jobs_pb2.GetJobRequest(project_id=project_id, id=id))


async def cancel(console: Console, id: str, project_id: str = "default") -> Job:
    return await console.jobs.CancelJob(jobs_pb2.CancelJobRequest(project_id=project_id, id=id))


async def retry(console: Console, id: str, **fields) -> Job:
    asked = {"project_id": "default", "created_by": "somebody"} | fields
    return await console.jobs.RetryJob(jobs_pb2.RetryJobRequest(id=id, **asked))


async def listed(console: Console, **fields) -> jobs_pb2.ListJobsResponse:
    asked = {"project_id": "default"} | fields
    return await console.jobs.ListJobs(jobs_pb2.ListJobsRequest(**asked))


async def set_quota(console: Console, **fields) -> None:
    await console.access.UpdateQuota(access_pb2.UpdateQuotaRequest(project_id="default", **fields))


async def delete_template(console: Console, template: templates_pb2.DeploymentTemplate) -> None:
    await console.templates.DeleteDeploymentTemplate(
        templates_pb2.DeleteDeploymentTemplateRequest(project_id="default", model_id=template.model_id, id=template.id)
    )


async def test_the_seeds_body_makes_a_job(console):
    model = await console.model("Llama", serving_name="llama-served")
    template = await console.template(model.id, version="v1.2.0")
    made = await console.job(
        name="nightly",
        created_by="key of Ann",
        input_dataset="file-abc",
        completion_window="90min",
        model_id=model.id,
        model_template_name="llama",
        model_template_version="v1.2.0",
        client_json='{"max_concurrency": 8}',
        resource_request_json='{"replicas": 1, "providers": ["runpod", "lambdaCloud"], "spot": false}',
        metadata_json='{"team": "search"}',
        priority="high",
        budget_usd=12.5,
    )
    expected = Job(
        id=made.id,
        project_id="default",
        status=Job.QUEUED,
        revision=1,
        name="nightly",
        created_by="key of Ann",
        input_dataset="file-abc",
        endpoint=CHAT,
        completion_window="90min",
        model_id=model.id,
        model="llama-served",
        model_template_name="llama",
        model_template_version="v1.2.0",
        model_template_spec_json=template.spec_json,
        client_json='{"max_concurrency": 8}',
        resource_request_json='{"replicas":1,"providers":["runpod","lambdaCloud"]}',
        metadata_json='{"team": "search"}',
        priority=10,
        budget_usd=12.5,
    )
    assert made == expected
    assert await get(console, made.id) == made


async def test_what_is_left_out(console):
    model_id, _ = await console.ready()
    later = await console.template(model_id, version="v2")
    await console.template(model_id, version="v3", status="draft")
    made = await console.job(model_template_name="llama")
    assert (made.model_id, made.model, made.model_template_version) == (model_id, "owner/model", later.version)
    assert (made.completion_window, made.priority, made.name) == ("24h", 0, "")
    assert not any(made.HasField(f"{name}_json") for name in ("client", "resource_request", "metadata"))
    assert not made.HasField("budget_usd")
    assert (await console.job(model_template_name="llama", priority="low")).priority == -10
    assert (await console.job(model_template_name="llama", completion_window="", priority="")).priority == 0
    named = await console.job(model_id=model_id, model_template_name="llama", model_template_version="v3")
    assert named.model_template_version == "v3"


@pytest.mark.parametrize(("default", "version"), [("llama", "v2"), ("llama@v1.0.0", "v1.0.0")])
async def test_a_default_template(make_settings, default, version):
    settings = make_settings().model_copy(update={"default_template": default})
    async with serving_console(settings) as console:
        model_id, _ = await console.ready()
        await console.template(model_id, version="v2")
        assert (await console.job()).model_template_version == version
        assert (await console.job(model_id=model_id, model_template_name="")).model_template_version == version
        with pytest.raises(InvalidArgument) as wrong:
            await console.job(model_template_version="v2")
        assert wrong.value.context["param"] == "model_template_name"


async def test_the_default_template_is_named_by_its_variable(make_settings, monkeypatch):
    monkeypatch.setenv("DEFAULT_BATCH_MODEL_DEPLOYMENT_TEMPLATE", "llama@v2")
    async with serving_console(make_settings()) as console:
        for error, text in ((NotFound, "has a template 'llama'"), (NotFound, "has no version 'v2'")):
            with pytest.raises(error, match=text) as missing:
                await console.job()
            assert "default template of this server (DEFAULT_BATCH_MODEL_DEPLOYMENT_TEMPLATE)" in missing.value.message
            model_id, _ = await console.ready(name=text)
        assert missing.value.context["param"] == "model_template_version"
        with pytest.raises(NotFound) as theirs:
            await console.job(model_template_name="mine", model_id=model_id)
        assert "DEFAULT_BATCH" not in theirs.value.message
        await console.template(model_id, version="v2")
        made = await console.job(model_id=model_id)
        assert (made.model_template_name, made.model_template_version) == ("llama", "v2")


async def test_without_a_default_template_one_must_be_named(make_settings, monkeypatch):
    monkeypatch.delenv("DEFAULT_BATCH_MODEL_DEPLOYMENT_TEMPLATE", raising=False)
    async with serving_console(make_settings()) as console:
        await console.ready()
        with pytest.raises(InvalidArgument, match="DEFAULT_BATCH_MODEL_DEPLOYMENT_TEMPLATE") as missing:
            await console.job()
        assert missing.value.context == {"param": "model_template_name", "code": "missing_required_parameter"}


async def test_a_template_name_that_several_models_have(console):
    first, _ = await console.ready()
    second, _ = await console.ready(name="other")
    with pytest.raises(InvalidArgument) as wrong:
        await console.job(model_template_name="llama")
    assert wrong.value.context == {"param": "model_id", "code": "missing_required_parameter"}
    assert first in wrong.value.message
    assert second in wrong.value.message
    assert (await console.job(model_template_name="llama", model_id=second)).model_id == second


async def test_what_is_not_there(console):
    model_id, _ = await console.ready()
    await console.template(model_id, "old", status="deprecated")
    theirs = await console.model("theirs", project_id="other")
    await console.template(theirs.id, "theirs", project_id="other")
    for fields, error, param in (
        ({"model_id": "nothing", "model_template_name": "llama"}, NotFound, "model_id"),
        ({"model_id": theirs.id, "model_template_name": "theirs"}, NotFound, "model_id"),
        ({"model_id": "a\0", "model_template_name": "llama"}, NotFound, "model_id"),
        ({"model_id": "x" * 5000, "model_template_name": "llama"}, NotFound, "model_id"),
        ({"model_template_name": "theirs"}, NotFound, "model_template_name"),
        ({"model_template_name": "a\0"}, NotFound, "model_template_name"),
        ({"model_template_name": "x" * 5000}, NotFound, "model_template_name"),
        ({"model_id": model_id, "model_template_name": "nothing"}, NotFound, "model_template_name"),
        (
            {"model_id": model_id, "model_template_name": "llama", "model_template_version": "v9"},
            NotFound,
            "model_template_version",
        ),
        ({"model_id": model_id, "model_template_name": "old"}, Conflict, "model_template_version"),
    ):
        with pytest.raises(error) as missing:
            await console.job(**fields)
        assert missing.value.context["param"] == param
        assert len(missing.value.message) < 400
    assert console.planner.enqueued == []


WRONG = [
    ({"input_dataset": ""}, "input_dataset"),
    ({"input_dataset": "a\0"}, "input_dataset"),
    ({"input_dataset": "x" * 256}, "input_dataset"),
    ({"endpoint": ""}, "endpoint"),
    ({"endpoint": "/v1/images"}, "endpoint"),
    ({"endpoint": "/v1/embeddings"}, "endpoint"),
    ({"endpoint": "a\0" * 500}, "endpoint"),
    ({"completion_window": "soon"}, "completion_window"),
    ({"completion_window": "0h"}, "completion_window"),
    ({"completion_window": "a\0"}, "completion_window"),
    ({"completion_window": "366d"}, "completion_window"),
    ({"completion_window": "999999999d999999999h"}, "completion_window"),
    ({"completion_window": "999999999d999999999h999999999min"}, "completion_window"),
    ({"name": "a\0"}, "name"),
    ({"name": "x" * 256}, "name"),
    ({"created_by": "a\0"}, "created_by"),
    ({"model_template_name": ""}, "model_template_name"),
    ({"model_template_name": "", "model_template_version": "v1"}, "model_template_name"),
    ({"client_json": ""}, "client"),
    ({"client_json": "[]"}, "client"),
    ({"client_json": "{"}, "client"),
    ({"client_json": '{"a": 1}'}, "client.a"),
    ({"client_json": '{"max_concurrency": 0}'}, "client.max_concurrency"),
    ({"client_json": '{"max_concurrency": "8"}'}, "client.max_concurrency"),
    ({"client_json": '{"max_concurrency": 257}'}, "client.max_concurrency"),
    ({"client_json": '{"retry_policy": {"max_retries": -1}}'}, "client.retry_policy.max_retries"),
    ({"resource_request_json": "1"}, "resource_request"),
    ({"resource_request_json": '{"gpus": 1}'}, "resource_request.gpus"),
    ({"resource_request_json": '{"replicas": 0}'}, "resource_request.replicas"),
    ({"resource_request_json": '{"replicas": 1025}'}, "resource_request.replicas"),
    ({"resource_request_json": '{"replicas": 1.5}'}, "resource_request.replicas"),
    ({"resource_request_json": '{"providers": []}'}, "resource_request.providers"),
    ({"resource_request_json": '{"providers": "runpod"}'}, "resource_request.providers"),
    ({"resource_request_json": '{"providers": ["a", "a"]}'}, "resource_request.providers"),
    ({"resource_request_json": '{"providers": ["a/b"]}'}, "resource_request.providers.0"),
    ({"resource_request_json": '{"regions": ["a\\u0000"]}'}, "resource_request.regions.0"),
    ({"resource_request_json": '{"max_hourly_price_usd": 0}'}, "resource_request.max_hourly_price_usd"),
    ({"resource_request_json": '{"max_hourly_price_usd": 1e999}'}, "resource_request"),
    ({"resource_request_json": '{"labels": {"a": 1}}'}, "resource_request.labels.a"),
    ({"resource_request_json": '{"spot": true}'}, "resource_request.spot"),
    ({"metadata_json": "{"}, "metadata"),
    ({"metadata_json": "[]"}, "metadata"),
    ({"metadata_json": '{"a": 1}'}, "metadata.a"),
    ({"metadata_json": '{"a": "\\u0000"}'}, "metadata.a"),
    ({"metadata_json": json.dumps({"a": "x" * 513})}, "metadata.a"),
    ({"metadata_json": json.dumps({"x" * 65: ""})}, "metadata"),
    ({"metadata_json": json.dumps({str(n): "" for n in range(17)})}, "metadata"),
    ({"priority": "High"}, "priority"),
    ({"priority": "a\0"}, "priority"),
    ({"budget_usd": 0}, "budget_usd"),
    ({"budget_usd": -1}, "budget_usd"),
    ({"budget_usd": float("nan")}, "budget_usd"),
    ({"budget_usd": float("inf")}, "budget_usd"),
    ({"idempotency_key": "", "request_hash": "a"}, "idempotency_key"),
    ({"idempotency_key": "a"}, "request_hash"),
    ({"idempotency_key": "a\0", "request_hash": "a"}, "idempotency_key"),
    ({"idempotency_key": "x" * 256, "request_hash": "a"}, "idempotency_key"),
    ({"idempotency_key": "x", "request_hash": "a" * 65}, "request_hash"),
    ({"call_id": "once_1"}, "request_hash"),
    ({"call_id": "x" * 256, "request_hash": "a"}, "idempotency_key"),
]


@pytest.mark.parametrize(("fields", "param"), WRONG, ids=lambda value: str(value)[:60])
async def test_wrong_fields(console, fields, param):
    _, needed = await console.ready()
    with pytest.raises(InvalidArgument) as wrong:
        await console.job(**(needed | fields))
    assert wrong.value.context["param"] == param
    assert len(wrong.value.message) < 600
    assert console.planner.enqueued == []


async def test_the_planners_refusal_is_passed_on(console):
    _, needed = await console.ready()

    def refuse() -> None:
        raise InvalidArgument("no such provider", param="resource_request.providers.0")

    console.planner.before_each = refuse
    with pytest.raises(InvalidArgument) as wrong:
        await console.job(**needed, idempotency_key="k", request_hash="one")
    assert wrong.value.context["param"] == "resource_request.providers.0"
    # Refused for good, so the key is free for something better.
    console.planner.before_each = lambda: None
    assert (await console.job(**needed, idempotency_key="k", request_hash="two")).id


async def test_one_key_is_one_job_whatever_happens_meanwhile(console):
    model_id, needed = await console.ready()
    asked = needed | {"idempotency_key": "k", "request_hash": "h"}
    first = await console.job(**asked)
    await set_quota(console, max_live_jobs=1)
    await console.template(model_id, version="v2")
    assert await console.job(**asked) == first
    with pytest.raises(AlreadyExists) as used:
        await console.job(**(asked | {"request_hash": "other"}))
    assert used.value.context["param"] == "Idempotency-Key"
    with pytest.raises(QuotaExceeded):
        await console.job(**needed)
    theirs = await console.model(project_id="other")
    await console.template(theirs.id, project_id="other")
    other = await console.job(
        model_template_name="llama", project_id="other", idempotency_key="k", request_hash="other"
    )
    assert other.id != first.id


async def test_a_key_is_forgotten_after_its_time(console):
    model_id, needed = await console.ready()
    asked = needed | {"idempotency_key": "k", "request_hash": "h"}
    await console.job(**asked)
    await console.planner.move("job_1", Job.COMPLETED)
    await delete_template(console, await console.resolve(model_id))
    console.clock.advance((KEY_LIFE - timedelta(seconds=1)).total_seconds())
    assert (await console.job(**asked)).id == "job_1"
    console.clock.advance(1)
    with pytest.raises(NotFound):
        await console.job(**asked)


async def test_many_creates_with_one_key_at_once(console):
    _, needed = await console.ready()
    asked = needed | {"idempotency_key": "k", "request_hash": "h"}
    made = await asyncio.gather(*(console.job(**asked) for _ in range(8)))
    assert {job.id for job in made} == {"job_1"}
    answers = await asyncio.gather(
        *(console.job(**needed, idempotency_key="l", request_hash=f"{n}") for n in range(6)), return_exceptions=True
    )
    assert sorted(type(answer).__name__ for answer in answers) == ["AlreadyExists"] * 5 + ["Job"]


OF_A_CALL = {"call_id": "once_1", "request_hash": "h"}


async def written_down(console) -> list[str]:
    """The keys that the console's database holds."""
    engine = create_engine(console.settings.console_database_url())
    async with engine.connect() as connection:
        keys = [row.key for row in await connection.execute(sa.select(job_requests.c.key))]
    await engine.dispose()
    return keys


async def test_only_what_its_user_may_send_again_is_written_down(console):
    _, needed = await console.ready()
    first = await console.job(**needed, **OF_A_CALL)
    await console.planner.move(first.id, Job.FAILED)
    await retry(console, first.id, call_id="once_2", request_hash="h")
    assert await written_down(console) == []
    await console.job(**needed, idempotency_key="k", request_hash="h")
    assert await written_down(console) == ["k"]


async def test_the_gateways_own_repeating_makes_one_job(console):
    """It sends the same call again when the console's answer was lost."""
    _, needed = await console.ready()
    first = await console.job(**needed, **OF_A_CALL)
    assert (await console.job(**needed, **OF_A_CALL)).id == first.id
    await console.planner.move(first.id, Job.FAILED)
    again = [(await retry(console, first.id, call_id="once_2", request_hash="h")).id for _ in range(2)]
    assert again == ["job_2", "job_2"]
    assert list(console.planner.jobs) == ["job_1", "job_2"]


@pytest.mark.parametrize("key", [{}, {"idempotency_key": "k", "request_hash": "h"}, OF_A_CALL])
@pytest.mark.parametrize("lost", [1, 2])
async def test_a_lost_call_or_answer_of_the_planner_makes_no_second_job(console, key, lost):
    """The planner fails before (1) or after (2) it has made the job; the channel asks it again."""
    _, needed = await console.ready()
    calls = 0

    def fail_once() -> None:
        nonlocal calls
        calls += 1
        if calls == lost:
            raise Unavailable("lost")

    console.planner.before_each = fail_once
    made = await console.job(**needed, **key)
    assert list(console.planner.jobs) == [made.id]
    assert len(console.planner.enqueued) == 2
    assert console.planner.enqueued[0] == console.planner.enqueued[1]


async def test_a_console_that_dies_before_the_planner_answers(make_settings):
    """Its user asks another one, when the template is another one already."""
    settings = make_settings()
    async with serving_console(settings) as console:
        model_id, needed = await console.ready()
        asked = needed | {"idempotency_key": "k", "request_hash": "h"}

        def down() -> None:
            raise Unavailable("down")

        console.planner.before_each = down
        with pytest.raises(Unavailable):
            await console.job(**asked)
        await console.template(model_id, version="v2")
        clock = console.clock
    async with serving_console(settings, clock) as console:
        assert (await console.job(**asked)).model_template_version == "v1.0.0"


async def test_quotas(console):
    model = await console.model()
    await console.template(model.id, spec=a_spec(accelerator={"type": "A10", "count": 4}, parallelism={"tp": 4}))
    await console.template(model.id, "slow", a_spec(accelerator={"type": "CPU", "count": 4}, parallelism={"tp": 4}))
    await set_quota(console, max_gpus=7)
    await console.job(model_template_name="llama")
    with pytest.raises(QuotaExceeded):
        await console.job(model_template_name="llama")
    await console.job(model_template_name="slow")
    await console.planner.move("job_1", Job.COMPLETED)
    with pytest.raises(QuotaExceeded):
        await console.job(model_template_name="llama", resource_request_json='{"replicas": 2}')
    await console.job(model_template_name="llama")


@pytest.mark.parametrize("state", ["FAILED", "EXPIRED", "CANCELLED", "RESOURCE_FAILED", "SUBMIT_FAILED"])
async def test_a_retry_is_a_new_job_with_the_old_template(console, state):
    model_id, needed = await console.ready()
    fields = {"client_json": '{"max_concurrency": 1}', "priority": "low", "budget_usd": 2.0, "name": "n"}
    old = await console.job(**needed, **fields)
    console.planner.jobs[old.id].MergeFrom(
        Job(batch_id="batch_1", error_message="why", cost_usd=1.0, events=[job_pb2.JobEvent(id=1)])
    )
    await console.planner.move(old.id, Job.State.Value(state))
    await delete_template(console, await console.resolve(model_id))
    await console.models.DeleteModel(models_pb2.DeleteModelRequest(project_id="default", id=model_id))
    new = await retry(console, old.id)
    expected = Job()
    expected.CopyFrom(old)
    expected.MergeFrom(Job(id=new.id, retry_of=old.id, created_by="somebody"))
    assert new == expected
    assert not new.HasField("metadata_json")


@pytest.mark.parametrize("state", sorted(set(Job.State.keys()) - {"STATE_UNSPECIFIED"}))
async def test_what_may_not_be_retried(console, state):
    _, needed = await console.ready()
    old = await console.job(**needed)
    console.planner.jobs[old.id].status = Job.State.Value(state)
    if state in {"FAILED", "EXPIRED", "CANCELLED", "RESOURCE_FAILED", "SUBMIT_FAILED"}:
        await retry(console, old.id)
    else:
        with pytest.raises(IllegalTransition) as refused:
            await retry(console, old.id)
        assert state.lower() in refused.value.message
        assert len(console.planner.enqueued) == 1


async def test_a_retry_counts_once_and_against_the_quota(console):
    _, needed = await console.ready()
    ids = [(await console.job(**needed)).id for _ in range(2)]
    for id in ids:
        await console.planner.move(id, Job.FAILED)
    await set_quota(console, max_live_jobs=1)
    key = {"idempotency_key": "k", "request_hash": "of an empty body"}
    first = await retry(console, ids[0], **key)
    assert await retry(console, ids[0], **key) == first
    with pytest.raises(AlreadyExists):
        await retry(console, ids[1], **key)
    with pytest.raises(AlreadyExists):
        await console.job(**needed, **key)
    with pytest.raises(QuotaExceeded):
        await retry(console, ids[1])


@pytest.mark.parametrize("id", ["", "nothing", "a\0", "x" * 100_000])
async def test_ids_that_name_nothing(console, id):
    for call in (get(console, id), cancel(console, id), retry(console, id)):
        with pytest.raises(NotFound):
            await call
    with pytest.raises(NotFound):
        await anext(raising(console.jobs.WatchJob(jobs_pb2.WatchJobRequest(project_id="default", id=id))))


async def test_another_projects_job_does_not_exist(console):
    _, needed = await console.ready()
    id = (await console.job(**needed)).id
    for call in (get(console, id, "other"), cancel(console, id, "other"), retry(console, id, project_id="other")):
        with pytest.raises(NotFound):
            await call


async def test_cancel(console):
    _, needed = await console.ready()
    id = (await console.job(**needed)).id
    assert (await cancel(console, id)).status == Job.CANCELLING
    await console.planner.move(id, Job.CANCELLED)
    with pytest.raises(IllegalTransition):
        await cancel(console, id)


async def test_lists(console):
    model_id, needed = await console.ready()
    ids = [(await console.job(**needed)).id for _ in range(5)]
    await console.planner.move(ids[0], Job.FAILED)
    await console.planner.move(ids[1], Job.RESOURCE_FAILED)
    page = await listed(console, limit=2)
    assert ([job.id for job in page.data], page.has_more) == ([ids[4], ids[3]], True)
    page = await listed(console, limit=3, after=ids[3])
    assert ([job.id for job in page.data], page.has_more) == ([ids[2], ids[1], ids[0]], False)
    page = await listed(console, status=["failed", "resource_failed"], model_id=model_id, model_template_name="llama")
    assert [job.id for job in page.data] == [ids[1], ids[0]]
    assert console.planner.listed[-1].page_size == 20
    assert not (await listed(console, model_id="other")).data
    assert len((await listed(console, model_id="", model_template_name="")).data) == 5


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"limit": 101}, "limit"),
        ({"limit": 0}, "limit"),
        ({"limit": -1}, "limit"),
        ({"status": ["QUEUED"]}, "status"),
        ({"status": ["queued", "state_unspecified"]}, "status"),
        ({"status": [""]}, "status"),
        ({"after": "a\0"}, "after"),
        ({"model_id": "a\0"}, "model_id"),
        ({"model_template_name": "a\0"}, "model_template_name"),
    ],
)
async def test_wrong_lists(console, fields, param):
    with pytest.raises(InvalidArgument) as wrong:
        await listed(console, **fields)
    assert wrong.value.context["param"] == param
    if param == "status":
        assert "'resource_preparing'" in wrong.value.message


async def test_a_watch_ends_with_the_job(console):
    _, needed = await console.ready()
    id = (await console.job(**needed)).id
    seen: list[int] = []
    call = console.jobs.WatchJob(jobs_pb2.WatchJobRequest(project_id="default", id=id))
    async for job in raising(call):
        seen.append(job.status)
        if job.status == Job.QUEUED:
            await console.planner.move(id, Job.PLANNED)
        elif job.status == Job.PLANNED:
            await console.planner.move(id, Job.FAILED)
    assert seen == [Job.QUEUED, Job.PLANNED, Job.FAILED]
    assert (await call.code()) == grpc.StatusCode.OK
    later = console.jobs.WatchJob(jobs_pb2.WatchJobRequest(project_id="default", id=id, after_revision=1))
    assert [job.revision async for job in raising(later)] == [3]


async def test_a_watcher_who_leaves_leaves_the_planner_too(console):
    _, needed = await console.ready()
    id = (await console.job(**needed)).id
    call = console.jobs.WatchJob(jobs_pb2.WatchJobRequest(project_id="default", id=id))
    assert (await anext(raising(call))).id == id
    assert console.planner.watching == 1
    call.cancel()

    async def left() -> bool:
        return console.planner.watching == 0

    await eventually(left)
