"""What a profile does to a batch: its quota, its deadline, its place in the queue, how its requests are sent."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.metadata.conftest import State, some_lines


def profile(scheduling: dict[str, Any] | None = None, quota: dict[str, Any] | None = None, **more: Any) -> str:
    spec = {"scheduling": scheduling or {}, "quota": quota or {}}
    return json.dumps({"profile": {"name": "p", "spec": spec}, **more})


async def test_requests_above_the_quota_fail_the_batch(metadata):
    file = await metadata.file(some_lines(3))
    small, enough = (profile(quota={"max_requests_per_batch": count}) for count in (2, 3))
    batch = await metadata.batch(input_file_id=file.id, aibrix_json=small)
    failed = await metadata.reaches(batch.id, State.FAILED)
    assert [(error.code, error.line) for error in failed.errors] == [("too_many_tasks", 3)]
    assert "2 requests" in failed.errors[0].message
    batch = await metadata.batch(input_file_id=file.id, aibrix_json=enough)
    await metadata.reaches(batch.id, State.IN_PROGRESS)


async def test_an_input_above_the_quota_fails_the_batch(metadata):
    file = await metadata.file(some_lines(3))
    block = profile(quota={"max_input_size_mb": 0.0001})
    batch = await metadata.batch(input_file_id=file.id, aibrix_json=block)
    failed = await metadata.reaches(batch.id, State.FAILED)
    assert [(error.code, error.param) for error in failed.errors] == [("file_too_large", "input_file_id")]


@pytest.mark.parametrize(
    ("own", "of_profile", "seconds"),
    [("24h", "4h", 4 * 3600), ("1h", "4h", 3600), ("24h", "best_effort", 86_400), ("24h", None, 86_400)],
)
async def test_the_earlier_deadline_holds(metadata, own, of_profile, seconds):
    file = await metadata.file(some_lines(1))
    block = profile({"completion_window": of_profile})
    batch = await metadata.batch(input_file_id=file.id, aibrix_json=block, completion_window=own)
    assert batch.completion_window == own
    assert (batch.expire_time.ToDatetime() - batch.create_time.ToDatetime()).total_seconds() == seconds


async def test_runners_take_the_urgent_first(metadata):
    order = [{"priority": "low"}, {"completion_window": "best_effort"}, {}, {"priority": "high"}]
    ids = [(await metadata.running(1, aibrix_json=profile(scheduling))).id for scheduling in order]
    # A deadline that is near goes before others of the same priority, not before a higher one.
    near = (await metadata.running(1, completion_window="30min")).id
    taken = []
    while lease := await metadata.acquire():
        taken.append(lease.batch.id)
    assert taken == [ids[3], near, ids[2], ids[1], ids[0]]


async def test_the_field_wins_over_the_profile_and_the_profile_over_the_environment(metadata):
    scheduling = {"max_concurrency": 7, "request_timeout_seconds": 90}
    lease = await metadata.leased(1, aibrix_json=profile(scheduling))
    assert (lease.client.max_concurrency, lease.client.request_timeout_seconds) == (7, 90)
    assert lease.client.max_retries == 5
    block = profile(scheduling, client={"max_concurrency": 3})
    lease = await metadata.leased(1, aibrix_json=block)
    assert lease.client.max_concurrency == 3
    lease = await metadata.leased(1)
    assert lease.client.max_concurrency == 256
    assert not lease.client.HasField("request_timeout_seconds")
    assert not lease.HasField("resolved_json")


async def test_overrides_are_merged_and_kept(metadata):
    block = {
        "profile": {
            "name": "p",
            "spec": {"scheduling": {"max_concurrency": 7, "priority": "low"}},
            "overrides": {"scheduling": {"max_concurrency": 9, "priority": None}},
        }
    }
    lease = await metadata.leased(1, aibrix_json=json.dumps(block))
    assert lease.client.max_concurrency == 9
    kept = json.loads(lease.resolved_json)["profile"]
    assert kept["overrides"] == block["profile"]["overrides"]
    assert kept["spec"]["scheduling"] == {"max_concurrency": 9, "priority": None}
    assert json.loads(lease.batch.aibrix_json) == block


async def test_what_is_committed_is_counted_against_the_output_quota(metadata):
    lease = await metadata.leased(4, aibrix_json=profile(quota={"max_output_size_gb": 1}))
    assert (lease.committed_bytes, lease.max_output_bytes) == (0, 1024**3)
    await metadata.commit(lease, 1, [0, 1], [2])
    metadata.clock.advance(20)
    again = await metadata.acquire("other")
    assert again.committed_bytes == 9
    lease = await metadata.leased(1)
    assert not lease.HasField("max_output_bytes")


async def test_a_profile_that_a_batch_brings_along_allows_no_more_than_the_server(metadata):
    block = profile(quota={"max_requests_per_batch": 10**9, "max_input_size_mb": 10**6})
    lease = await metadata.leased(1, aibrix_json=block)
    kept = json.loads(lease.resolved_json)["profile"]["spec"]["quota"]
    assert kept["max_requests_per_batch"] == metadata.settings.metadata.max_lines
    assert kept["max_input_size_mb"] == 200
