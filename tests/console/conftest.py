"""A console role that really listens, with stubs, a clock that the test moves, and a planner that the test scripts."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from grpc import aio

from brix.console.v1 import (
    access_pb2_grpc,
    deployment_templates_pb2,
    deployment_templates_pb2_grpc,
    jobs_pb2,
    jobs_pb2_grpc,
    models_pb2,
    models_pb2_grpc,
    templates_pb2_grpc,
)
from brix.type.v1 import job_pb2
from services.console.server import run
from services.kit.server import channel
from services.kit.settings import Settings
from tests.console.planner import ScriptedPlanner, serving_planner
from tests.metadata.conftest import CHAT, Clock

SPEC: dict[str, Any] = {
    "engine": {"type": "vllm"},
    "model_source": {"type": "huggingface", "uri": "owner/model"},
    "accelerator": {"type": "A10", "count": 1},
    "supported_endpoints": [CHAT],
}


def a_spec(**fields: Any) -> dict[str, Any]:
    return {**SPEC, **fields}


@dataclass
class Console:
    settings: Settings
    address: str
    channel: aio.Channel
    clock: Clock
    planner: ScriptedPlanner
    models: Any
    templates: Any
    listing: Any
    jobs: Any
    access: Any

    async def model(self, name: str = "Llama", **fields: Any) -> models_pb2.Model:
        self.clock.advance(1)
        asked = {"project_id": "default", "name": name} | fields
        return await self.models.CreateModel(models_pb2.CreateModelRequest(**asked))

    async def template(
        self, model_id: str, name: str = "llama", spec: Any = None, **fields: Any
    ) -> deployment_templates_pb2.DeploymentTemplate:
        self.clock.advance(1)
        text = spec if isinstance(spec, str) else json.dumps(SPEC if spec is None else spec)
        asked = {"project_id": "default", "model_id": model_id, "name": name, "spec_json": text} | fields
        request = deployment_templates_pb2.CreateDeploymentTemplateRequest(**asked)
        return await self.templates.CreateDeploymentTemplate(request)

    async def resolve(
        self, model_id: str, name: str = "llama", version: str | None = None, project_id: str = "default"
    ) -> deployment_templates_pb2.DeploymentTemplate:
        return await self.templates.ResolveDeploymentTemplate(
            deployment_templates_pb2.ResolveDeploymentTemplateRequest(
                project_id=project_id, model_id=model_id, name=name, version=version
            )
        )

    async def job(self, **fields: Any) -> job_pb2.Job:
        asked = {"project_id": "default", "input_dataset": "file-1", "endpoint": CHAT} | fields
        return await self.jobs.CreateJob(jobs_pb2.CreateJobRequest(**asked))

    async def ready(self, **fields: Any) -> tuple[str, dict[str, Any]]:
        """A model with one active template: the model's id, and what a job needs to use both."""
        model = await self.model(**fields)
        await self.template(model.id)
        return model.id, {"model_id": model.id, "model_template_name": "llama"}


@asynccontextmanager
async def serving_console(
    settings: Settings, clock: Clock | None = None, planner_addr: str = ""
) -> AsyncIterator[Console]:
    """`planner_addr`: another planner than the one that the test scripts."""
    clock, planner = clock or Clock(), ScriptedPlanner()
    async with AsyncExitStack() as stack:
        found = await stack.enter_async_context(serving_planner(planner))
        settings = settings.model_copy(update={"planner_addr": planner_addr or found})
        address = await stack.enter_async_context(run(settings, clock))
        ch = await stack.enter_async_context(channel(address))
        yield Console(
            settings,
            address,
            ch,
            clock,
            planner,
            models_pb2_grpc.ModelServiceStub(ch),
            deployment_templates_pb2_grpc.DeploymentTemplateServiceStub(ch),
            templates_pb2_grpc.TemplateServiceStub(ch),
            jobs_pb2_grpc.JobServiceStub(ch),
            access_pb2_grpc.AccessServiceStub(ch),
        )


@pytest.fixture
async def console(make_settings: Callable[..., Settings], database_url: str) -> AsyncIterator[Console]:
    """On both databases."""
    async with serving_console(make_settings(console={"database_url": database_url})) as served:
        yield served
