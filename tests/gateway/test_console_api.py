"""The console's API as its users have it: gateway, console and metadata are real, only the planner is a script."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from pydantic import SecretStr

from brix.type.v1.job_pb2 import Job
from gateway.auth import new_key
from gateway.cors import PREFIX
from services.kit.settings import Console as ConsoleSection
from services.metadata import server
from tests.console.conftest import SPEC, serving_console
from tests.console.planner import ScriptedPlanner
from tests.gateway.front import LINE, Answer, Front, field, file, form, gateway_of, settings_for

pytestmark = pytest.mark.asyncio(loop_scope="module")
CHAT = "/v1/chat/completions"
NIGHTLY = {"input_dataset": "file-1", "endpoint": CHAT, "model_template_name": "nightly"}


@dataclass
class Api:
    front: Front
    planner: ScriptedPlanner
    key: str

    async def call(self, method: str, path: str, body: Any = None, *, key: str | None = None, **headers: str) -> Answer:
        headers |= {"Authorization": f"Bearer {key or self.key}"}
        if body is None:
            return await self.front.call(method, PREFIX + path, headers=headers)
        headers |= {"Content-Type": "application/json"}
        return await self.front.call(method, PREFIX + path, data=json.dumps(body).encode(), headers=headers)

    async def made(self, path: str, body: Any, **headers: str) -> dict[str, Any]:
        answer = await self.call("POST", path, body, **headers)
        assert answer.status == 200, answer.body
        return answer.json


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def api(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Api]:
    folder = tmp_path_factory.mktemp("api")
    key, line = new_key("default", "operator")
    (folder / "keys").write_text(line + "\n")
    more = {
        "api_keys_file": str(folder / "keys"),
        "console": ConsoleSection(listen="127.0.0.1:0"),
        "secrets_encryption_key": SecretStr("ab" * 32),
    }
    settings = settings_for(folder).model_copy(update=more)
    async with (
        server.run(settings) as metadata,
        serving_console(settings) as console,
        gateway_of(settings, metadata, console.address) as front,
    ):
        yield Api(front, console.planner, key)


async def test_from_a_model_to_a_job(api: Api) -> None:
    model = await api.made("models", {"name": "Llama 8B", "serving_name": "llama", "category": "LLM"})
    assert (model["object"], model["serving_name"], model["revision"]) == ("model", "llama", 1)
    templates = f"models/{model['id']}/deployment-templates"
    template = await api.made(templates, {"name": "a10", "spec": SPEC})
    assert (template["object"], template["status"], template["spec"]) == ("deployment_template", "active", SPEC)
    found = (await api.call("GET", f"{templates}/by-name/a10?version=")).json
    assert found == template
    body = {
        "name": "nightly",
        "input_dataset": "file-1",
        "endpoint": CHAT,
        "completion_window": "24h",
        "model_id": model["id"],
        "model_template_name": "a10",
        "model_template_version": "v1.0.0",
    }
    job = await api.made("jobs", body, **{"Idempotency-Key": "night-1"})
    assert (job["object"], job["status"], job["created_by"], job["model"]) == ("job", "queued", "operator", "llama")
    assert (await api.made("jobs", body, **{"Idempotency-Key": "night-1"}))["id"] == job["id"]
    other = await api.call("POST", "jobs", body | {"name": "other"}, **{"Idempotency-Key": "night-1"})
    assert (other.status, other.error["param"]) == (409, "Idempotency-Key")
    assert (await api.call("GET", f"jobs/{job['id']}")).json == job
    page = (await api.call("GET", "jobs?status=queued&status=failed&model_id=" + model["id"])).json
    assert [item["id"] for item in page["data"]] == [job["id"]]
    cancelled = await api.call("POST", f"jobs/{job['id']}/cancel")
    assert (cancelled.status, cancelled.json["status"]) == (200, "cancelling")
    await api.planner.move(job["id"], Job.CANCELLED)
    assert (await api.call("POST", f"jobs/{job['id']}/cancel")).status == 409
    again = await api.made(f"jobs/{job['id']}/retry", {})
    assert (again["retry_of"], again["created_by"]) == (job["id"], "operator")
    assert again["id"] != job["id"]


async def test_what_happens_to_a_job_is_streamed(api: Api) -> None:
    model = await api.made("models", {"name": "Streamed"})
    await api.made(f"models/{model['id']}/deployment-templates", {"name": "streamed", "spec": SPEC})
    job = await api.made("jobs", {"input_dataset": "f", "endpoint": CHAT, "model_template_name": "streamed"})
    url, headers = f"{api.front.url}{PREFIX}jobs/{job['id']}/events", {"Authorization": f"Bearer {api.key}"}
    seen: list[tuple[str, str]] = []
    async with asyncio.timeout(20), api.front.session.get(url, headers=headers) as response:
        async for line in response.content:
            if line.startswith(b"data: "):
                said = json.loads(line.removeprefix(b"data: "))
                seen.append((said["id"], said["status"]))
                following = {"queued": Job.IN_PROGRESS, "in_progress": Job.COMPLETED}.get(said["status"])
                if following:
                    await api.planner.move(job["id"], following)
    assert seen == [(job["id"], status) for status in ("queued", "in_progress", "completed")]
    async with api.front.session.get(url, headers=headers | {"Last-Event-ID": "3"}) as response:
        assert response.status == 204


async def test_two_who_change_the_same_thing(api: Api) -> None:
    model = await api.made("models", {"name": "Changed"})
    first = await api.call("PATCH", f"models/{model['id']}", {"category": "LLM", "revision": 1})
    assert (first.status, first.json["category"], first.json["revision"]) == (200, "LLM", 2)
    second = await api.call("PATCH", f"models/{model['id']}", {"category": "VLM", "revision": 1})
    assert (second.status, second.error["param"]) == (409, "revision")
    unsaid = await api.call("PATCH", f"models/{model['id']}", {"category": "VLM"})
    assert (unsaid.status, unsaid.error["param"]) == (400, "revision")


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"engine": {"type": "nonsense"}}, "spec.engine.type"),
        ({"engine": {"type": "vllm", "colour": "red"}}, "spec.engine.colour"),
        ({"accelerator": {"type": "A10", "count": 0}}, "spec.accelerator.count"),
        ({"nothing": 1}, "spec.nothing"),
    ],
)
async def test_a_wrong_spec_names_its_field(api: Api, change: dict[str, Any], param: str) -> None:
    model = await api.made("models", {"name": f"Spec {param}"})
    path = f"models/{model['id']}/deployment-templates"
    answer = await api.call("POST", path, {"name": "t", "spec": SPEC | change})
    assert (answer.status, answer.error["param"]) == (400, param)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "models/none"),
        ("GET", "models/none/deployment-templates"),
        ("GET", "models/none/deployment-templates/none"),
        ("GET", "models/none/deployment-templates/by-name/none"),
        ("DELETE", "models/none"),
        ("GET", "jobs/none"),
        ("GET", "jobs/none/events"),
        ("POST", "jobs/none/cancel"),
        ("POST", "jobs/none/retry"),
        ("DELETE", "apikeys/none"),
        ("DELETE", "secrets/none"),
        ("GET", "files/none"),
        ("GET", "files/none/content"),
    ],
)
@pytest.mark.parametrize("id", ["none", "%00", "a%2Fb", "é", "x" * 300])
async def test_what_is_not_there(api: Api, method: str, path: str, id: str) -> None:
    answer = await api.call(method, path.replace("none", id))
    assert answer.status == 404
    assert answer.error["type"] == "invalid_request_error"


async def test_a_key_is_made_used_and_revoked(api: Api) -> None:
    made = await api.made("apikeys", {"name": "laptop", "expires_after_s": 3600})
    assert made["key"].startswith(made["prefix"])
    assert (await api.call("GET", "models", key=made["key"])).status == 200
    (shown,) = (await api.call("GET", "apikeys")).json["data"]
    assert (shown["id"], shown["key"], shown["object"]) == (made["id"], None, "api_key")
    assert shown["last_used_at"] is not None
    gone = await api.call("DELETE", f"apikeys/{made['id']}")
    assert gone.json == {"id": made["id"], "object": "api_key", "deleted": True}
    assert (await api.call("GET", "apikeys")).json["data"] == []


async def test_a_secret_never_comes_out(api: Api) -> None:
    made = await api.made("secrets", {"name": "HF_TOKEN", "value": "canary-value"})
    listed = await api.call("GET", "secrets")
    assert [item["name"] for item in listed.json["data"]] == ["HF_TOKEN"]
    assert b"canary-value" not in listed.body
    assert "canary-value" not in str(made)
    wrong = await api.call("POST", "secrets", {"name": "HF_TOKEN", "value": "canary-value\0"})
    assert (wrong.status, wrong.error["param"]) == (400, "value")
    assert b"canary-value" not in wrong.body
    assert (await api.call("DELETE", f"secrets/{made['id']}")).json["deleted"] is True


async def test_a_quota_says_no(api: Api) -> None:
    before = (await api.call("GET", "quotas")).json
    assert (before["object"], before["max_live_jobs"], before["revision"]) == ("quota", None, 0)
    model = await api.made("models", {"name": "Quota"})
    await api.made(f"models/{model['id']}/deployment-templates", {"name": "quota", "spec": SPEC})
    limited = await api.call("PUT", "quotas", {"max_live_jobs": before["live_jobs"]})
    assert (limited.status, limited.json["revision"]) == (200, 1)
    body = {"input_dataset": "f", "endpoint": CHAT, "model_template_name": "quota"}
    refused = await api.call("POST", "jobs", body)
    assert (refused.status, refused.error["code"]) == (429, "insufficient_quota")
    assert refused.headers["x-should-retry"] == "false"
    lifted = await api.call("PUT", "quotas", {"max_live_jobs": 2147483647, "revision": 1})
    assert lifted.status == 200
    assert (await api.call("POST", "jobs", body)).status == 200


async def test_no_number_is_too_large_for_an_answer(api: Api) -> None:
    model = await api.made("models", {"name": "Numbers"})
    templates = f"models/{model['id']}/deployment-templates"
    template = await api.made(templates, {"name": "numbers", "spec": SPEC})
    largest = 2**63 - 1
    huge = SPEC | {"engine_args": {"max_model_len": 2**64}}
    for method, path, body, param in (
        ("PATCH", f"models/{model['id']}", {"revision": largest, "category": "x"}, "revision"),
        ("PUT", f"{templates}/{template['id']}", {"revision": largest, "status": "draft"}, "revision"),
        ("PATCH", f"{templates}/{template['id']}", {"revision": 2**62, "status": "draft"}, "revision"),
        ("PUT", "quotas", {"revision": largest, "max_gpus": 1}, "revision"),
        ("POST", templates, {"name": "huge", "spec": huge}, "spec.engine_args.max_model_len"),
        ("POST", "jobs", {"completion_window": "999999999d999999999h"} | NIGHTLY, "completion_window"),
        *(("GET", f"{path}?limit=0", None, "limit") for path in ("models", templates, "jobs", "apikeys", "secrets")),
    ):
        answer = await api.call(method, path, body)
        assert (answer.status, answer.error["param"]) == (400, param), answer.body


async def test_a_retry_may_be_repeated_with_and_without_a_body(api: Api) -> None:
    model = await api.made("models", {"name": "Repeated"})
    await api.made(f"models/{model['id']}/deployment-templates", {"name": "repeated", "spec": SPEC})
    job = await api.made("jobs", NIGHTLY | {"model_template_name": "repeated"})
    await api.planner.move(job["id"], Job.FAILED)
    again = {
        (await api.made(f"jobs/{job['id']}/retry", body, **{"Idempotency-Key": "r-1"}))["id"] for body in (None, {})
    }
    assert len(again) == 1


class TestFiles:
    """The same files as those of /v1, under the console's paths."""

    async def upload(self, api: Api, *parts: bytes) -> Answer:
        headers = {"Authorization": f"Bearer {api.key}"}
        return await api.front.post_form(f"{PREFIX}files/upload", form(*parts), **headers)

    @pytest.mark.parametrize("parts", [[], [field("purpose", "batch")]], ids=["no purpose", "purpose"])
    async def test_an_upload_is_for_batches(self, api: Api, parts: list[bytes]) -> None:
        made = await self.upload(api, *parts, file(LINE, "in.jsonl"))
        assert made.status == 200, made.body
        id = made.json["id"]
        assert (made.json["object"], made.json["purpose"], made.json["bytes"]) == ("file", "batch", len(LINE))
        assert (await api.call("GET", f"files/{id}")).json == made.json
        content = await api.call("GET", f"files/{id}/content", Range="bytes=0-4")
        assert (content.status, content.body) == (206, LINE[:5])
        page = (await api.call("GET", "files?limit=1&purpose=batch")).json
        assert page["data"] == [made.json]
        assert (await api.front.call("GET", f"/v1/files/{id}", headers={"Authorization": f"Bearer {api.key}"})).json

    @pytest.mark.parametrize(
        ("parts", "status", "code", "param"),
        [
            ([field("purpose", "user_data"), file(LINE)], 400, "invalid_value", "purpose"),
            ([file(LINE), field("purpose", "user_data")], 400, "invalid_value", "purpose"),
            ([file(b"no JSON")], 400, "invalid_json_line", "file"),
            ([field("purpose", "batch")], 400, "missing_required_parameter", "file"),
            ([file(LINE), file(LINE)], 400, "invalid_value", "file"),
        ],
        ids=str,
    )
    async def test_what_is_wrong_with_an_upload(
        self, api: Api, parts: list[bytes], status: int, code: str, param: str
    ) -> None:
        before = await api.front.stored()
        answer = await self.upload(api, *parts)
        assert (answer.status, answer.error["code"], answer.error["param"]) == (status, code, param), answer.body
        assert await api.front.stored() == before

    async def test_paths_and_methods_that_files_have_not(self, api: Api) -> None:
        assert (await api.call("POST", "files", {})).status == 405
        assert (await api.call("GET", "files/upload")).status == 404


async def test_a_page_reads_its_path_in_the_metrics(api: Api, tmp_path: Path) -> None:
    await api.call("GET", "jobs/some-id")
    text = (await api.front.call("GET", "/metrics", headers={"Authorization": f"Bearer {api.key}"})).body.decode()
    assert 'route="/api/v1/jobs/{id}",status="404"' in text
    assert "some-id" not in text
