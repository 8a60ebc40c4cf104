"""The console's path through the REST API of real processes: model, template, job, compute, results; and kill -9 on the way."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest
import pytest_asyncio

from tests.e2e.processes import Suite, eventually, suite
from tests.e2e.test_sdk import FINE, jsonl, line

pytestmark = pytest.mark.asyncio(loop_scope="module")
ENDED = ("completed", "failed", "expired", "cancelled", "resource_failed", "submit_failed")


def spec(**engine_args: Any) -> dict[str, Any]:
    return {
        "engine": {"type": "mock"},
        "model_source": {"type": "local", "uri": "m"},
        "accelerator": {"type": "cpu", "count": 1},
        "supported_endpoints": [FINE],
        "engine_args": engine_args,
    }


class Api:
    """/api/v1 of a running suite."""

    def __init__(self, platform: Suite, session: aiohttp.ClientSession) -> None:
        self.platform = platform
        self.session = session

    async def call(self, method: str, path: str, body: Any = None, status: int = 200) -> Any:
        async with self.session.request(method, f"{self.platform.url}/api/v1{path}", json=body) as answer:
            text = await answer.text()
            assert answer.status == status, text
            return json.loads(text)

    async def job(self, **fields: Any) -> dict[str, Any]:
        """The seed's body."""
        body = {
            "name": "daily-eval",
            "endpoint": FINE,
            "completion_window": "24h",
            "model_id": "model-tiny",
            "model_template_name": "tiny",
            "model_template_version": "v1",
        }
        made: dict[str, Any] = await self.call("POST", "/jobs", body | fields)
        return made

    async def ended(self, id: str) -> dict[str, Any]:
        found: dict[str, Any] = {}

        async def terminal() -> bool:
            try:
                found.update(await self.call("GET", f"/jobs/{id}"))
            except (AssertionError, aiohttp.ClientError):
                return False  # a role is down just now
            return found["status"] in ENDED

        await eventually(terminal, "the job ends", lambda: str(found) + self.platform.log("planner")[-3000:])
        return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("jobs")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def api(folder: Path) -> AsyncIterator[Api]:
    roles = ("console", "metadata", "planner", "runner", "gateway")
    env = {"AIBRIX_PLANNER__LEASE_TTL_S": "2", "AIBRIX_PLANNER__POLL_S": "0.1", "AIBRIX_TEMPLATES__INLINE_FLAGS": "any"}
    async with suite(folder, *roles, **env) as platform, aiohttp.ClientSession() as session:
        made = Api(platform, session)
        await made.call("POST", "/models", {"id": "model-tiny", "name": "tiny", "serving_name": "m"})
        fast = {"name": "tiny", "version": "v1", "spec": spec(latency_ms=5)}
        await made.call("POST", "/models/model-tiny/deployment-templates", fast)
        slow = {"name": "slow", "version": "v1", "spec": spec(latency_ms=300)}
        await made.call("POST", "/models/model-tiny/deployment-templates", slow)
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(api: Api) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{api.platform.url}/v1", api_key="any") as made:
        yield made


async def upload(client: openai.AsyncOpenAI, count: int, prefix: str = "j") -> str:
    data = jsonl(*(line(f"{prefix}-{n}") for n in range(count)))
    return (await client.files.create(file=("in.jsonl", data), purpose="batch")).id


async def ids_of(client: openai.AsyncOpenAI, file_id: str) -> list[str]:
    content = await client.files.content(file_id)
    return sorted(json.loads(one)["custom_id"] for one in content.content.splitlines())


async def test_a_job_finds_its_compute_and_gives_it_back(api: Api, client: openai.AsyncOpenAI) -> None:
    made = await api.job(input_dataset=await upload(client, 60))
    assert (made["object"], made["status"]) in [("job", status) for status in ("queued", "planned")]
    job = await api.ended(made["id"])
    assert (job["status"], job["error_message"]) == ("completed", None)
    assert job["request_counts"] == {"total": 60, "completed": 60, "failed": 0}
    assert job["usage"]["total_tokens"] > 0
    assert await ids_of(client, job["output_dataset"]) == sorted(f"j-{n}" for n in range(60))
    times = [job[f"{state}_at"] for state in ("queued", "planned", "resource_preparing", "submitting", "completed")]
    assert all(times)
    assert times == sorted(times)
    assert [event["source"] for event in job["events"]]
    batch = await client.batches.retrieve(job["batch_id"])
    block = batch.to_dict()["aibrix"]
    assert (block["job_id"], block["model"], block["runtime"]["target"]) == (job["id"], "m", "Local")
    assert block["resource_allocation"]["provision_id"] == job["provision_id"]
    assert block["model_template"]["spec"]["engine"]["type"] == "mock"

    async def released() -> bool:
        return (await api.call("GET", f"/jobs/{job['id']}"))["provision"]["status"] == "released"

    await eventually(released, "the compute is given back")


async def test_wrong_input_costs_nothing(api: Api, client: openai.AsyncOpenAI) -> None:
    data = jsonl(line("first")) + b"{no json\n"  # an upload looks at the first line only
    file = await client.files.create(file=("in.jsonl", data), purpose="batch")
    job = await api.ended((await api.job(input_dataset=file.id))["id"])
    assert (job["status"], job["error_code"]) == ("failed", "invalid_json_line")
    assert job["provision_id"] is None
    assert job["batch_id"] is None


async def test_changes_arrive_as_events(api: Api, client: openai.AsyncOpenAI) -> None:
    made = await api.job(input_dataset=await upload(client, 20, "e"))
    async with api.session.get(f"{api.platform.url}/api/v1/jobs/{made['id']}/events") as answer:
        assert answer.content_type == "text/event-stream"
        texts = [text async for text in answer.content if text.startswith(b"data:")]
    seen = [json.loads(text[5:])["status"] for text in texts]
    assert seen[-1] == "completed"
    assert len(seen) > 2


async def test_cancel_while_it_runs(api: Api, client: openai.AsyncOpenAI) -> None:
    made = await api.job(input_dataset=await upload(client, 400, "c"), model_template_name="slow")

    async def running() -> bool:
        return (await api.call("GET", f"/jobs/{made['id']}"))["status"] == "in_progress"

    await eventually(running, "the job runs", lambda: api.platform.log("planner")[-3000:])
    await api.call("POST", f"/jobs/{made['id']}/cancel")
    job = await api.ended(made["id"])
    assert job["status"] == "cancelled"
    again = await api.call("POST", f"/jobs/{made['id']}/cancel", status=409)
    assert again["error"]["message"]


@pytest.mark.parametrize("moment", ["resource_preparing", "in_progress"])
async def test_a_killed_planner_goes_on_with_the_same_batch(api: Api, client: openai.AsyncOpenAI, moment: str) -> None:
    made = await api.job(input_dataset=await upload(client, 30, moment), model_template_name="slow")

    async def there() -> bool:
        status = (await api.call("GET", f"/jobs/{made['id']}"))["status"]
        return status == moment or (moment != "in_progress" and status not in ("queued", "planned"))

    await eventually(there, f"the job is {moment}")
    await api.platform.kill("planner")
    await api.platform.start("planner")
    job = await api.ended(made["id"])
    assert (job["status"], job["request_counts"]["completed"]) == ("completed", 30)
    batches = [batch async for batch in client.batches.list()]
    mine = [batch for batch in batches if (batch.to_dict().get("aibrix") or {}).get("job_id") == made["id"]]
    assert [batch.id for batch in mine] == [job["batch_id"]]


@pytest.mark.parametrize(
    ("change", "status", "param"),
    [
        ({"input_dataset": ""}, 400, "input_dataset"),
        ({"endpoint": "/v1/nope"}, 400, "endpoint"),
        ({"completion_window": "soon"}, 400, "completion_window"),
        ({"model_id": "model-none"}, 404, "model_id"),
        ({"model_template_name": "none"}, 404, "model_template_name"),
        ({"model_template_version": "v9"}, 404, "model_template_version"),
        ({"client": {"max_concurrency": 1000}}, 400, "client.max_concurrency"),
        ({"surprise": 1}, 400, "surprise"),
        ({"name": 7}, 400, "name"),
    ],
)
async def test_a_wrong_job_is_refused_by_name(api: Api, change: dict[str, Any], status: int, param: str) -> None:
    body = {
        "name": "x",
        "input_dataset": "file-x",
        "endpoint": FINE,
        "completion_window": "24h",
        "model_id": "model-tiny",
        "model_template_name": "tiny",
    }
    answer = await api.call("POST", "/jobs", body | change, status=status)
    assert answer["error"]["param"] == param
