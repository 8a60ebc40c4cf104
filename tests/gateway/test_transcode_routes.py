"""What the gateway cannot serve is found when it starts, and not when somebody calls it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from google.api import annotations_pb2
from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.descriptor import ServiceDescriptor

from brix.planner.v1 import resources_pb2
from gateway.console import ROUTES, SERVICES
from gateway.transcode_fields import check_forms, members_of
from gateway.transcode_routes import Binding, bindings_of

Field = descriptor_pb2.FieldDescriptorProto


def service(fields: dict[str, dict[str, Any]] | None = None, **rule: Any) -> ServiceDescriptor:
    """A service with one RPC, whose request has these fields, with this annotation."""
    proto = descriptor_pb2.FileDescriptorProto(name="t.proto", package="t", syntax="proto3")
    inner = proto.message_type.add(name="Inner")
    message = proto.message_type.add(name="M")
    for number, (name, more) in enumerate((fields or {"id": {"type": Field.TYPE_STRING}}).items(), 1):
        message.field.add(name=name, number=number, label=Field.LABEL_OPTIONAL, **more)
        inner.field.add(name=name, number=number, label=Field.LABEL_OPTIONAL, **more)
    outer = proto.message_type.add(name="Outer")
    outer.field.add(name="id", number=1, label=Field.LABEL_OPTIONAL, type=Field.TYPE_STRING)
    kind = {"type": Field.TYPE_MESSAGE, "type_name": ".t.Inner"}
    outer.field.add(name="inner", number=2, label=Field.LABEL_OPTIONAL, **kind)
    made = proto.service.add(name="S")
    for name, request in (("Do", "M"), ("DoOuter", "Outer")):
        method = made.method.add(name=name, input_type=f".t.{request}", output_type=".t.M")
        method.server_streaming = rule.get("streams", False)
        for key, value in rule.items() - {("streams", True)}:
            setattr(method.options.Extensions[annotations_pb2.http], key, value)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(proto)
    return pool.FindServiceByName("t.S")


def test_a_service_without_anything_odd() -> None:
    made = list(bindings_of(service(get="/a/{id}")))
    assert [(each.http_method, each.path, each.rpc, each.variables) for each in made] == [
        ("GET", "/a/{id}", "/t.S/Do", {"id"}),
        ("GET", "/a/{id}", "/t.S/DoOuter", {"id"}),
    ]


def test_an_rpc_without_a_path_is_not_served() -> None:
    assert list(bindings_of(service())) == []
    assert "/brix.console.v1.AccessService/Authenticate" not in {
        each.rpc for made in SERVICES for each in bindings_of(made)
    }


@pytest.mark.parametrize(
    ("fields", "rule"),
    [
        (None, {"get": "/a/{id=jobs/*}"}),
        (None, {"get": "/a/*"}),
        (None, {"get": "/a/{other}"}),
        (None, {"get": "/a:cancel"}),
        (None, {"get": ""}),
        (None, {"post": "/a", "body": "id"}),
        (None, {"post": "/a", "body": "*", "response_body": "id"}),
        (None, {"get": "/a", "streams": True}),
        ({"id": {"type": Field.TYPE_INT64}}, {"get": "/a/{id}"}),
        ({"id": {"type": Field.TYPE_BYTES}}, {"get": "/a"}),
        ({"id": {"type": Field.TYPE_FLOAT}}, {"get": "/a"}),
    ],
    ids=str,
)
def test_what_cannot_be_served(fields: Any, rule: dict[str, Any]) -> None:
    with pytest.raises(TypeError):
        list(bindings_of(service(fields, **rule)))


def test_a_map_has_no_form_however_deep_it_is() -> None:
    with pytest.raises(TypeError, match=r"ProvisionSpec\.labels has no form in JSON"):
        check_forms(resources_pb2.ProvisionRequest.DESCRIPTOR)


DOCUMENT = (Path(__file__).parents[2] / "docs" / "console-api.md").read_text()


@pytest.mark.parametrize("path", sorted({path for _, path, _ in ROUTES}))
def test_every_path_is_described_with_its_methods(path: str) -> None:
    for method, place, _ in ROUTES:
        if place == path:
            assert f"\n| `{method} {path}` |" in DOCUMENT


@pytest.mark.parametrize("binding", [each for made in SERVICES for each in bindings_of(made)], ids=lambda b: b.rpc)
def test_every_field_of_a_request_is_described(binding: Binding) -> None:
    _, _, section = DOCUMENT.partition(f"\n| `{binding.http_method} {binding.path}` |")
    section = section.partition("\n## ")[0]
    for member in members_of(binding.request):
        if not member.is_filled and member.name not in binding.variables:
            assert f"`{member.key}`" in section, member.key


def test_no_path_is_served_twice() -> None:
    places = [(method, path) for method, path, _ in ROUTES]
    assert len(set(places)) == len(places)
    assert all(path.startswith("/api/v1/") for _, path in places)
