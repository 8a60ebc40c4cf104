"""Templates and profiles through the official SDK, on a server whose registry is two files that change while it runs."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
import pytest_asyncio

from brix.runner.v1 import runner_pb2, runner_pb2_grpc
from services.kit.server import channel
from tests.e2e.processes import Suite, Witness, eventually, suite, witness
from tests.e2e.test_sdk import FINE, TERMINAL, jsonl, line

pytestmark = pytest.mark.asyncio(loop_scope="module")

# The request that the seed's page shows, word for word.
SEED: dict[str, Any] = {
    "model": "meta-llama/Llama-3.1-8B-Instruct",
    "runtime": {"target": "External", "options": {}},
    "model_template": {
        "name": "llama3-8b-a10",
        "version": "v1",
        "spec": {
            "engine": {
                "type": "vllm",
                "version": "0.6.3",
                "image": "vllm/vllm-openai:latest",
                "serve_args": ["--gpu-memory-utilization", "0.90"],
            },
            "model_source": {"type": "huggingface", "uri": "meta-llama/Llama-3.1-8B-Instruct"},
            "accelerator": {"type": "A10", "count": 1},
            "parallelism": {"tp": 1, "pp": 1, "dp": 1, "ep": 1},
            "supported_endpoints": [FINE],
            "deployment_mode": "dedicated",
        },
    },
}


def template(version: str, status: str = "active", **engine_args: Any) -> dict[str, Any]:
    spec = {
        "engine": {"type": "mock"},
        "model_source": {"type": "local", "uri": "tiny"},
        "accelerator": {"type": "cpu", "count": 1},
        "supported_endpoints": [FINE],
        "engine_args": engine_args,
    }
    return {"name": "tiny", "version": version, "status": status, "spec": spec}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine() -> AsyncIterator[Witness]:
    async with witness(latency_s=0.0) as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def platform(tmp_path_factory: pytest.TempPathFactory, engine: Witness) -> AsyncIterator[Suite]:
    folder = tmp_path_factory.mktemp("templates")
    registry = folder / "registry"
    registry.mkdir()
    (registry / "tiny.yaml").write_text(json.dumps([template("v1.9.0"), template("v1.10.0", latency_ms=1)]))
    profiles = {
        "items": [{"name": "careful", "spec": {"scheduling": {"max_concurrency": 2, "completion_window": "1h"}}}]
    }
    (folder / "profiles.yaml").write_text(json.dumps(profiles))
    async with suite(
        folder,
        "all",
        AIBRIX_DEFAULT_ENDPOINT=engine.url,
        AIBRIX_TEMPLATES__SOURCE=str(registry),
        AIBRIX_TEMPLATES__RELOAD_S="0.1",
        AIBRIX_PROFILES__SOURCE=str(folder / "profiles.yaml"),
    ) as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(platform: Suite) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{platform.url}/v1", api_key="any", max_retries=0) as made:
        yield made


async def create(client: openai.AsyncOpenAI, block: dict[str, Any], count: int = 5) -> openai.types.Batch:
    data = jsonl(*(line(f"q-{n}") for n in range(count)))
    uploaded = await client.files.create(file=("in.jsonl", data), purpose="batch")
    return await client.batches.create(
        input_file_id=uploaded.id, endpoint=FINE, completion_window="24h", extra_body={"aibrix": block}
    )


async def ended(client: openai.AsyncOpenAI, id: str) -> openai.types.Batch:
    async def terminal() -> bool:
        return (await client.batches.retrieve(id)).status in TERMINAL

    await eventually(terminal, "the batch ends")
    return await client.batches.retrieve(id)


async def test_the_seeds_request_works_unchanged(client: openai.AsyncOpenAI, engine: Witness) -> None:
    batch = await ended(client, (await create(client, SEED)).id)
    assert (batch.status, batch.request_counts.completed if batch.request_counts else 0) == ("completed", 5)
    assert batch.to_dict()["aibrix"] == SEED
    assert len(engine.seen) == 5


async def test_a_template_of_the_registry_starts_its_engine(client: openai.AsyncOpenAI, platform: Suite) -> None:
    block = {
        "runtime": {"target": "Local"},
        "model_template": {"name": "tiny", "overrides": {"engine_args": {"latency_ms": 30}}},
        "profile": {"name": "careful"},
    }
    made = await create(client, block, count=40)
    assert made.expires_at == made.created_at + 3600
    seen: list[runner_pb2.Execution] = []
    async with channel(platform.listens["runner"]) as to_runner:
        stub = runner_pb2_grpc.RunnerServiceStub(to_runner)

        async def running() -> bool:
            status = await stub.GetStatus(runner_pb2.GetStatusRequest())
            seen.extend(one for one in status.executions if one.batch_id == made.id)
            return bool(seen)

        await eventually(running, "the runner has it")
    batch = await ended(client, made.id)
    assert batch.status == "completed"
    assert batch.to_dict()["aibrix"] == block
    assert (seen[0].template, seen[0].profile) == ("tiny@v1.10.0", "careful")
    assert (seen[0].client.max_concurrency, seen[0].client.max_retries) == (2, 5)
    taken = next(one for one in platform.log("all").splitlines() if "lease taken" in one and made.id in one)
    assert all(said in taken for said in ("tiny@v1.10.0", "careful", "max_concurrency", "no_endpoint_max_retries"))


async def test_the_registry_is_read_again_while_it_runs(client: openai.AsyncOpenAI, platform: Suite) -> None:
    file = platform.folder / "registry" / "tiny.yaml"
    assert [model.id async for model in client.models.list()] == ["tiny"]
    bad = template("v3") | {"status": "acitve"}
    changed = template("v2.0.0")
    changed["spec"]["model_source"]["uri"] = "tiny-2"
    file.write_text(json.dumps([template("v1.10.0"), changed, bad]))

    async def newer() -> bool:
        return [model.id async for model in client.models.list()] == ["tiny-2"]

    await eventually(newer, "the new template is active")
    problem = next(
        one for one in platform.log("all").splitlines() if "acitve" in one or ("status" in one and "v3" in one)
    )
    assert "tiny.yaml" in problem
    with pytest.raises(openai.BadRequestError) as raised:
        await create(client, {"runtime": {"target": "Local"}, "model_template": {"name": "tiny", "version": "v1.9.0"}})
    assert raised.value.param == "aibrix.model_template.version"
    assert "v2.0.0" in raised.value.message
