"""gRPC in, gRPC out. No logic: convert, call, convert."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from google.protobuf import empty_pb2
from grpc import aio

from brix.console.v1 import (
    deployment_templates_pb2,
    deployment_templates_pb2_grpc,
    jobs_pb2,
    jobs_pb2_grpc,
    models_pb2,
    models_pb2_grpc,
    templates_pb2,
    templates_pb2_grpc,
)
from brix.type.v1 import job_pb2
from services.console.domain import (
    DeploymentTemplateChange,
    ModelChange,
    NewDeploymentTemplate,
    NewJob,
    NewModel,
)
from services.console.service.jobs import JobService
from services.console.service.listing import TemplateListService
from services.console.service.models import ModelService
from services.console.service.templates import DeploymentTemplateService
from services.kit.convert import from_proto, to_proto

Context = aio.ServicerContext[Any, Any]


def given(request: Any, field: str) -> Any:
    """An optional field; None if it is absent."""
    return getattr(request, field) if request.HasField(field) else None


class ModelServicer(models_pb2_grpc.ModelServiceServicer):
    def __init__(self, service: ModelService) -> None:
        self.service = service

    async def CreateModel(self, request: models_pb2.CreateModelRequest, context: Context) -> models_pb2.Model:
        return to_proto(models_pb2.Model, await self.service.create_model(from_proto(NewModel, request)))

    async def GetModel(self, request: models_pb2.GetModelRequest, context: Context) -> models_pb2.Model:
        return to_proto(models_pb2.Model, await self.service.get_model(request.project_id, request.id))

    async def ListModels(
        self, request: models_pb2.ListModelsRequest, context: Context
    ) -> models_pb2.ListModelsResponse:
        page, has_more = await self.service.list_models(
            request.project_id,
            given(request, "limit"),
            given(request, "after"),
            search=given(request, "search"),
            category=given(request, "category"),
        )
        return models_pb2.ListModelsResponse(
            data=[to_proto(models_pb2.Model, model) for model in page], has_more=has_more
        )

    async def UpdateModel(self, request: models_pb2.UpdateModelRequest, context: Context) -> models_pb2.Model:
        return to_proto(models_pb2.Model, await self.service.update_model(from_proto(ModelChange, request)))

    async def DeleteModel(self, request: models_pb2.DeleteModelRequest, context: Context) -> empty_pb2.Empty:
        await self.service.delete_model(request.project_id, request.id)
        return empty_pb2.Empty()


class DeploymentTemplateServicer(deployment_templates_pb2_grpc.DeploymentTemplateServiceServicer):
    def __init__(self, service: DeploymentTemplateService) -> None:
        self.service = service

    async def CreateDeploymentTemplate(
        self, request: deployment_templates_pb2.CreateDeploymentTemplateRequest, context: Context
    ) -> deployment_templates_pb2.DeploymentTemplate:
        template = await self.service.create_template(from_proto(NewDeploymentTemplate, request))
        return to_proto(deployment_templates_pb2.DeploymentTemplate, template)

    async def GetDeploymentTemplate(
        self, request: deployment_templates_pb2.GetDeploymentTemplateRequest, context: Context
    ) -> deployment_templates_pb2.DeploymentTemplate:
        template = await self.service.get_template(request.project_id, request.model_id, request.id)
        return to_proto(deployment_templates_pb2.DeploymentTemplate, template)

    async def ListDeploymentTemplates(
        self, request: deployment_templates_pb2.ListDeploymentTemplatesRequest, context: Context
    ) -> deployment_templates_pb2.ListDeploymentTemplatesResponse:
        page, has_more = await self.service.list_templates(
            request.project_id,
            request.model_id,
            given(request, "limit"),
            given(request, "after"),
            status=given(request, "status"),
            name=given(request, "name"),
        )
        return deployment_templates_pb2.ListDeploymentTemplatesResponse(
            data=[to_proto(deployment_templates_pb2.DeploymentTemplate, template) for template in page],
            has_more=has_more,
        )

    async def ResolveDeploymentTemplate(
        self, request: deployment_templates_pb2.ResolveDeploymentTemplateRequest, context: Context
    ) -> deployment_templates_pb2.DeploymentTemplate:
        template = await self.service.resolve_template(
            request.project_id, request.model_id, request.name, given(request, "version")
        )
        return to_proto(deployment_templates_pb2.DeploymentTemplate, template)

    async def UpdateDeploymentTemplate(
        self, request: deployment_templates_pb2.UpdateDeploymentTemplateRequest, context: Context
    ) -> deployment_templates_pb2.DeploymentTemplate:
        template = await self.service.update_template(from_proto(DeploymentTemplateChange, request))
        return to_proto(deployment_templates_pb2.DeploymentTemplate, template)

    async def DeleteDeploymentTemplate(
        self, request: deployment_templates_pb2.DeleteDeploymentTemplateRequest, context: Context
    ) -> empty_pb2.Empty:
        await self.service.delete_template(request.project_id, request.model_id, request.id)
        return empty_pb2.Empty()


class TemplateServicer(templates_pb2_grpc.TemplateServiceServicer):
    def __init__(self, service: TemplateListService) -> None:
        self.service = service

    async def ListTemplates(
        self, request: templates_pb2.ListTemplatesRequest, context: Context
    ) -> templates_pb2.ListTemplatesResponse:
        page = await self.service.list_templates(request.page_size, request.page_token, request.known_etag)
        return templates_pb2.ListTemplatesResponse(
            templates=[to_proto(templates_pb2.Template, template) for template in page.templates],
            next_page_token=page.next_page_token,
            etag=page.etag,
        )


class JobServicer(jobs_pb2_grpc.JobServiceServicer):
    """The planner's jobs are passed on as they come."""

    def __init__(self, service: JobService) -> None:
        self.service = service

    async def CreateJob(self, request: jobs_pb2.CreateJobRequest, context: Context) -> job_pb2.Job:
        return await self.service.create_job(from_proto(NewJob, request))

    async def GetJob(self, request: jobs_pb2.GetJobRequest, context: Context) -> job_pb2.Job:
        return await self.service.get_job(request.project_id, request.id)

    async def ListJobs(self, request: jobs_pb2.ListJobsRequest, context: Context) -> jobs_pb2.ListJobsResponse:
        page, has_more = await self.service.list_jobs(
            request.project_id,
            given(request, "limit"),
            given(request, "after"),
            list(request.status),
            given(request, "model_id"),
            given(request, "model_template_name"),
        )
        return jobs_pb2.ListJobsResponse(data=page, has_more=has_more)

    async def CancelJob(self, request: jobs_pb2.CancelJobRequest, context: Context) -> job_pb2.Job:
        return await self.service.cancel_job(request.project_id, request.id)

    async def RetryJob(self, request: jobs_pb2.RetryJobRequest, context: Context) -> job_pb2.Job:
        return await self.service.retry_job(
            request.project_id,
            request.id,
            request.created_by,
            given(request, "idempotency_key"),
            request.request_hash,
            given(request, "call_id"),
        )

    async def WatchJob(self, request: jobs_pb2.WatchJobRequest, context: Context) -> AsyncIterator[job_pb2.Job]:
        async for job in self.service.watch_job(request.project_id, request.id, request.after_revision):
            yield job
