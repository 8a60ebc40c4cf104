"""The rules of the house, as tests."""

from __future__ import annotations

from dataclasses import fields
from enum import Enum
from pathlib import Path

import pytest
from google.protobuf.internal.enum_type_wrapper import EnumTypeWrapper
from google.protobuf.message import Message

import gateway.errors
from brix.console.v1 import access_pb2, deployment_templates_pb2, jobs_pb2, models_pb2, templates_pb2
from brix.metadata.v1 import leases_pb2, runners_pb2
from brix.planner.v1 import resources_pb2
from brix.runner.v1 import runner_pb2
from brix.type.v1 import batch_pb2, client_pb2, file_pb2, job_pb2, provision_pb2
from services.console import access
from services.console import domain as console
from services.kit import errors, grpc_errors
from services.kit.spec.client import ClientPolicy
from services.metadata import domain as metadata
from services.metadata import states
from services.planner import domain as planner
from services.planner import states as planner_states
from services.runner import domain as runner

ROOT = Path(__file__).parent.parent
LONGEST_FILE = 420
PAIRS: list[tuple[type, type[Message]]] = [
    (metadata.File, file_pb2.File),
    (metadata.Upload, file_pb2.Upload),
    (metadata.UploadPart, file_pb2.UploadPart),
    (metadata.Usage, batch_pb2.Usage),
    (metadata.BatchError, batch_pb2.BatchError),
    (metadata.Batch, batch_pb2.Batch),
    (metadata.Lines, leases_pb2.LineSet),
    (metadata.Lease, leases_pb2.Lease),
    (metadata.LeaseStatus, leases_pb2.LeaseStatus),
    (metadata.Segment, leases_pb2.Segment),
    (metadata.ResultFile, leases_pb2.ResultFile),
    (metadata.RunnerInfo, runners_pb2.RunnerInfo),
    (metadata.Model, runners_pb2.Model),
    (ClientPolicy, client_pb2.ClientPolicy),
    (runner.Usage, batch_pb2.Usage),
    (runner.Segment, leases_pb2.Segment),
    (runner.EndpointStatus, runner_pb2.Endpoint),
    (runner.ExecutionStatus, runner_pb2.Execution),
    (runner.RunnerStatus, runner_pb2.RunnerStatus),
    (planner.Job, job_pb2.Job),
    (planner.RequestCounts, job_pb2.RequestCounts),
    (planner.TimelineEntry, job_pb2.JobEvent),
    (planner.Usage, batch_pb2.Usage),
    (planner.Machine, provision_pb2.Machine),
    (planner.Provision, provision_pb2.Provision),
    (planner.ProvisionSpec, resources_pb2.ProvisionSpec),
    (planner.Group, resources_pb2.Group),
    (planner.AcceleratorPreference, resources_pb2.AcceleratorPreference),
    (planner.Offer, resources_pb2.Offer),
    (console.Model, models_pb2.Model),
    (console.NewModel, models_pb2.CreateModelRequest),
    (console.ModelChange, models_pb2.UpdateModelRequest),
    (console.DeploymentTemplate, deployment_templates_pb2.DeploymentTemplate),
    (console.NewDeploymentTemplate, deployment_templates_pb2.CreateDeploymentTemplateRequest),
    (console.DeploymentTemplateChange, deployment_templates_pb2.UpdateDeploymentTemplateRequest),
    (console.Template, templates_pb2.Template),
    (console.NewJob, jobs_pb2.CreateJobRequest),
    (access.ApiKey, access_pb2.ApiKey),
    (access.NewApiKey, access_pb2.CreateApiKeyRequest),
    (access.Principal, access_pb2.Principal),
    (access.Secret, access_pb2.Secret),
    (access.Quota, access_pb2.Quota),
    (access.QuotaChange, access_pb2.UpdateQuotaRequest),
]


@pytest.mark.parametrize("error", errors.ServiceError.__subclasses__())
def test_every_error_has_a_grpc_code_and_an_http_status(error: type[errors.ServiceError]) -> None:
    assert error in grpc_errors.CODES
    assert error in gateway.errors.STATUSES


@pytest.mark.parametrize(("cls", "message"), PAIRS, ids=lambda pair: pair.__module__ + "." + pair.__name__)
def test_domain_fields_are_the_proto_fields(cls: type, message: type[Message]) -> None:
    assert {field.name for field in fields(cls)} == set(message.DESCRIPTOR.fields_by_name)


@pytest.mark.parametrize(
    ("names", "enum"),
    [
        (states.BatchState, batch_pb2.Batch.State),
        (states.UploadState, file_pb2.Upload.State),
        (states.Goal, leases_pb2.Goal),
        (runner.Goal, leases_pb2.Goal),
        (planner_states.JobState, job_pb2.Job.State),
        (planner_states.ProvisionState, provision_pb2.Provision.Status),
    ],
)
def test_domain_states_are_the_proto_states(names: type[Enum], enum: EnumTypeWrapper) -> None:
    proto = {value.name for value in enum.DESCRIPTOR.values if not value.name.endswith("UNSPECIFIED")}
    assert {state.name for state in names} == proto


@pytest.mark.parametrize("event", states.BatchEvent)
def test_a_terminal_state_is_final(event: states.BatchEvent) -> None:
    assert not states.LIFECYCLE.sources(event) & states.TERMINAL


def test_every_state_that_is_not_terminal_has_a_way_out() -> None:
    leaves = frozenset().union(*(states.LIFECYCLE.sources(event) for event in states.BatchEvent))
    assert leaves == set(states.BatchState) - states.TERMINAL


@pytest.mark.parametrize("place", ["services", "gateway", "cli", "benchmarks"])
def test_no_file_is_too_long_to_read(place: str) -> None:
    long = {
        str(path.relative_to(ROOT)): count
        for path in (ROOT / place).rglob("*.py")
        if (count := len(path.read_text().splitlines())) > LONGEST_FILE
    }
    assert not long


@pytest.mark.parametrize("place", ["services", "gateway", "cli", "benchmarks"])
def test_every_module_says_what_it_is_for(place: str) -> None:
    silent = [
        str(path.relative_to(ROOT))
        for path in (ROOT / place).rglob("*.py")
        if (text := path.read_text()).strip() and not text.startswith('"""')
    ]
    assert not silent
