"""The way of a job from the queue to its results, and back out of everything that it took."""

from __future__ import annotations

import json

from brix.type.v1 import batch_pb2
from tests.planner.conftest import PROJECT, Planner, State, World, labels

Batch = batch_pb2.Batch


async def test_a_job_goes_all_the_way(world: World, planner: Planner) -> None:
    input_id = await world.input(3)
    made = await planner.enqueue(
        input_dataset=input_id, client_json='{"max_concurrency": 8}', metadata_json='{"team": "a"}'
    )
    assert made.status == State.QUEUED
    running = await planner.reaches(made.id, State.IN_PROGRESS)
    batch = await world.metadata.get(running.batch_id)
    assert json.loads(batch.aibrix_json) == {
        "job_id": made.id,
        "model": "m",
        "runtime": {"target": "External", "options": {"base_url": "http://127.0.0.1:9"}},
        "resource_allocation": {
            "provision_id": running.provision_id,
            "resource_details": [{"provider": "static", "instance_type": "there", "replicas": 1}],
        },
        "model_template": {"name": "small", "version": "v1", "spec": json.loads(made.model_template_spec_json)},
        "client": {"max_concurrency": 8},
    }
    assert batch.metadata_json == '{"team": "a"}'
    assert batch.expire_time.ToDatetime() <= made.expires_time.ToDatetime()
    await world.complete(running.batch_id, failed=1)
    await planner.reaches(made.id, State.COMPLETED)
    done = await planner.given_back(made.id)
    assert (done.request_counts.total, done.request_counts.completed, done.request_counts.failed) == (3, 2, 1)
    assert done.usage.total_tokens == 7
    assert done.output_dataset
    assert done.error_dataset
    # Writing the output is so short that the planner's look may miss it.
    assert [label for label in labels(done) if label != "Writing results"] == [
        "Queued",
        "Input checked: 3 requests",
        "Planned",
        "Waiting for compute from static",
        "Compute is ready (there)",
        f"Batch {done.batch_id} created",
        "Running",
        "Completed",
        "Compute released",
    ]
    assert [event.id for event in done.events] == list(range(1, len(done.events) + 1))
    for name in ("queued", "planned", "resource_preparing", "submitting", "validating", "in_progress", "completed"):
        assert done.HasField(f"{name}_time"), name
    assert done.project_id == PROJECT
