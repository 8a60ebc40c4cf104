"""The way of a job from the queue to its results, and back out of everything that it took."""

from __future__ import annotations

import json
from functools import partial

import pytest

from brix.console.v1 import deployment_templates_pb2 as templates_pb2
from brix.console.v1 import jobs_pb2
from brix.type.v1 import batch_pb2
from services.console.store.tables import deployment_templates
from services.kit.errors import Conflict, NotFound
from services.kit.sql import create_engine
from services.planner.resource_manager import registry
from tests.console.conftest import serving_console
from tests.planner.conftest import GPU, PROJECT, Machines, Planner, State, World, a_template, labels
from tests.planner.resources import Cloud, refusal

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
            "attempt": 1,
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


async def test_a_provider_without_capacity_moves_on_to_the_next(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    full, free = world.cloud, Cloud(world.clock, boot_s=0.0)
    full.fail("launch", refusal("NoCapacity"))
    for name, cloud in (("full", full), ("free", free)):
        place = f"the_{name}_one"
        made = partial(Machines, cloud, name=name)
        monkeypatch.setitem(registry.PROVIDERS, name, f"tests.planner.conftest:{place}")
        monkeypatch.setattr(f"tests.planner.conftest.{place}", lambda _, made=made: made(), raising=False)
    async with world.planner(provisioner="free,full") as planner:
        job = await planner.enqueue(
            input_dataset=await world.input(3),
            model_template_spec_json=json.dumps(a_template(**GPU)),
            resource_request_json='{"providers": ["full", "free"]}',
        )
        running = await planner.reaches(job.id, State.VALIDATING, State.IN_PROGRESS)
        assert (running.provision.provider, running.error_code) == ("free", "")
        assert (full.counts["launch"], len(full.launched), len(free.launched)) == (1, 0, 1)
        assert "Waiting for compute from full or free" in labels(running)
        batch = await world.metadata.get(running.batch_id)
        (details,) = json.loads(batch.aibrix_json)["resource_allocation"]["resource_details"]
        assert details["provider"] == "free"
        await world.complete(running.batch_id)
        await planner.given_back(job.id)
    assert not free.machines


async def test_a_template_that_is_deleted_before_its_job_is_planned(world: World, database_url: str) -> None:
    """A job keeps the template that it was made with, and so does a retry of it."""
    settings = world.settings.model_copy(
        update={"console": world.settings.console.model_copy(update={"database_url": database_url})}
    )
    async with (
        world.planner(**world.with_planner(max_provisions=1)) as planner,
        serving_console(settings, planner_addr=planner.address) as console,
    ):
        _, needed = await console.ready()
        input_id = await world.input(3)
        first = await console.job(**needed, input_dataset=input_id)
        running = await planner.reaches(first.id, State.IN_PROGRESS)
        waits = await console.job(**needed, input_dataset=input_id)
        model_id = needed["model_id"]
        found = await console.resolve(model_id)
        asked = templates_pb2.DeleteDeploymentTemplateRequest(project_id=PROJECT, model_id=model_id, id=found.id)
        with pytest.raises(Conflict):
            await console.templates.DeleteDeploymentTemplate(asked)
        engine = create_engine(settings.console_database_url())
        async with engine.begin() as connection:  # as if it had gone between the look at it and the making of the job
            await connection.execute(deployment_templates.delete())
        await engine.dispose()
        with pytest.raises(NotFound):
            await console.job(**needed, input_dataset=input_id)
        await world.complete(running.batch_id)
        follows = await planner.reaches(waits.id, State.IN_PROGRESS)
        batch = await world.metadata.get(follows.batch_id)
        template = json.loads(batch.aibrix_json)["model_template"]
        assert (template["name"], template["spec"]) == (found.name, json.loads(found.spec_json))
        await planner.cancel(waits.id)
        await world.metadata.reaches(follows.batch_id, Batch.CANCELLING)
        await world.end(follows.batch_id, Batch.CANCELLED, error=3)
        await planner.given_back(waits.id)
        retry = await console.jobs.RetryJob(jobs_pb2.RetryJobRequest(project_id=PROJECT, id=waits.id))
        assert retry.model_template_spec_json == waits.model_template_spec_json
        await planner.reaches(retry.id, State.IN_PROGRESS)
