"""Quotas: set with a revision, and what they refuse."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from brix.console.v1 import access_pb2
from brix.console.v1.jobs_pb2 import RetryJobRequest
from brix.type.v1.job_pb2 import Job
from services.console.service import access_usage
from services.kit.errors import Conflict, InvalidArgument, QuotaExceeded, Unavailable
from services.kit.settings import Settings
from tests.console.conftest import Console, a_spec, serving_console


async def get(console: Console, project: str = "default") -> access_pb2.Quota:
    return await console.access.GetQuota(access_pb2.GetQuotaRequest(project_id=project))


async def limit(console: Console, revision: int = 0, **limits: Any) -> access_pb2.Quota:
    request = access_pb2.UpdateQuotaRequest(project_id="default", revision=revision, **limits)
    return await console.access.UpdateQuota(request)


def past(console: Console, number: int, when: datetime, **fields: Any) -> None:
    """A job that the planner has had for a while."""
    job = Job(id=f"old_{number}", project_id="default", status=Job.COMPLETED, create_time=Timestamp(), **fields)
    job.create_time.FromDatetime(when)
    console.planner.jobs[job.id] = job


async def test_nothing_is_limited_until_somebody_says_so(console: Console) -> None:
    quota = await get(console)
    assert quota == access_pb2.Quota(project_id="default")
    _, ready = await console.ready()
    for _ in range(3):
        await console.job(**ready)
    assert (await get(console)).live_jobs == 3
    assert (await get(console, "other")).live_jobs == 0


async def test_limits_are_set_one_by_one(console: Console) -> None:
    first = await limit(console, max_live_jobs=5)
    assert (first.max_live_jobs, first.HasField("max_gpus"), first.revision) == (5, False, 1)
    second = await limit(console, 1, max_gpus=0, max_monthly_cost_usd=0.5)
    assert (second.max_live_jobs, second.max_gpus, second.max_monthly_cost_usd, second.revision) == (5, 0, 0.5, 2)
    assert await get(console) == second
    assert not (await get(console, "other")).HasField("max_live_jobs")


async def test_another_revision_changes_nothing(console: Console) -> None:
    await limit(console, max_live_jobs=5)
    await limit(console, 1, max_live_jobs=6)
    for revision in (0, 1, 3, 2**61):
        with pytest.raises(Conflict, match="at revision 2") as caught:
            await limit(console, revision, max_live_jobs=7)
        assert caught.value.context["param"] == "revision"
    assert (await get(console)).max_live_jobs == 6


async def test_the_same_call_again_is_no_conflict(console: Console) -> None:
    """Its answer may have been lost."""
    first = await limit(console, max_live_jobs=5)
    assert await limit(console, max_live_jobs=5) == first
    second = await limit(console, 1, max_gpus=1)
    assert await limit(console, 1, max_gpus=1) == second


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"max_live_jobs": -1}, "max_live_jobs", "integer_below_min_value"),
        ({"max_gpus": -(2**31)}, "max_gpus", "integer_below_min_value"),
        ({"max_monthly_cost_usd": -0.01}, "max_monthly_cost_usd", "invalid_value"),
        ({"max_monthly_cost_usd": float("nan")}, "max_monthly_cost_usd", "invalid_value"),
        ({"max_monthly_cost_usd": float("inf")}, "max_monthly_cost_usd", "invalid_value"),
        ({"max_monthly_cost_usd": 1e300}, "max_monthly_cost_usd", "invalid_value"),
        ({"revision": -1}, "revision", "invalid_value"),
        ({"revision": 2**63 - 1}, "revision", "invalid_value"),
    ],
)
async def test_what_is_wrong_with_a_quota(console: Console, fields: dict[str, Any], param: str, code: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        await limit(console, **fields)
    assert (caught.value.context["param"], caught.value.context["code"]) == (param, code)
    assert await get(console) == access_pb2.Quota(project_id="default")


async def test_as_many_jobs_as_may_live(console: Console) -> None:
    _, ready = await console.ready()
    await limit(console, max_live_jobs=2)
    first = await console.job(**ready)
    await console.job(**ready)
    with pytest.raises(QuotaExceeded, match="has 2 jobs that have not ended, and may have 2") as caught:
        await console.job(**ready)
    assert caught.value.context["code"] == "insufficient_quota"
    assert len(console.planner.jobs) == 2
    await console.planner.move(first.id, Job.FAILED)
    await console.jobs.RetryJob(RetryJobRequest(project_id="default", id=first.id))
    with pytest.raises(QuotaExceeded):
        await console.jobs.RetryJob(RetryJobRequest(project_id="default", id=first.id))


async def test_a_job_that_may_live_nowhere(console: Console) -> None:
    _, ready = await console.ready()
    await limit(console, max_live_jobs=0)
    with pytest.raises(QuotaExceeded):
        await console.job(**ready)


async def test_gpus_count_for_waiting_jobs_too_and_once_for_jobs_that_share(console: Console) -> None:
    model = await console.model()
    await console.template(model.id, "four", a_spec(accelerator={"type": "A10", "count": 4}, parallelism={"tp": 4}))
    await console.template(model.id, "cpu", a_spec(accelerator={"type": "cpu", "count": 8}, parallelism={"tp": 8}))
    await limit(console, max_gpus=12)
    four, cpu = ({"model_id": model.id, "model_template_name": name} for name in ("four", "cpu"))
    first = await console.job(**four)
    second = await console.job(**four, resource_request_json=json.dumps({"replicas": 2}))
    await console.job(**cpu)
    with pytest.raises(
        QuotaExceeded, match=r"takes 4 GPUs\. The live jobs of this project take 12, and it may have 12"
    ):
        await console.job(**four)
    for job in (first, second):
        await console.planner.move(job.id, Job.IN_PROGRESS, provision_id="prov-1")
    third = await console.job(**four)
    assert third.id
    with pytest.raises(QuotaExceeded):
        await console.job(**four, resource_request_json=json.dumps({"replicas": 3}))


async def test_what_the_jobs_of_a_month_cost(console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access_usage, "COST_MEMORY", timedelta(0))
    console.clock.time = datetime(2026, 3, 1, 0, 0, 5, tzinfo=UTC)
    _, ready = await console.ready()
    await limit(console, max_monthly_cost_usd=10)
    past(console, 1, datetime(2026, 2, 28, 23, 59, 59, tzinfo=UTC), cost_usd=1000)
    past(console, 2, datetime(2026, 3, 1, tzinfo=UTC), cost_usd=4.0)
    past(console, 3, datetime(2026, 3, 1, 0, 0, 1, tzinfo=UTC), cost_usd=5.99)
    made = await console.job(**ready)
    console.planner.jobs[made.id].create_time.FromDatetime(console.clock.time)
    past(console, 4, datetime(2026, 3, 1, 0, 0, 2, tzinfo=UTC), cost_usd=0.01)
    with pytest.raises(QuotaExceeded, match=r"has cost 10\.00 US dollars, and this project may spend 10\.00"):
        await console.job(**ready)
    console.clock.time = datetime(2026, 4, 1, tzinfo=UTC)
    await console.job(**ready)


async def test_a_months_cost_is_not_added_up_for_every_job(console: Console) -> None:
    _, ready = await console.ready()
    await limit(console, max_monthly_cost_usd=10)
    await console.job(**ready)
    asked = len(console.planner.usages)
    for _ in range(5):
        await console.job(**ready)
    assert len(console.planner.usages) == asked


async def test_the_planner_counts_and_only_what_has_a_limit(console: Console) -> None:
    _, ready = await console.ready()
    await console.job(**ready)
    assert console.planner.usages == []
    seen = []
    for revision, limits in enumerate(({"max_live_jobs": 9}, {"max_gpus": 9}, {"max_monthly_cost_usd": 9})):
        await limit(console, revision, **limits)
        console.planner.usages.clear()
        await console.job(**ready)
        seen.append([(asked.gpus, asked.HasField("since")) for asked in console.planner.usages])
    assert seen == [[(False, False)], [(True, False)], [(True, False), (False, True)]]
    assert console.planner.listed == []


async def test_without_the_planner_nobody_is_let_past_a_quota(console: Console) -> None:
    _, ready = await console.ready()
    await console.job(**ready)
    await limit(console, max_live_jobs=5)
    console.planner.is_down = True
    with pytest.raises(Unavailable):
        await console.job(**ready)
    assert len(console.planner.jobs) == 1


async def test_a_quota_outlives_a_restart(make_settings: Callable[..., Settings], database_url: str) -> None:
    settings = make_settings(console={"database_url": database_url})
    async with serving_console(settings) as console:
        await limit(console, max_gpus=3)
    async with serving_console(settings) as console:
        assert (await get(console)).max_gpus == 3
