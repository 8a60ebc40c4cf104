"""JSON into messages and back: every wrong value has its words and its path, every right one comes through unchanged."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import given
from hypothesis import strategies as st

from brix.console.v1 import access_pb2, deployment_templates_pb2, jobs_pb2, models_pb2
from brix.type.v1 import job_pb2
from gateway.console import SERVICES
from gateway.transcode_fields import FILLED, Form, members_of, object_name, time_key
from gateway.transcode_read import MAX_DEPTH, MAX_UINT64, MAX_VALUES, MIN_INT64, read_body, read_query
from gateway.transcode_routes import bindings_of
from gateway.transcode_write import as_json
from services.kit.errors import InvalidArgument

CreateJob = jobs_pb2.CreateJobRequest
Template = deployment_templates_pb2.CreateDeploymentTemplateRequest
Quota = access_pb2.UpdateQuotaRequest
Job = job_pb2.Job


def nested(levels: int) -> bytes:
    return b'{"a":' * levels + b"1" + b"}" * levels


@pytest.mark.parametrize(
    ("message", "body", "code", "param"),
    [
        (CreateJob, b"", None, None),
        (CreateJob, b"{", None, None),
        (CreateJob, b'{"name": NaN}', None, None),
        (CreateJob, b'{"name": "\xff"}', None, None),
        (CreateJob, b'{"name": "\\ud800"}', None, None),
        (CreateJob, b'{"budget_usd": 1e999}', "invalid_value", "budget_usd"),
        (CreateJob, b'{"budget_usd": -1e999}', "invalid_value", "budget_usd"),
        (CreateJob, b"[]", "invalid_type", None),
        (CreateJob, b'"name"', "invalid_type", None),
        (CreateJob, b"null", "invalid_type", None),
        (CreateJob, b'{"name": 1}', "invalid_type", "name"),
        (CreateJob, b'{"name": ["a"]}', "invalid_type", "name"),
        (CreateJob, b'{"name": {"a": 1}}', "invalid_type", "name"),
        (CreateJob, b'{"name": true}', "invalid_type", "name"),
        (CreateJob, b'{"name": "a\\u0000b"}', "invalid_value", "name"),
        (CreateJob, b'{"name": "a", "name": "a"}', "duplicate_parameter", "name"),
        (CreateJob, b'{"budget_usd": "1"}', "invalid_type", "budget_usd"),
        (CreateJob, b'{"budget_usd": true}', "invalid_type", "budget_usd"),
        (CreateJob, b'{"colour": null}', "unknown_parameter", "colour"),
        (CreateJob, b'{"client_json": "{}"}', "unknown_parameter", "client_json"),
        (CreateJob, b'{"modelId": "m"}', "unknown_parameter", "modelId"),
        (CreateJob, b'{"client": "{}"}', "invalid_type", "client"),
        (CreateJob, b'{"client": []}', "invalid_type", "client"),
        (CreateJob, b'{"client": 1}', "invalid_type", "client"),
        (CreateJob, b'{"client": {"a": {"b": 1, "b": 1}}}', "duplicate_parameter", "client.a.b"),
        (CreateJob, b'{"client": {"a": [{}, {"b": 1, "\\u0062": 1}]}}', "duplicate_parameter", "client.a[1].b"),
        *((CreateJob, b'{"%s": "x"}' % name.encode(), "unknown_parameter", name) for name in sorted(FILLED)),
        (Template, b'{"spec": %s}' % nested(MAX_DEPTH + 1), "invalid_value", "spec" + ".a" * MAX_DEPTH),
        (Template, b'{"spec": {"a": %s}}' % (b"[" * MAX_DEPTH + b"]" * MAX_DEPTH), "invalid_value", None),
        (Template, b'{"spec": %s}' % nested(100_000), None, None),
        (Template, b'{"spec": {"a": [%s0]}}' % (b"0," * 10_000), "array_above_max_length", "spec.a"),
        (Template, b'{"spec": {"a": [%s[]]}}' % ((b"[%s0]," % (b"0," * 9999)) * 10), "invalid_value", None),
        (Template, b'{"spec": {"a": [0, {"b": 18446744073709551616}]}}', "integer_above_max_value", "spec.a[1].b"),
        (Template, b'{"spec": {"a": %s}}' % (b"9" * 100_000), "integer_above_max_value", "spec.a"),
        (Template, b'{"spec": {"a": -9223372036854775809}}', "integer_below_min_value", "spec.a"),
        (Template, b'{"spec": {"a": 1e999}}', "invalid_value", "spec.a"),
        (Template, b'{"spec": {"a": -1.5e9999}}', "invalid_value", "spec.a"),
        (Quota, b'{"max_gpus": 1.0}', "invalid_type", "max_gpus"),
        (Quota, b'{"max_gpus": 1e3}', "invalid_type", "max_gpus"),
        (Quota, b'{"max_gpus": "1"}', "invalid_type", "max_gpus"),
        (Quota, b'{"max_gpus": false}', "invalid_type", "max_gpus"),
        (Quota, b'{"max_gpus": 2147483648}', "integer_above_max_value", "max_gpus"),
        (Quota, b'{"max_gpus": -2147483649}', "integer_below_min_value", "max_gpus"),
        (Quota, b'{"revision": 9223372036854775808}', "integer_above_max_value", "revision"),
        (Quota, b'{"revision": %s}' % (b"9" * 100_000), "integer_above_max_value", "revision"),
        (Quota, b'{"max_monthly_cost_usd": {}}', "invalid_type", "max_monthly_cost_usd"),
        (Quota, b"{%s}" % b",".join(b'"a%d":1' % n for n in range(65)), "invalid_value", None),
        (Job, b'{"status": "nonsense"}', "invalid_value", "status"),
        (Job, b'{"status": "state_unspecified"}', "invalid_value", "status"),
        (Job, b'{"status": 3}', "invalid_type", "status"),
        (Job, b'{"created_at": -1}', "integer_below_min_value", "created_at"),
        (Job, b'{"created_at": 253402300800}', "integer_above_max_value", "created_at"),
        (Job, b'{"created_at": "2026-01-01T00:00:00Z"}', "invalid_type", "created_at"),
        (Job, b'{"provision": []}', "invalid_type", "provision"),
        (Job, b'{"provision": {"machines": {}}}', "invalid_type", "provision.machines"),
        (Job, b'{"provision": {"machines": [null]}}', "invalid_type", "provision.machines[0]"),
        (
            Job,
            b'{"provision": {"machines": [{}, {"ssh_port": "x"}]}}',
            "invalid_type",
            "provision.machines[1].ssh_port",
        ),
        (Job, b'{"provision": {"machines": [{"x": 1}]}}', "unknown_parameter", "provision.machines[0].x"),
        (Job, b'{"provision": {"project_id": "p"}}', "unknown_parameter", "provision.project_id"),
        (Job, b'{"provision": {"retryable": "true"}}', "invalid_type", "provision.retryable"),
        (Job, b'{"provision": {"retryable": 1}}', "invalid_type", "provision.retryable"),
        (Job, b'{"provision": {"id": "a", "id": "b"}}', "duplicate_parameter", "provision.id"),
        (Job, b'{"events": [{}, {"at": 1, "at": 2}]}', "duplicate_parameter", "events[1].at"),
    ],
    ids=lambda value: str(value)[:70],
)
def test_what_is_wrong_is_said_with_its_path(
    message: type[Message], body: bytes, code: str | None, param: str | None
) -> None:
    with pytest.raises(InvalidArgument) as caught:
        read_body(body, message())
    assert caught.value.context.get("code") == code
    if param is not None or code is None:
        assert caught.value.context.get("param") == param
    assert len(caught.value.message) < 1000


def test_null_is_as_if_it_were_not_there() -> None:
    job = CreateJob()
    read_body(b'{"name": null, "client": null, "budget_usd": null, "model_template_name": null}', job)
    assert job == CreateJob()


def test_an_empty_text_is_there() -> None:
    change = models_pb2.UpdateModelRequest()
    read_body(b'{"serving_name": "", "revision": 0}', change)
    assert change.HasField("serving_name")
    assert not change.HasField("category")


def test_a_free_object_may_be_as_deep_and_large_as_the_limits() -> None:
    message = Template()
    inside = nested(MAX_DEPTH)
    read_body(b'{"spec": %s}' % inside, message)
    assert message.spec_json == inside.decode()
    many = json.dumps({"a": [[0] * 9999] * (MAX_VALUES // 10_000 - 1)})
    read_body(b'{"spec": %s}' % many.encode(), message)
    assert message.spec_json == many


def test_numbers_in_a_free_object_are_what_64_bits_hold() -> None:
    message = Template()
    spec = (
        b'{"a": [18446744073709551615, -9223372036854775808, 1e308, -0.0, 123456789.0123456789012345678901234567890]}'
    )
    read_body(b'{"spec": %s}' % spec, message)
    assert message.spec_json == spec.decode()


def test_a_parameter_of_a_query_that_is_a_message_or_free_is_unknown() -> None:
    for name in ("provision", "client", "request_counts"):
        with pytest.raises(InvalidArgument) as caught:
            read_query({name: ["{}"]}, Job())
        assert caught.value.context["code"] == "unknown_parameter"


def test_other_parameters_of_a_query() -> None:
    job = Job()
    read_query({"status": ["failed"], "budget_usd": ["0.5"], "created_at": ["5"], "batch_id": ["null"]}, job)
    assert (job.status, job.budget_usd, job.create_time.seconds, job.batch_id) == (Job.FAILED, 0.5, 5, "null")
    provision = Job().provision
    read_query({"retryable": ["true"]}, provision)
    assert provision.retryable
    for name, text in (("retryable", "True"), ("replicas", "0x1"), ("hourly_price_usd", "nan"), ("status", "RUNNING")):
        with pytest.raises(InvalidArgument) as caught:
            read_query({name: [text]}, provision)
        assert caught.value.context["param"] == name


# Round trips. A time has whole seconds, and what is not optional is written even if it is not there.
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)
FREE = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(MIN_INT64, MAX_UINT64)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)
VALUES: dict[Form, st.SearchStrategy[Any]] = {
    Form.STRING: TEXTS,
    Form.JSON: st.dictionaries(TEXTS, FREE, max_size=3).map(json.dumps),
    Form.NUMBER: st.floats(allow_nan=False, allow_infinity=False),
    Form.BOOLEAN: st.booleans(),
    Form.TIME: st.integers(0, 253_402_300_799).map(lambda seconds: {"seconds": seconds}),
}


def messages(descriptor: Descriptor) -> st.SearchStrategy[Message]:
    fields: dict[str, st.SearchStrategy[Any]] = {}
    optional: dict[str, st.SearchStrategy[Any]] = {}
    for field, member in zip(descriptor.fields, members_of(descriptor), strict=True):
        if member.is_filled:
            continue
        value = values_of(field, member.form, member.bits)
        if member.repeated:
            value = st.lists(value, max_size=3)
        is_absent = member.optional or member.form in (Form.TIME, Form.JSON) or member.repeated
        (optional if is_absent else fields)[member.name] = value
    return st.fixed_dictionaries(fields, optional=optional).map(lambda given: GetMessageClass(descriptor)(**given))


def values_of(field: FieldDescriptor, form: Form, bits: int) -> st.SearchStrategy[Any]:
    if form is Form.MESSAGE:
        assert field.message_type is not None
        return messages(field.message_type)
    if form is Form.INTEGER:
        return st.integers(-(2 ** (bits - 1)) + 1, 2 ** (bits - 1) - 1)
    if form is Form.ENUM:
        assert field.enum_type is not None
        return st.sampled_from([value.number for value in field.enum_type.values])
    return VALUES[form]


def without_object(value: Any) -> Any:
    """What a client sends back: the members that a request may have."""
    return {key: inner for key, inner in value.items() if key not in {"object", *FILLED}}


SENT = sorted({each.request for service in SERVICES for each in bindings_of(service)}, key=lambda d: d.full_name)


@pytest.mark.parametrize("descriptor", [*SENT, Job.DESCRIPTOR], ids=lambda descriptor: descriptor.name)
@given(data=st.data())
def test_there_and_back(descriptor: Descriptor, data: st.DataObject) -> None:
    message = data.draw(messages(descriptor))
    sent = json.loads(msgspec.json.encode(as_json(message)))
    if descriptor is Job.DESCRIPTOR and sent["provision"]:
        sent["provision"] = without_object(sent["provision"])
    body = json.dumps(without_object(sent), ensure_ascii=data.draw(st.booleans())).encode()
    back = GetMessageClass(descriptor)()
    read_body(body, back)
    assert canonical(back) == canonical(message)


def canonical(message: Any) -> Any:
    """Free objects mean the same however they are spaced."""
    copy = type(message)()
    copy.CopyFrom(message)
    for member in members_of(message.DESCRIPTOR):
        if member.form is Form.JSON and (text := getattr(copy, member.name)):
            setattr(copy, member.name, json.dumps(json.loads(text)))
    return copy


def test_names() -> None:
    assert [time_key(name) for name in ("queued_time", "create_time", "update_time", "time", "last_used_time")] == [
        "queued_at",
        "created_at",
        "updated_at",
        "at",
        "last_used_at",
    ]
    assert [object_name(name) for name in ("Job", "ApiKey", "DeploymentTemplate")] == [
        "job",
        "api_key",
        "deployment_template",
    ]
