"""The policy `deadline`, with real processes: jobs of one template use one machine, and one engine, one after another."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import aiohttp
import openai

from tests.e2e.processes import suite
from tests.e2e.test_jobs import Api, spec
from tests.e2e.test_sdk import jsonl, line

COUNT = 3


async def test_the_model_is_loaded_once(tmp_path: Path) -> None:
    roles = ("console", "metadata", "planner", "runner", "gateway")
    env = {"PLANNING_POLICY": "deadline", "AIBRIX_PLANNER__POLL_S": "0.1", "AIBRIX_TEMPLATES__INLINE_FLAGS": "any"}
    async with suite(tmp_path, *roles, **env) as platform, aiohttp.ClientSession() as session:
        api = Api(platform, session)
        await api.call("POST", "/models", {"id": "model-tiny", "name": "tiny", "serving_name": "m"})
        template = {"name": "tiny", "version": "v1", "spec": spec(latency_ms=5)}
        await api.call("POST", "/models/model-tiny/deployment-templates", template)
        async with openai.AsyncOpenAI(base_url=f"{platform.url}/v1", api_key="any") as client:
            jobs: list[dict[str, Any]] = []
            for number in range(COUNT):
                data = jsonl(*(line(f"{number}-{n}") for n in range(20)))
                file = await client.files.create(file=("in.jsonl", data), purpose="batch")
                jobs.append(await api.job(input_dataset=file.id))
            ended = [await api.ended(job["id"]) for job in jobs]
            for number, job in enumerate(ended):
                assert (job["status"], job["error_message"]) == ("completed", None)
                content = await client.files.content(job["output_dataset"])
                ids = sorted(json.loads(one)["custom_id"] for one in content.content.splitlines())
                assert ids == sorted(f"{number}-{n}" for n in range(20))
        log = platform.log("runner")
    assert len({job["provision_id"] for job in ended}) == 1
    assert len({job["batch_id"] for job in ended}) == COUNT
    assert log.count('"engine started"') == 1, log[-3000:]
