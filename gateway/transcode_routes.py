"""Which HTTP method and path stands for which RPC: read from the google.api.http annotations of the protos."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from google.api import annotations_pb2, http_pb2
from google.protobuf.descriptor import Descriptor, MethodDescriptor, ServiceDescriptor

from gateway.transcode_fields import Form, check_forms, members_of

VARIABLE = re.compile(r"\{([a-z_]+)\}")
PLAIN_PATH = re.compile(r"(/([A-Za-z0-9_-]+|\{[a-z_]+\}))+")
EMPTY = "google.protobuf.Empty"


@dataclass(frozen=True)
class Binding:
    """One HTTP form of an RPC."""

    http_method: str
    path: str
    """As aiohttp writes it: `/api/v1/jobs/{id}`."""
    rpc: str
    """As gRPC writes it: `/brix.console.v1.JobService/GetJob`."""
    name: str
    request: Descriptor
    answer: Descriptor
    variables: frozenset[str]
    has_body: bool
    streams: bool

    @property
    def is_empty(self) -> bool:
        return self.answer.full_name == EMPTY


def bindings_of(service: ServiceDescriptor) -> Iterator[Binding]:
    """Those of all RPCs that have a path; the others are for roles. Error: TypeError, for an annotation that is not done here."""
    for method in service.methods:
        options = method.GetOptions()
        if options.HasExtension(annotations_pb2.http):
            rule = options.Extensions[annotations_pb2.http]
            for each in (rule, *rule.additional_bindings):
                yield _binding(service, method, each)


def _binding(service: ServiceDescriptor, method: MethodDescriptor, rule: http_pb2.HttpRule) -> Binding:
    verb = rule.WhichOneof("pattern")
    path = getattr(rule, verb or "", "")
    variables = frozenset(VARIABLE.findall(path))
    texts = {member.name for member in members_of(method.input_type) if member.form is Form.STRING}
    if not PLAIN_PATH.fullmatch(path) or not variables <= texts or rule.body not in {"", "*"} or rule.response_body:
        raise TypeError(f"{method.full_name}: this annotation cannot be served")
    check_forms(method.input_type)
    check_forms(method.output_type)
    if method.server_streaming and not _can_be_resumed(method):
        raise TypeError(
            f"{method.full_name}: a stream needs `after_revision` to begin from and answers with a `revision`"
        )
    return Binding(
        http_method=verb.upper(),
        path=path,
        rpc=f"/{service.full_name}/{method.name}",
        name=method.name,
        request=method.input_type,
        answer=method.output_type,
        variables=variables,
        has_body=rule.body == "*",
        streams=method.server_streaming,
    )


def _can_be_resumed(method: MethodDescriptor) -> bool:
    return "after_revision" in method.input_type.fields_by_name and "revision" in method.output_type.fields_by_name
