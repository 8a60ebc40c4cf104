from __future__ import annotations

import asyncio

from brix.metadata.v1 import files_pb2, leases_pb2
from services.metadata.server import opened
from services.metadata.store.tables import batches
from tests.metadata.conftest import State, a_commit, eventually, serving_metadata, some_lines


async def gone(metadata, *keys):
    async def none():
        there = set(await metadata.keys(""))
        return not there & set(keys)

    await eventually(none)


async def test_an_ended_batch_leaves_only_its_results(metadata):
    lease = await metadata.leased(2)
    for sequence in (1, 2):
        commit = a_commit(lease, sequence, [sequence - 1], [])
        await metadata.store.put(commit.segment.output_key, b"{}\n")
        await metadata.leases.CommitSegment(commit)
    stale = f"results/{lease.batch.id}/1/output.jsonl"
    unnamed = f"segments/{lease.batch.id}/1-9.out.jsonl"
    for key in (stale, unnamed):
        await metadata.store.put(key, b"{}\n")
    await metadata.finalize(lease)
    await metadata.finish(lease, State.COMPLETED, output=2)
    await gone(metadata, stale, unnamed, lease.index_key, commit.segment.output_key)
    assert await metadata.keys("results/") == [f"results/{lease.batch.id}/{lease.token}/output.jsonl"]
    assert await metadata.keys("segments/") == []
    assert lease.input_key in await metadata.keys("files/")


async def test_what_a_dead_validator_wrote_goes_with_its_batch(make_settings, database_url):
    section = {"database_url": database_url, "janitor_interval_s": 0.05}
    options = {"default_endpoint": "http://127.0.0.1:9"}
    async with serving_metadata(make_settings(metadata=section | {"validator_count": 0}, **options)) as metadata:
        file = await metadata.file(b"nope")
        batch = await metadata.batch(input_file_id=file.id)
        left = f"indexes/{batch.id}/1"
        await metadata.store.put(left, b"")
        async with opened(metadata.settings) as database:
            await database.write(
                lambda tx: tx.execute(batches.update().where(batches.c.id == batch.id).values(lease_token=1))
            )
    async with serving_metadata(make_settings(metadata=section, **options)) as metadata:
        await metadata.reaches(batch.id, State.FAILED)
        await gone(metadata, left)


async def test_orphans_go_and_named_objects_stay(metadata):
    lease = await metadata.leased(2)
    live = [lease.input_key, lease.index_key, f"segments/{lease.batch.id}/9-1.out.jsonl"]
    await metadata.store.put(live[2], b"{}\n")
    ended = await metadata.completed(1)
    output = await metadata.files.GetFile(files_pb2.GetFileRequest(project_id="default", id=ended.output_file_id))
    orphans = [
        "files/nobody",
        "uploads/upload_x/nobody",
        "segments/batch_unknown/1-1.out.jsonl",
        f"segments/{ended.id}/9-9.out.jsonl",
        f"results/{ended.id}/77/output.jsonl",
        "results/batch_unknown/1/output.jsonl",
        "indexes/batch_unknown/1",
    ]
    for key in orphans:
        await metadata.store.put(key, b"x")
    # A second server, to which everything without a row is old enough.
    impatient = metadata.settings.metadata.model_copy(update={"orphan_age_s": 0})
    async with serving_metadata(metadata.settings.model_copy(update={"metadata": impatient}), metadata.clock):
        await gone(metadata, *orphans)
    assert {*live, output.object_key} <= set(await metadata.keys(""))


async def test_young_objects_are_left_alone(metadata):
    await metadata.store.put("files/being-uploaded", b"x")
    await asyncio.sleep(0.3)
    assert "files/being-uploaded" in await metadata.keys("files/")


async def test_the_results_expire_after_the_batch(metadata):
    ended = await metadata.completed(1, output_expires_after_s=3600)
    keys = await metadata.keys("results/")
    metadata.clock.advance(3600)
    await gone(metadata, *keys)
    assert (await metadata.get(ended.id)).output_file_id == ended.output_file_id


async def test_an_expired_input_goes_when_its_batch_has_ended(metadata):
    file = await metadata.file(some_lines(1), expires_after_s=3600)
    batch = await metadata.batch(input_file_id=file.id)
    await metadata.reaches(batch.id, State.IN_PROGRESS)
    metadata.clock.advance(3601)
    lease = await metadata.acquire()
    await metadata.commit(lease, 1, [0])
    await metadata.finalize(lease)
    assert file.object_key in await metadata.keys("files/")
    await metadata.finish(lease, State.COMPLETED, output=1)
    await gone(metadata, file.object_key)


async def test_what_a_crash_between_tombstone_and_object_left(make_settings, sqlite_url):
    settings = make_settings(
        metadata={"database_url": sqlite_url, "janitor_interval_s": 0.05}, default_endpoint="http://127.0.0.1:9"
    )
    async with serving_metadata(settings) as metadata:
        file = await metadata.file(b"x")
        held = metadata.settings.data_dir / "objects" / "files"
        away = held.with_name("away")
        held.rename(away)
        held.write_text("in the way")
        await metadata.files.DeleteFile(files_pb2.DeleteFileRequest(project_id="default", id=file.id))
        held.unlink()
        away.rename(held)
        await gone(metadata, file.object_key)


async def test_the_lease_of_a_dead_runner_is_counted_no_more(metadata):
    lease = await metadata.leased(1)
    metadata.clock.advance(11)
    again = await metadata.acquire("other")
    assert again.token == lease.token + 1
    await metadata.leases.ReleaseLease(leases_pb2.ReleaseLeaseRequest(batch_id=again.batch.id, token=again.token))


async def test_the_same_on_s3(make_settings, postgres_url, s3_objects):
    settings = make_settings(
        metadata={"database_url": postgres_url, "janitor_interval_s": 0.05},
        objects=s3_objects,
        default_endpoint="http://127.0.0.1:9",
    )
    async with serving_metadata(settings) as metadata:
        ended = await metadata.completed(3, output_expires_after_s=3600)
        key = f"results/{ended.id}/2/output.jsonl"
        await gone(metadata, f"segments/{ended.id}/2-1.out.jsonl", f"indexes/{ended.id}/1")
        assert await metadata.keys("results/") == [key]
        metadata.clock.advance(3600)
        await gone(metadata, key)
