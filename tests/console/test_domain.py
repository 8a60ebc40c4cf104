from __future__ import annotations

from dataclasses import fields

import pytest
from google.protobuf.message import Message

from brix.console.v1 import deployment_templates_pb2, jobs_pb2, models_pb2, templates_pb2
from brix.type.v1 import job_pb2
from services.console import domain
from services.console.service.jobs import KEPT

PAIRS: list[tuple[type, type[Message]]] = [
    (domain.Model, models_pb2.Model),
    (domain.NewModel, models_pb2.CreateModelRequest),
    (domain.ModelChange, models_pb2.UpdateModelRequest),
    (domain.DeploymentTemplate, deployment_templates_pb2.DeploymentTemplate),
    (domain.NewDeploymentTemplate, deployment_templates_pb2.CreateDeploymentTemplateRequest),
    (domain.DeploymentTemplateChange, deployment_templates_pb2.UpdateDeploymentTemplateRequest),
    (domain.Template, templates_pb2.Template),
    (domain.NewJob, jobs_pb2.CreateJobRequest),
]


@pytest.mark.parametrize(("cls", "message"), PAIRS, ids=lambda pair: pair.__name__)
def test_domain_fields_are_the_proto_fields(cls: type, message: type[Message]) -> None:
    assert {field.name for field in fields(cls)} == set(message.DESCRIPTOR.fields_by_name)


def test_what_a_retry_takes_over_exists() -> None:
    assert set(job_pb2.Job.DESCRIPTOR.fields_by_name) >= KEPT
