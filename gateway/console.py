"""/api/v1: the console's REST API. Its paths are those that the protos name, and those of files."""

from __future__ import annotations

from brix.console.v1 import access_pb2, deployment_templates_pb2, jobs_pb2, models_pb2
from gateway import files
from gateway.transcode import endpoints

SERVICES = [
    models_pb2.DESCRIPTOR.services_by_name["ModelService"],
    deployment_templates_pb2.DESCRIPTOR.services_by_name["DeploymentTemplateService"],
    jobs_pb2.DESCRIPTOR.services_by_name["JobService"],
    access_pb2.DESCRIPTOR.services_by_name["AccessService"],
]
# Method, path, handler. Files are metadata's: the console never sees their bytes.
ROUTES = [
    *((each.binding.http_method, each.binding.path, each.handle) for each in endpoints(SERVICES)),
    ("POST", "/api/v1/files/upload", files.create_batch_file),
    ("GET", "/api/v1/files", files.list_files),
    ("GET", "/api/v1/files/{id}", files.retrieve),
    ("GET", "/api/v1/files/{id}/content", files.content),
]
