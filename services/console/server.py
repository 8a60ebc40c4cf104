"""The console role: opens what it needs, wires it, serves it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial

from brix.console.v1 import (
    access_pb2_grpc,
    deployment_templates_pb2_grpc,
    jobs_pb2_grpc,
    models_pb2_grpc,
    templates_pb2_grpc,
)
from brix.planner.v1 import jobs_pb2_grpc as planner_pb2_grpc
from services.console.access_servicer import AccessServicer
from services.console.migrate import migrate
from services.console.service.access_cipher import KeyRing
from services.console.service.access_keys import ApiKeyService
from services.console.service.access_quotas import QuotaService
from services.console.service.access_secrets import SecretService
from services.console.service.access_usage import PlannerUsage
from services.console.service.jobs import JobService
from services.console.service.listing import TemplateListService
from services.console.service.models import ModelService
from services.console.service.planner import Planner
from services.console.service.templates import DeploymentTemplateService
from services.console.servicer import DeploymentTemplateServicer, JobServicer, ModelServicer, TemplateServicer
from services.kit.metrics import serving_metrics
from services.kit.server import Register, channel, serving
from services.kit.settings import Settings
from services.kit.sql import Database, db_now, open_database
from services.kit.transactions import Now, Transactions

SERVICES = [f"brix.console.v1.{name}Service" for name in ("Model", "DeploymentTemplate", "Template", "Job", "Access")]


@asynccontextmanager
async def run(settings: Settings, now: Now = db_now) -> AsyncIterator[str]:
    """Yields the bound address. `now` is the clock of all that is stored; tests bring their own. The planner may come later."""
    async with opened(settings) as database, channel(settings.planner_addr) as planner_channel:
        transactions = Transactions(database, now)
        planner = Planner(planner_pb2_grpc.JobServiceStub(planner_channel))
        async with (
            serving(settings.console.listen, registrations(transactions, planner, settings), SERVICES) as address,
            serving_metrics(settings.console.metrics_listen),
        ):
            yield address


@asynccontextmanager
async def opened(settings: Settings) -> AsyncIterator[Database]:
    """The database, at the schema of this version."""
    async with open_database(settings.console_database_url(), migrate) as database:
        yield database


def registrations(transactions: Transactions, planner: Planner, settings: Settings) -> Sequence[Register]:
    """Error: ValueError, for encryption keys that are none."""
    ring = KeyRing(settings.secrets_encryption_key.get_secret_value())
    quotas = QuotaService(transactions, PlannerUsage(planner))
    access = AccessServicer(ApiKeyService(transactions), SecretService(transactions, ring), quotas)
    models = ModelServicer(ModelService(transactions, planner))
    templates = DeploymentTemplateServicer(DeploymentTemplateService(transactions, planner, settings))
    jobs = JobServicer(JobService(transactions, planner, quotas, settings))
    listing = TemplateServicer(TemplateListService(transactions))
    return [
        partial(access_pb2_grpc.add_AccessServiceServicer_to_server, access),
        partial(models_pb2_grpc.add_ModelServiceServicer_to_server, models),
        partial(deployment_templates_pb2_grpc.add_DeploymentTemplateServiceServicer_to_server, templates),
        partial(templates_pb2_grpc.add_TemplateServiceServicer_to_server, listing),
        partial(jobs_pb2_grpc.add_JobServiceServicer_to_server, jobs),
    ]
