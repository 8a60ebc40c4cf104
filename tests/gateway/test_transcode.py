"""Every path of the console's API: what the console is asked, and what the caller gets to see."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest
import pytest_asyncio
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from brix.console.v1 import access_pb2, deployment_templates_pb2, models_pb2
from brix.type.v1 import job_pb2, provision_pb2
from gateway.console import SERVICES
from gateway.transcode_routes import bindings_of
from services.kit import errors
from tests.gateway.front import Front, gateway_of, settings_for
from tests.gateway.scripted import Script, scripted

pytestmark = pytest.mark.asyncio(loop_scope="module")


@dataclass
class Console:
    front: Front
    script: Script


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Console]:
    settings = settings_for(tmp_path_factory.mktemp("transcode"))
    async with scripted() as script, gateway_of(settings, "127.0.0.1:1", script.address) as front:
        yield Console(front, script)


@pytest.fixture
def console(running: Console) -> Console:
    running.script.answers.clear()
    running.script.asked.clear()
    return running


async def call(console: Console, method: str, path: str, body: Any = None, **headers: str) -> Any:
    if body is None:
        return await console.front.call(method, path, headers=headers)
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    kind = {"Content-Type": "application/json"}
    return await console.front.call(method, path, data=io.BytesIO(data), headers=kind | headers)


# HTTP method, path with query, body, RPC, and what it is asked beside what the gateway fills in.
CALLS: list[tuple[str, str, Any, str, dict[str, Any]]] = [
    (
        "POST",
        "/models",
        {"id": "m1", "name": "Ü", "serving_name": "s", "description": "", "category": "LLM"},
        "CreateModel",
        {"id": "m1", "name": "Ü", "serving_name": "s", "category": "LLM"},
    ),
    ("GET", "/models/m1", None, "GetModel", {"id": "m1"}),
    (
        "GET",
        "/models?limit=5&after=m2&search=a%20b%26c&category=x",
        None,
        "ListModels",
        {"limit": 5, "after": "m2", "search": "a b&c", "category": "x"},
    ),
    (
        "PATCH",
        "/models/m1",
        {"description": "d", "serving_name": "", "category": None, "revision": 7},
        "UpdateModel",
        {"id": "m1", "description": "d", "serving_name": "", "revision": 7},
    ),
    ("DELETE", "/models/m1", None, "DeleteModel", {"id": "m1"}),
    (
        "POST",
        "/models/m1/deployment-templates",
        b'{"name": "t", "version": "v1", "status": "draft", "spec": {"a":  [1.50, "\\u00e9"]}}',
        "CreateDeploymentTemplate",
        {
            "model_id": "m1",
            "name": "t",
            "version": "v1",
            "status": "draft",
            "spec_json": '{"a":  [1.50, "\\u00e9"]}',
        },
    ),
    (
        "GET",
        "/models/m1/deployment-templates/t1",
        None,
        "GetDeploymentTemplate",
        {"model_id": "m1", "id": "t1"},
    ),
    (
        "GET",
        "/models/m1/deployment-templates?status=active&name=t&limit=&after=",
        None,
        "ListDeploymentTemplates",
        {"model_id": "m1", "status": "active", "name": "t"},
    ),
    (
        "GET",
        "/models/m1/deployment-templates/by-name/a%2Fb.c?version=",
        None,
        "ResolveDeploymentTemplate",
        {"model_id": "m1", "name": "a/b.c"},
    ),
    (
        "PUT",
        "/models/m1/deployment-templates/t1",
        {"spec": {}, "revision": 1},
        "UpdateDeploymentTemplate",
        {"model_id": "m1", "id": "t1", "spec_json": "{}", "revision": 1},
    ),
    (
        "PATCH",
        "/models/m1/deployment-templates/t1",
        {"status": "deprecated", "revision": 2},
        "UpdateDeploymentTemplate",
        {"model_id": "m1", "id": "t1", "status": "deprecated", "revision": 2},
    ),
    (
        "DELETE",
        "/models/m1/deployment-templates/t1",
        None,
        "DeleteDeploymentTemplate",
        {"model_id": "m1", "id": "t1"},
    ),
    (
        "POST",
        "/jobs",
        {
            "name": "nightly",
            "input_dataset": "file-1",
            "endpoint": "/v1/chat/completions",
            "completion_window": "24h",
            "model_id": "m1",
            "model_template_name": "t",
            "model_template_version": "v1",
            "client": {"max_concurrency": 8},
            "resource_request": {"replicas": 2},
            "metadata": {"k": "v"},
            "priority": "high",
            "budget_usd": 12,
        },
        "CreateJob",
        {
            "created_by": "anonymous",
            "name": "nightly",
            "input_dataset": "file-1",
            "endpoint": "/v1/chat/completions",
            "completion_window": "24h",
            "model_id": "m1",
            "model_template_name": "t",
            "model_template_version": "v1",
            "client_json": '{"max_concurrency": 8}',
            "resource_request_json": '{"replicas": 2}',
            "metadata_json": '{"k": "v"}',
            "priority": "high",
            "budget_usd": 12.0,
        },
    ),
    ("GET", "/jobs/job_1", None, "GetJob", {"id": "job_1"}),
    (
        "GET",
        "/jobs?status=failed&limit=100&status=queued&model_id=m1&model_template_name=t",
        None,
        "ListJobs",
        {"status": ["failed", "queued"], "limit": 100, "model_id": "m1", "model_template_name": "t"},
    ),
    ("POST", "/jobs/job_1/cancel", None, "CancelJob", {"id": "job_1"}),
    ("POST", "/jobs/job_1/retry", b" {} ", "RetryJob", {"id": "job_1", "created_by": "anonymous"}),
    ("GET", "/jobs/job_1/events?after_revision=3", None, "WatchJob", {"id": "job_1", "after_revision": 3}),
    (
        "POST",
        "/apikeys",
        {"name": "laptop", "expires_after_s": 3600},
        "CreateApiKey",
        {"name": "laptop", "expires_after_s": 3600},
    ),
    ("GET", "/apikeys?limit=1&after=key_1", None, "ListApiKeys", {"limit": 1, "after": "key_1"}),
    ("DELETE", "/apikeys/key_1", None, "DeleteApiKey", {"id": "key_1"}),
    ("POST", "/secrets", {"name": "HF", "value": "v"}, "CreateSecret", {"name": "HF", "value": "v"}),
    ("GET", "/secrets", None, "ListSecrets", {}),
    ("DELETE", "/secrets/secret_1", None, "DeleteSecret", {"id": "secret_1"}),
    ("GET", "/quotas", None, "GetQuota", {}),
    (
        "PUT",
        "/quotas",
        {"max_live_jobs": 0, "max_gpus": 2147483647, "max_monthly_cost_usd": 0.5, "revision": 9007199254740993},
        "UpdateQuota",
        {"max_live_jobs": 0, "max_gpus": 2147483647, "max_monthly_cost_usd": 0.5, "revision": 9007199254740993},
    ),
]


async def nothing(request: Any) -> AsyncIterator[Message]:
    for _ in ():
        yield request


@pytest.mark.parametrize(("method", "path", "body", "rpc", "asked"), CALLS, ids=lambda value: str(value)[:60])
async def test_what_the_console_is_asked(
    console: Console, method: str, path: str, body: Any, rpc: str, asked: dict[str, Any]
) -> None:
    console.script.answers["WatchJob"] = nothing
    for slash in ("", "/"):
        place, _, query = path.partition("?")
        answer = await call(console, method, f"/api/v1{place}{slash}?{query}", body)
        assert answer.status == (204 if rpc == "WatchJob" else 200), answer.body
        name, request = console.script.asked[-1]
        assert name == rpc
        call_id = getattr(request, "call_id", "once_")
        assert call_id.startswith("once_")
        filled = {
            "project_id": "default",
            "call_id": call_id,
            "request_hash": digest(rpc, body),
            "created_by": "anonymous",
        }
        fields = request.DESCRIPTOR.fields_by_name
        assert request == type(request)(**asked | {k: v for k, v in filled.items() if k in fields})


def digest(rpc: str, body: Any) -> str:
    """Where a body says nothing, whatever stands there is the same."""
    data = b"" if body is None or rpc == "RetryJob" else body if isinstance(body, bytes) else json.dumps(body).encode()
    return hashlib.sha256(data).hexdigest()


async def test_every_binding_is_in_the_table() -> None:
    every = {(each.http_method, each.name) for service in SERVICES for each in bindings_of(service)}
    assert {(method, rpc) for method, _, _, rpc, _ in CALLS} == every


async def test_the_key_of_the_caller_travels(console: Console) -> None:
    body = {"input_dataset": "f", "endpoint": "e"}
    for path, sent in (("/api/v1/jobs", body), ("/api/v1/jobs/j/retry", None)):
        assert (await call(console, "POST", path, sent, **{"Idempotency-Key": "mine"})).status == 200
        asked = console.script.last()
        assert (asked.idempotency_key, asked.HasField("call_id")) == ("mine", False)
        wrong = await call(console, "POST", path, sent, **{"Idempotency-Key": "x" * 256})
        assert (wrong.status, wrong.error["param"]) == (400, "Idempotency-Key")


async def test_a_call_without_a_key_has_an_id_of_its_own(console: Console) -> None:
    body = {"input_dataset": "f", "endpoint": "e"}
    seen = set()
    for path, sent in (("/api/v1/jobs", body), ("/api/v1/jobs", body), ("/api/v1/jobs/j/retry", None)):
        assert (await call(console, "POST", path, sent)).status == 200
        asked = console.script.last()
        assert not asked.HasField("idempotency_key")
        seen.add(asked.call_id)
    assert len(seen) == 3


async def test_no_body_and_an_empty_one_are_the_same_retry(console: Console) -> None:
    hashes = set()
    for sent in (None, b"", b"{}", b" {\n} "):
        answer = await call(console, "POST", "/api/v1/jobs/j/retry", sent, **{"Idempotency-Key": "mine"})
        assert answer.status == 200, answer.body
        hashes.add(console.script.last().request_hash)
    assert len(hashes) == 1


async def test_a_limit_of_nothing_is_said(console: Console) -> None:
    for path in ("models", "models/m/deployment-templates", "jobs", "apikeys", "secrets"):
        for query, limit in (("", None), ("?limit=", None), ("?limit=0", 0), ("?limit=7", 7)):
            await call(console, "GET", f"/api/v1/{path}{query}")
            asked = console.script.last()
            assert (asked.limit if asked.HasField("limit") else None) == limit


async def test_too_many_watchers_come_again(console: Console) -> None:
    """Unlike a quota of jobs, it passes."""
    console.script.answers["WatchJob"] = errors.QuotaExceeded("many", code="rate_limit_exceeded", retry_after_s="5")
    answer = await call(console, "GET", "/api/v1/jobs/j/events")
    assert (answer.status, answer.error["code"]) == (429, "rate_limit_exceeded")
    assert (answer.headers["retry-after"], answer.headers["x-should-retry"]) == ("5", "true")
    console.script.answers["CreateJob"] = errors.QuotaExceeded("full", code="insufficient_quota")
    answer = await call(console, "POST", "/api/v1/jobs", {"input_dataset": "f", "endpoint": "e"})
    assert (answer.status, answer.headers["x-should-retry"]) == (429, "false")
    assert "retry-after" not in answer.headers


def at(seconds: int) -> Timestamp:
    return Timestamp(seconds=seconds, nanos=999_999_999)


async def test_what_a_job_looks_like(console: Console) -> None:
    provision = provision_pb2.Provision(
        id="prov-1", status=provision_pb2.Provision.RUNNING, machines=[provision_pb2.Machine(id="i-1", ssh_port=22)]
    )
    console.script.answers["GetJob"] = job_pb2.Job(
        id="job_1",
        project_id="default",
        status=job_pb2.Job.IN_PROGRESS,
        client_json='{"a":  1e2}',
        priority=-10,
        budget_usd=0.0,
        provision=provision,
        request_counts=job_pb2.RequestCounts(total=2**53 + 1),
        create_time=at(1_700_000_000),
        queued_time=at(1_700_000_001),
        events=[job_pb2.JobEvent(id=1, label="Queued", status="queued", source="console", time=at(5), message="m")],
        revision=2**63 - 1,
    )
    answer = await call(console, "GET", "/api/v1/jobs/job_1")
    assert b'"client":{"a":  1e2}' in answer.body
    job = answer.json
    assert (job["id"], job["object"], job["status"]) == ("job_1", "job", "in_progress")
    assert (job["priority"], job["budget_usd"], job["revision"]) == (-10, 0.0, 2**63 - 1)
    assert (job["created_at"], job["queued_at"], job["completed_at"], job["expires_at"]) == (
        1_700_000_000,
        1_700_000_001,
        None,
        None,
    )
    assert (job["batch_id"], job["error_message"], job["metadata"]) == (None, None, None)
    assert job["request_counts"] == {"total": 2**53 + 1, "completed": 0, "failed": 0}
    assert set(job["usage"].values()) == {0}
    assert job["events"] == [
        {"id": 1, "label": "Queued", "status": "queued", "source": "console", "at": 5, "message": "m"}
    ]
    assert (job["provision"]["status"], job["provision"]["released_at"]) == ("running", None)
    assert job["provision"]["machines"][0]["ssh_port"] == 22
    names = {field.name for field in job_pb2.Job.DESCRIPTOR.fields}
    at_names = {"created_at"} | {n.removesuffix("_time") + "_at" for n in names if n.endswith("_time")} - {"create_at"}
    plain = {n.removesuffix("_json") for n in names if not n.endswith("_time")}
    assert set(job) == plain | at_names | {"object"}


async def test_lists_and_deletes_are_as_openais(console: Console) -> None:
    models = [models_pb2.Model(id=id, name=id) for id in ("a", "b")]
    console.script.answers["ListModels"] = models_pb2.ListModelsResponse(data=models, has_more=True)
    page = (await call(console, "GET", "/api/v1/models")).json
    assert (page["object"], page["first_id"], page["last_id"], page["has_more"]) == ("list", "a", "b", True)
    assert [(item["object"], item["name"], item["serving_name"]) for item in page["data"]] == [
        ("model", "a", None),
        ("model", "b", None),
    ]
    console.script.answers["ListSecrets"] = access_pb2.ListSecretsResponse()
    empty = (await call(console, "GET", "/api/v1/secrets")).json
    assert empty == {"object": "list", "data": [], "first_id": None, "last_id": None, "has_more": False}
    for path, name in (("apikeys", "api_key"), ("secrets", "secret"), ("models", "model")):
        gone = await call(console, "DELETE", f"/api/v1/{path}/x")
        assert gone.json == {"id": "x", "object": name, "deleted": True}
    template = await call(console, "DELETE", "/api/v1/models/m/deployment-templates/x")
    assert template.json["object"] == "deployment_template"


async def test_a_template_and_a_quota(console: Console) -> None:
    made = deployment_templates_pb2.DeploymentTemplate(id="t1", spec_json='{"engine":{}}', update_time=at(9))
    console.script.answers["GetDeploymentTemplate"] = made
    template = (await call(console, "GET", "/api/v1/models/m/deployment-templates/t1")).json
    assert (template["object"], template["spec"], template["updated_at"]) == ("deployment_template", {"engine": {}}, 9)
    quota = (await call(console, "GET", "/api/v1/quotas")).json
    assert quota == {
        "object": "quota",
        "project_id": "",
        "max_live_jobs": None,
        "max_gpus": None,
        "max_monthly_cost_usd": None,
        "live_jobs": 0,
        "revision": 0,
    }


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (errors.InvalidArgument("m", param="spec.engine.type", code="invalid_value"), 400, "invalid_value"),
        (errors.NotFound("m", param="id"), 404, None),
        (errors.AlreadyExists("m", param="name"), 409, None),
        (errors.Conflict("m", param="revision"), 409, None),
        (errors.IllegalTransition("m"), 409, None),
        (errors.QuotaExceeded("m", code="insufficient_quota"), 429, "insufficient_quota"),
        (errors.Unavailable("m"), 503, None),
        (RuntimeError("secret"), 500, None),
    ],
)
async def test_what_goes_wrong_in_the_console(
    console: Console, error: Exception, status: int, code: str | None
) -> None:
    console.script.answers["GetJob"] = error
    answer = await call(console, "GET", "/api/v1/jobs/j")
    assert answer.status == status
    assert answer.error["code"] == code
    assert "secret" not in answer.error["message"]
    assert answer.error["param"] == getattr(error, "context", {}).get("param")
    assert ("retry-after" in answer.headers) == (status == 503)


JOB = {"input_dataset": "f", "endpoint": "e"}


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code", "param"),
    [
        ("GET", "/api/v1", None, 404, None, None),
        ("GET", "/api/v1/", None, 404, None, None),
        ("GET", "/api/v1/nothing", None, 404, None, None),
        ("POST", "/api/v1/jobs/a/b/c", {}, 404, None, None),
        ("POST", "/api/v1/authenticate", {}, 404, None, None),
        ("PUT", "/api/v1/jobs", {}, 405, "method_not_supported", None),
        ("DELETE", "/api/v1/quotas", None, 405, "method_not_supported", None),
        ("POST", "/api/v1/models/m", {}, 405, "method_not_supported", None),
        ("HEAD", "/api/v1/jobs/j/events", None, 405, None, None),
        ("GET", "/api/v1/jobs?limit=x", None, 400, "invalid_type", "limit"),
        ("GET", "/api/v1/jobs?limit=1.0", None, 400, "invalid_type", "limit"),
        ("GET", "/api/v1/jobs?limit=2147483648", None, 400, "integer_above_max_value", "limit"),
        ("GET", "/api/v1/jobs?limit=" + "9" * 5000, None, 400, "integer_above_max_value", "limit"),
        ("GET", "/api/v1/jobs?limit=1&limit=2", None, 400, "duplicate_parameter", "limit"),
        ("GET", "/api/v1/jobs?after=%00", None, 400, "invalid_value", "after"),
        ("GET", "/api/v1/jobs?stauts=failed", None, 400, "unknown_parameter", "stauts"),
        ("GET", "/api/v1/jobs?project_id=other", None, 400, "unknown_parameter", "project_id"),
        ("GET", "/api/v1/jobs/j?id=k", None, 400, "unknown_parameter", "id"),
        ("POST", "/api/v1/jobs?name=a", JOB, 400, "unknown_parameter", "name"),
        ("POST", "/api/v1/jobs/j/cancel", {"why": 1}, 400, "unknown_parameter", "why"),
        ("POST", "/api/v1/jobs/j/cancel", b"[]", 400, "invalid_type", None),
        ("POST", "/api/v1/jobs", b"", 400, None, None),
        ("POST", "/api/v1/jobs", None, 415, "unsupported_media_type", None),
        ("POST", "/api/v1/jobs", b" " * 5_000_000, 413, "file_too_large", None),
        ("PATCH", "/api/v1/models/m", {"id": "n", "revision": 1}, 400, "unknown_parameter", "id"),
        ("GET", "/api/v1/jobs/j/events?after_revision=-", None, 400, "invalid_type", "after_revision"),
    ],
)
async def test_what_never_reaches_the_console(
    console: Console, method: str, path: str, body: Any, status: int, code: str | None, param: str | None
) -> None:
    answer = await call(console, method, path, body)
    assert answer.status == status, answer.body
    if method != "HEAD":
        assert (answer.error["code"], answer.error["param"]) == (code, param)
    if status == 405:
        assert answer.headers["allow"]
    assert console.script.asked == []


@pytest.mark.parametrize(
    "path", ["/api/v1/models/%ff", "/api/v1/models/%00", "/api/v1/models/%ed%a0%80", "/api/v1/models?after=%ff"]
)
async def test_ids_that_are_no_text(console: Console, path: str) -> None:
    answer = await call(console, "GET", path)
    assert answer.status in {200, 400, 404}


async def test_the_methods_of_a_path_are_named_together(console: Console) -> None:
    answer = await call(console, "POST", "/api/v1/models/m/deployment-templates/t", {})
    assert set(answer.headers["allow"].replace(" ", "").split(",")) == {"GET", "HEAD", "PUT", "PATCH", "DELETE"}


async def test_a_large_body_is_read_and_holds_nobody_up(console: Console) -> None:
    spec = {"engine": {"serve_args": ["x" * 100] * 9000}}
    answer = await call(console, "POST", "/api/v1/models/m/deployment-templates", {"name": "t", "spec": spec})
    assert answer.status == 200
    assert json.loads(console.script.last().spec_json) == spec


async def test_without_a_console_only_its_paths_are_gone(tmp_path: Any) -> None:
    async with gateway_of(settings_for(tmp_path), "127.0.0.1:1") as front:
        for path in ("/api/v1/jobs", "/api/v1/jobs/j/events"):
            answer = await front.call("GET", path)
            assert (answer.status, answer.error["type"]) == (503, "server_error")
            assert 0 < int(answer.headers["retry-after"]) <= 60
            assert "127.0.0.1" not in answer.error["message"]
        assert (await front.call("GET", "/healthz")).status == 200
