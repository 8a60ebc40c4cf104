"""The mock engine through the official SDK in strict mode, and its faults through plain HTTP."""

from __future__ import annotations

import asyncio
import io
import json
import re
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest

from services.runner.engines.answers import ANSWERS, request_digest
from services.runner.engines.faults import Kind
from services.runner.engines.mock import MockEngine, fails, mock_engine, parse_arguments
from services.runner.engines.options import Behaviour, MockOptions

CHAT = {"model": "m", "messages": [{"role": "user", "content": "say hello to the world"}]}
PATH = "/v1/chat/completions"


@pytest.fixture
async def engine() -> AsyncIterator[MockEngine]:
    async with mock_engine(MockOptions(record=True)) as engine:
        yield engine


@pytest.fixture
async def sdk(engine: MockEngine) -> AsyncIterator[openai.AsyncOpenAI]:
    client = openai.AsyncOpenAI(
        base_url=engine.url + "/v1", api_key="none", max_retries=0, _strict_response_validation=True
    )
    async with client:
        yield client


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10)) as session:
        yield session


async def test_chat(sdk: openai.AsyncOpenAI) -> None:
    answer = await sdk.chat.completions.create(**CHAT, n=2, max_completion_tokens=3)
    assert answer.model_dump(exclude_unset=True) == ANSWERS[PATH]({**CHAT, "n": 2, "max_completion_tokens": 3})
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (5, 6, 11)
    assert [choice.finish_reason for choice in answer.choices] == ["length", "length"]
    first, second = (choice.message.content or "" for choice in answer.choices)
    assert first != second
    assert first.endswith(" say hello")


async def test_completions(sdk: openai.AsyncOpenAI) -> None:
    body: dict[str, Any] = {"model": "m", "prompt": ["one two", "three"]}
    answer = await sdk.completions.create(**body)
    assert answer.model_dump(exclude_unset=True) == ANSWERS["/v1/completions"](body)
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == 3
    assert answer.choices[1].text.endswith(" three")


async def test_embeddings(engine: MockEngine, sdk: openai.AsyncOpenAI) -> None:
    """The SDK asks for base64 by itself, and decodes it, but its strict mode looks before it has decoded."""
    async with openai.AsyncOpenAI(base_url=engine.url + "/v1", api_key="none", max_retries=0) as lenient:
        packed = await lenient.embeddings.create(model="m", input=["one two", "three"], dimensions=8)
    plain = await sdk.embeddings.create(model="m", input=["one two", "three"], dimensions=8, encoding_format="float")
    for one, other in zip(packed.data, plain.data, strict=True):
        assert one.embedding == pytest.approx(other.embedding)
        assert sum(number * number for number in one.embedding) == pytest.approx(1)
    assert packed.data[0].embedding != packed.data[1].embedding
    assert packed.usage.total_tokens == 3
    tokens = await sdk.embeddings.create(model="m", input=[[1, 2], [3]], encoding_format="float")
    assert tokens.usage.prompt_tokens == 3


async def test_responses(sdk: openai.AsyncOpenAI) -> None:
    answer = await sdk.responses.create(model="m", input="one two three")
    assert answer.status == "completed"
    assert answer.output_text.endswith(" one two three")
    assert answer.usage is not None
    assert (answer.usage.input_tokens, answer.usage.output_tokens, answer.usage.total_tokens) == (3, 4, 7)
    parts = [{"role": "user", "content": [{"type": "input_text", "text": "one two three"}]}]
    cut = await sdk.responses.create(model="m", input=parts, max_output_tokens=1)  # type: ignore[arg-type]
    assert (cut.status, cut.output_text) == ("incomplete", answer.output_text.split()[0])


async def test_moderations(sdk: openai.AsyncOpenAI) -> None:
    answer = await sdk.moderations.create(model="m", input=["peace", "much violence"])
    assert [result.flagged for result in answer.results] == [False, True]
    assert answer.results[1].categories.violence


async def test_models(sdk: openai.AsyncOpenAI) -> None:
    assert [model.id async for model in sdk.models.list()] == ["mock"]


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/v2/rerank"])
async def test_rerank(engine: MockEngine, http: aiohttp.ClientSession, path: str) -> None:
    body = {"model": "m", "query": "red fox", "documents": ["blue sky", "a red fox", {"text": "red sun"}], "top_n": 2}
    async with http.post(engine.url + path, json=body) as response:
        answer = await response.json()
    assert [(result["index"], result["relevance_score"]) for result in answer["results"]] == [(1, 1.0), (2, 0.5)]
    assert answer["results"][0]["document"] == {"text": "a red fox"}
    assert answer["usage"] == {"total_tokens": 9}


async def test_health_metrics_and_unknown_paths(engine: MockEngine, http: aiohttp.ClientSession) -> None:
    async with http.post(engine.url + PATH, json=CHAT) as response:
        assert response.status == 200
    for path, status in (("/health", 200), ("/nothing", 404), (PATH, 405)):
        async with http.get(engine.url + path) as response:
            assert response.status == status
    async with http.get(engine.url + "/metrics") as response:
        text = await response.text()
    values = dict(re.findall(r"^vllm:(\w+)\{model_name=\"mock\"\} (\S+)$", text, re.MULTILINE))
    assert values == {
        "num_requests_running": "0",
        "num_requests_waiting": "0",
        "kv_cache_usage_perc": "0.0",
        "num_preemptions_total": "0",
        "prompt_tokens_total": "5",
        "generation_tokens_total": "6",
    }


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        (PATH, b"{", None),
        (PATH, b"[]", None),
        (PATH, b"\xff", None),
        (PATH, {"messages": CHAT["messages"]}, "model"),
        (PATH, {"model": "m"}, "messages"),
        (PATH, {"model": "m", "messages": []}, "messages"),
        (PATH, {"model": "m", "messages": ["x"]}, "messages"),
        (PATH, {**CHAT, "stream": True}, "stream"),
        (PATH, {**CHAT, "max_tokens": "1"}, "max_tokens"),
        (PATH, {**CHAT, "n": 129}, "n"),
        ("/v1/embeddings", {"model": "m", "input": []}, "input"),
        ("/v1/embeddings", {"model": "m", "input": [1, "a"]}, "input"),
        ("/v1/rerank", {"model": "m", "query": "x"}, "documents"),
        ("/v1/responses", {"model": "m"}, "input"),
    ],
)
async def test_wrong_requests_get_a_400(
    engine: MockEngine, http: aiohttp.ClientSession, path: str, body: Any, param: str | None
) -> None:
    data = body if isinstance(body, bytes) else json.dumps(body)
    async with http.post(engine.url + path, data=data) as response:
        assert response.status == 400
        assert (await response.json())["error"]["param"] == param


async def test_only_its_models_are_served(http: aiohttp.ClientSession) -> None:
    async with mock_engine(MockOptions(models=("m",))) as engine:
        for model, status in (("m", 200), ("other", 404)):
            async with http.post(engine.url + PATH, json={**CHAT, "model": model}) as response:
                assert response.status == status


async def test_requests_are_recorded(engine: MockEngine, http: aiohttp.ClientSession) -> None:
    async with http.post(engine.url + PATH, json=CHAT, headers={"X-Team": "a"}) as response:
        await response.read()
    (seen,) = engine.requests.recorded
    assert (seen.path, seen.headers["X-Team"], json.loads(seen.body)) == (PATH, "a", CHAT)
    assert seen.digest == request_digest(PATH, CHAT)
    assert engine.requests.statuses == {200: 1}


async def test_above_capacity_a_429_says_when_to_come_back(http: aiohttp.ClientSession) -> None:
    async with mock_engine(MockOptions(capacity=4, latency_ms=200, retry_after_s=7)) as engine:

        async def one() -> tuple[int, str | None]:
            async with http.post(engine.url + PATH, json=CHAT) as response:
                return response.status, response.headers.get("Retry-After")

        answers = await asyncio.gather(*(one() for _ in range(10)))
        assert sorted(answers, key=str) == [(200, None)] * 4 + [(429, "7")] * 6
        assert engine.requests.statuses == {200: 4, 429: 6}
        assert (engine.requests.in_flight, engine.requests.count) == (0, 10)
        assert 4 < engine.requests.max_in_flight <= 10


async def test_errors_are_decided_by_seed_content_and_attempt(http: aiohttp.ClientSession) -> None:
    bodies = [{**CHAT, "seed": number} for number in range(200)]

    async def statuses(seed: int, order: list[dict[str, Any]]) -> dict[int, list[int]]:
        found: dict[int, list[int]] = {}
        async with mock_engine(MockOptions(error_rate=0.3, seed=seed)) as engine:
            for body in [*order, *order]:
                async with http.post(engine.url + PATH, json=body) as response:
                    found.setdefault(body["seed"], []).append(response.status)
        return found

    first = await statuses(1, bodies)
    assert await statuses(1, bodies[::-1]) == first
    assert await statuses(2, bodies) != first
    failed = [number for number, answers in first.items() if answers[0] == 500]
    assert 30 <= len(failed) <= 90
    assert any(first[number][1] == 200 for number in failed), "a retry may succeed"
    behaviour = Behaviour(error_rate=0.3, seed=1)
    assert failed == [each["seed"] for each in bodies if fails(behaviour, request_digest(PATH, each), 1)]


async def test_body_of_more_than_a_megabyte(engine: MockEngine, http: aiohttp.ClientSession) -> None:
    body = {**CHAT, "messages": [{"role": "user", "content": "word " * 1_000_000}]}
    async with http.post(engine.url + PATH, data=io.BytesIO(json.dumps(body).encode())) as response:
        assert (await response.json())["usage"] == {
            "prompt_tokens": 1_000_000,
            "completion_tokens": 32,
            "total_tokens": 1_000_032,
        }


@pytest.mark.parametrize(
    ("kind", "more", "seen"),
    [
        ("html", {}, (200, "text/html", b"<!DOCTYPE html>")),
        ("empty", {}, (200, "application/json", b"")),
        ("redirect", {"location": "/elsewhere"}, (302, "application/octet-stream", b"")),
        ("status", {"status": 503, "retry_after": "2"}, (503, "application/json", b'{"error"')),
        ("half", {}, aiohttp.ClientPayloadError),
        ("close", {}, aiohttp.ServerDisconnectedError),
        ("hang", {}, TimeoutError),
    ],
)
async def test_faults(
    engine: MockEngine, http: aiohttp.ClientSession, kind: Kind, more: dict[str, Any], seen: Any
) -> None:
    engine.faults.add(kind, times=1, when=lambda body: b"world" in body, **more)

    async def ask(content: str = "hello world") -> tuple[int, str, bytes]:
        body = {"model": "m", "messages": [{"role": "user", "content": content}]}
        timeout = aiohttp.ClientTimeout(total=0.3)
        request = http.post(engine.url + PATH, json=body, allow_redirects=False, timeout=timeout)
        async with request as response:
            return response.status, response.content_type, (await response.read())[:15]

    assert (await ask("not concerned"))[0] == 200
    if isinstance(seen, tuple):
        status, content_type, body = await ask()
        assert (status, content_type) == seen[:2]
        assert body.startswith(seen[2])
    else:
        with pytest.raises(seen):
            await ask()
    assert (await ask())[0] == 200, "the fault met one request"


async def test_hanging_requests_end_with_their_connection(engine: MockEngine) -> None:
    engine.faults.add("hang")
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=0.2)) as session:
        with pytest.raises(TimeoutError):
            await session.post(engine.url + PATH, json=CHAT)
    async with asyncio.timeout(5):
        while engine.requests.in_flight:
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_process_reports_its_port_and_ends_what_is_in_flight(
    tmp_path: Path, http: aiohttp.ClientSession, number: signal.Signals
) -> None:
    port_file = tmp_path / "port"
    arguments = ["--port", "0", "--port-file", str(port_file), "--latency-ms", "500", "--model", "m"]
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "services.runner.engines.mock", *arguments)
    try:
        async with asyncio.timeout(20):
            while not port_file.exists():
                await asyncio.sleep(0.02)
        url = f"http://127.0.0.1:{port_file.read_text()}"

        async def ask() -> int:
            async with http.post(url + PATH, json=CHAT) as response:
                return response.status

        async def stop() -> None:
            async with asyncio.timeout(20):
                while True:
                    async with http.get(url + "/metrics") as response:
                        if 'running{model_name="m"} 1' in await response.text():
                            break
            process.send_signal(number)

        async with asyncio.TaskGroup() as group:
            asked = group.create_task(ask())
            group.create_task(stop())
        assert asked.result() == 200
        async with asyncio.timeout(10):
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def test_arguments() -> None:
    options = parse_arguments(["--capacity", "4", "--error-rate", "0.5", "--seed", "3", "--model", "a", "--model", "b"])
    assert options == MockOptions(capacity=4, error_rate=0.5, seed=3, models=("a", "b"))
