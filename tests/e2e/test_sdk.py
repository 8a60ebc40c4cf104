"""The platform in one real process, through the official SDK: what a user does, from upload to results."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp.web
import openai
import orjson
import pytest
import pytest_asyncio

from tests.e2e.processes import Suite, Witness, eventually, suite, witness

pytestmark = pytest.mark.asyncio(loop_scope="module")
TERMINAL = ("completed", "failed", "expired", "cancelled")
FINE = "/v1/chat/completions"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sdk")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine() -> AsyncIterator[Witness]:
    async with witness(latency_s=0.005) as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def platform(folder: Path, engine: Witness) -> AsyncIterator[Suite]:
    async with suite(folder, "all", AIBRIX_DEFAULT_ENDPOINT=f"{engine.url}/v1") as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(platform: Suite) -> AsyncIterator[openai.AsyncOpenAI]:
    url = f"{platform.url}/v1"
    async with openai.AsyncOpenAI(base_url=url, api_key="any", _strict_response_validation=True) as made:
        yield made


def line(name: str, **body: Any) -> dict[str, Any]:
    content = {"model": "m", "messages": [{"role": "user", "content": name}], **body}
    return {"custom_id": name, "method": "POST", "url": FINE, "body": content}


def jsonl(*lines: dict[str, Any]) -> bytes:
    return b"".join(orjson.dumps(one) + b"\n" for one in lines)


async def run(client: openai.AsyncOpenAI, data: bytes, **create: Any) -> openai.types.Batch:
    uploaded = await client.files.create(file=("in.jsonl", data), purpose="batch")
    arguments: dict[str, Any] = {"endpoint": FINE, "completion_window": "24h"} | create
    batch = await client.batches.create(input_file_id=uploaded.id, **arguments)
    assert batch.status == "validating"
    return await ended(client, batch.id)


async def ended(client: openai.AsyncOpenAI, batch_id: str) -> openai.types.Batch:
    async def terminal() -> bool:
        return (await client.batches.retrieve(batch_id)).status in TERMINAL

    await eventually(terminal, "the batch ends")
    return await client.batches.retrieve(batch_id)


async def lines_of(client: openai.AsyncOpenAI, file_id: str | None) -> list[dict[str, Any]]:
    assert file_id is not None
    content = await client.files.content(file_id)
    return [orjson.loads(one) for one in content.content.splitlines()]


async def test_every_line_comes_out_once(client: openai.AsyncOpenAI) -> None:
    batch = await run(client, jsonl(*(line(f"a-{n}") for n in range(500))), metadata={"team": "search"})
    assert batch.status == "completed"
    assert batch.request_counts is not None
    assert batch.request_counts.model_dump() == {"total": 500, "completed": 500, "failed": 0}
    assert batch.metadata == {"team": "search"}
    assert batch.model == "m"
    assert batch.usage is not None
    assert (batch.usage.input_tokens, batch.usage.output_tokens, batch.usage.total_tokens) == (1000, 1500, 2500)
    assert batch.error_file_id is None
    assert batch.expires_at == batch.created_at + 86_400
    found = await lines_of(client, batch.output_file_id)
    assert sorted(one["custom_id"] for one in found) == sorted(f"a-{n}" for n in range(500))
    for one in found:
        assert one["error"] is None
        assert one["response"]["status_code"] == 200
        assert one["response"]["body"]["choices"][0]["message"]["content"] == one["custom_id"].upper()
    output = await client.files.retrieve(batch.output_file_id or "")
    assert output.purpose == "batch_output"
    assert output.filename == f"{batch.id}_output.jsonl"


async def test_the_seeds_example_works_unchanged(client: openai.AsyncOpenAI) -> None:
    block = {
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
                "supported_endpoints": ["/v1/chat/completions"],
                "deployment_mode": "dedicated",
            },
        },
    }
    name = "meta-llama/Llama-3.1-8B-Instruct"
    batch = await run(client, jsonl(line("x", model=name)), extra_body={"aibrix": block})
    assert batch.status == "completed"
    assert batch.to_dict()["aibrix"] == block


@pytest.mark.parametrize(
    "data",
    [
        b"\xef\xbb\xbf" + jsonl(line("bom")),
        jsonl(line("crlf"), line("crlf2")).replace(b"\n", b"\r\n"),
        b"\n\n" + jsonl(line("blank")) + b"\n  \n" + jsonl(line("blank2")) + b"\n",
        jsonl(line("no newline")).rstrip(b"\n"),
        jsonl(line("naïve ☃ 漢字")),
        jsonl(line("keys", temperature=0.5, chat_template_kwargs={"x": [1, {"y": None}]})),
    ],
    ids=["bom", "crlf", "blank", "no-newline", "unicode", "extras"],
)
async def test_unusual_but_right_files(client: openai.AsyncOpenAI, data: bytes) -> None:
    batch = await run(client, data)
    assert batch.status == "completed", batch.errors
    found = await lines_of(client, batch.output_file_id)
    text = data.decode("utf-8-sig")
    wanted = [orjson.loads(one)["custom_id"] for one in text.splitlines() if one.strip()]
    assert sorted(one["custom_id"] for one in found) == sorted(wanted)


async def test_a_wrong_file_fails_with_every_bad_line(client: openai.AsyncOpenAI, engine: Witness) -> None:
    sent = len(engine.seen)
    data = jsonl(line("a"), line("a")) + b"{no json\n" + jsonl({"custom_id": "b"}) + jsonl(line("c", stream=True))
    batch = await run(client, data)
    assert batch.status == "failed"
    assert batch.errors is not None
    assert batch.errors.data is not None
    found = {(error.code, error.line) for error in batch.errors.data}
    assert {("duplicate_custom_id", 2), ("invalid_json_line", 3), ("streaming_unsupported", 5)} <= found
    assert {line for code, line in found if code == "missing_required_parameter"} == {4}
    assert batch.request_counts is not None
    assert batch.request_counts.model_dump() == {"total": 0, "completed": 0, "failed": 0}
    assert batch.output_file_id is None
    assert batch.error_file_id is None
    assert len(engine.seen) == sent


async def test_an_unknown_file_fails_the_batch(client: openai.AsyncOpenAI) -> None:
    made = await client.batches.create(input_file_id="file-nope", endpoint=FINE, completion_window="24h")
    batch = await ended(client, made.id)
    assert batch.status == "failed"
    assert batch.errors is not None
    assert batch.errors.data is not None
    (error,) = batch.errors.data
    assert (error.code, error.param, error.line) == ("invalid_request", "file_id", None)
    assert "file-nope" in (error.message or "")


async def test_cancel_keeps_what_is_done_and_names_what_is_not(
    client: openai.AsyncOpenAI, folder: Path, platform: Suite
) -> None:
    async with witness(latency_s=0.2) as slow:
        block = {
            "runtime": {"target": "External", "options": {"base_url": slow.url}},
            "client": {"max_concurrency": 4, "adaptive_concurrency": False},
        }
        data = jsonl(*(line(f"c-{n}") for n in range(400)))
        uploaded = await client.files.create(file=("in.jsonl", data), purpose="batch")
        made = await client.batches.create(
            input_file_id=uploaded.id, endpoint=FINE, completion_window="24h", extra_body={"aibrix": block}
        )
        await slow.reached(9)
        with pytest.raises(openai.ConflictError):
            await client.files.delete(uploaded.id)
        assert (await client.batches.cancel(made.id)).status == "cancelling"
        batch = await ended(client, made.id)
    assert batch.status == "cancelled"
    assert batch.cancelling_at
    assert batch.cancelled_at
    done = await lines_of(client, batch.output_file_id)
    rest = await lines_of(client, batch.error_file_id)
    assert sorted(one["custom_id"] for one in done + rest) == sorted(f"c-{n}" for n in range(400))
    assert {one["error"]["code"] for one in rest} == {"batch_cancelled"}
    assert batch.request_counts is not None
    assert batch.request_counts.completed == len(done)
    assert batch.request_counts.failed == 0
    assert set(slow.times().values()) == {1}
    assert (await client.batches.cancel(made.id)).status == "cancelled"


async def test_cancel_of_a_completed_batch_is_a_conflict_at_once(client: openai.AsyncOpenAI) -> None:
    batch = await run(client, jsonl(line("x")))
    with pytest.raises(openai.ConflictError) as raised:
        await client.batches.cancel(batch.id)
    assert raised.value.response.headers["x-should-retry"] == "false"
    assert "completed" in raised.value.message


async def test_failures_of_the_engine_go_to_the_error_file(client: openai.AsyncOpenAI) -> None:
    async with refusing() as url:
        block = {"runtime": {"target": "External", "options": {"base_url": url}}}
        batch = await run(client, jsonl(line("x"), line("y")), extra_body={"aibrix": block})
    assert batch.status == "completed"
    assert batch.request_counts is not None
    assert batch.request_counts.model_dump() == {"total": 2, "completed": 0, "failed": 2}
    assert batch.output_file_id is None
    for one in await lines_of(client, batch.error_file_id):
        assert one["error"] is None
        assert one["response"]["status_code"] == 400
        assert one["response"]["body"]["error"]["code"] == "context_length_exceeded"


async def test_models_of_the_default_endpoint_and_paging(client: openai.AsyncOpenAI, platform: Suite) -> None:
    assert [model.id async for model in client.models.list()] == []  # the witness lists none
    ids = [batch.id async for batch in client.batches.list(limit=2)]
    assert len(ids) == len(set(ids)) >= 5
    names = [file.id async for file in client.files.list(purpose="batch", limit=3)]
    assert len(names) == len(set(names)) >= 5


async def test_a_poll_while_it_runs_shows_progress(client: openai.AsyncOpenAI) -> None:
    async with witness(latency_s=0.05) as slow:
        block = {
            "runtime": {"target": "External", "options": {"http_base_url": f"{slow.url}/v1/"}},
            "client": {"max_concurrency": 8, "adaptive_concurrency": False},
        }
        data = jsonl(*(line(f"p-{n}") for n in range(400)))
        uploaded = await client.files.create(file=("in.jsonl", data), purpose="batch")
        made = await client.batches.create(
            input_file_id=uploaded.id, endpoint=FINE, completion_window="24h", extra_body={"aibrix": block}
        )
        seen: list[int] = []
        while (batch := await client.batches.retrieve(made.id)).status not in TERMINAL:
            assert batch.request_counts is not None
            assert batch.output_file_id is None
            seen.append(batch.request_counts.completed)
            await asyncio.sleep(0.05)
    assert seen == sorted(seen)
    assert any(0 < count < 400 for count in seen)


class refusing:  # noqa: N801 - reads as a context
    """An engine that answers 400 to everything."""

    async def __aenter__(self) -> str:
        async def refuse(request: aiohttp.web.Request) -> aiohttp.web.Response:
            error = {"message": "too long", "type": "invalid_request_error", "param": None}
            return aiohttp.web.json_response({"error": error | {"code": "context_length_exceeded"}}, status=400)

        app = aiohttp.web.Application()
        app.router.add_post(FINE, refuse)
        self.runner = aiohttp.web.AppRunner(app)
        await self.runner.setup()
        site = aiohttp.web.TCPSite(self.runner, "127.0.0.1", 0)
        await site.start()
        host, port = self.runner.addresses[0][:2]
        return f"http://{host}:{port}"

    async def __aexit__(self, *exc: object) -> None:
        await self.runner.cleanup()
