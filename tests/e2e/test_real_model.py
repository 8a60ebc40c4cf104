"""A real model on this machine: llama.cpp from its Python package, by itself and through the whole platform."""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import re
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import openai
import psutil
import pytest

from cli.demo_real import ENGINE_PACKAGE, MODEL, MODEL_PACKAGE, assembled, block, request
from services.runner.engines.llama_server import (
    SWITCHES,
    VALUES,
    Names,
    fields_of,
    file_text,
    on_off,
    parameters,
    parse_arguments,
    template_arguments,
)
from tests.cli.support import cli, environment
from tests.conftest import unavailable
from tests.e2e.processes import PATIENCE_S, eventually, free_port, suite
from tests.e2e.test_sdk import jsonl, lines_of, run

ROOT = Path(__file__).parents[2]
CANARY = "Heliotrope"
QUESTIONS = ["What is the capital of France?", "What is a bicycle?", f"What is a {CANARY}?"]


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if any(importlib.util.find_spec(name) is None for name in (ENGINE_PACKAGE, MODEL_PACKAGE)):
        unavailable("llama.cpp and its small model are not installed here: make llamacpp")
    return assembled(tmp_path_factory.mktemp("model"))


class Server:
    def __init__(self, process: asyncio.subprocess.Process, port: int) -> None:
        self.process = process
        self.url = f"http://127.0.0.1:{port}"

    async def ended(self) -> tuple[int | None, str]:
        """Exit code and log."""
        async with asyncio.timeout(PATIENCE_S):
            _, log = await self.process.communicate()
        return self.process.returncode, log.decode()

    async def is_healthy(self) -> bool:
        assert self.process.returncode is None
        async with aiohttp.ClientSession() as session:
            try:
                async with session.get(self.url + "/health") as answer:
                    return answer.status == 200
            except aiohttp.ClientError:
                return False


@asynccontextmanager
async def llama_server(*flags: str | Path) -> AsyncIterator[Server]:
    port = free_port()
    module = (sys.executable, "-m", "services.runner.engines.llama_server")
    process = await asyncio.create_subprocess_exec(
        *module, *map(str, flags), "--port", str(port), cwd=ROOT, env=environment(), stderr=asyncio.subprocess.PIPE
    )
    try:
        yield Server(process, port)
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def test_the_server_speaks_as_openai_does(model: Path) -> None:
    async with llama_server(
        "--model", model, "--alias", "acme/tiny", "--parallel", "2", "--ctx-size", "1024"
    ) as server:
        await eventually(server.is_healthy, "llama.cpp is up")
        async with openai.AsyncOpenAI(base_url=server.url + "/v1", api_key="any") as client:
            assert [each.id async for each in client.models.list()] == ["acme/tiny"]
            messages: Any = [{"role": "user", "content": "Good morning"}]
            chats = await asyncio.gather(
                *(client.chat.completions.create(model="acme/tiny", messages=messages, max_tokens=8) for _ in range(4))
            )
            for chat in chats:
                assert chat.choices[0].finish_reason in ("length", "stop")
                assert chat.usage is not None
                assert chat.usage.prompt_tokens > 0
                assert 0 < chat.usage.completion_tokens <= 8
            with pytest.raises(openai.BadRequestError, match="context size"):
                await client.completions.create(model="acme/tiny", prompt="word " * 2000)
        server.process.terminate()
        code, log = await server.ended()
    assert code == 0
    assert f"llama.cpp serves at {server.url}" in log


async def test_the_server_ends_at_once_and_logs_no_prompts(model: Path) -> None:
    async with llama_server("--model", model, "--parallel", "1", "--ctx-size", "8192") as server:
        await eventually(server.is_healthy, "llama.cpp is up")
        body = {"prompt": f"The story of {CANARY}", "n_predict": -1, "ignore_eos": True, "stream": True}
        async with aiohttp.ClientSession() as session:
            bad = b'{"prompt": "' + CANARY.encode()
            async with session.post(server.url + "/v1/completions", data=bad) as answer:
                assert answer.status == 400
            async with session.post(server.url + "/v1/completions", json=body) as answer:
                assert await answer.content.readline()  # it is writing, and would for minutes
                began = time.monotonic()
                server.process.terminate()
                code, log = await server.ended()
    assert code == 0
    assert time.monotonic() - began < 5
    assert CANARY not in log


def test_the_package_has_a_field_for_every_flag(model: Path) -> None:
    package = importlib.import_module(ENGINE_PACKAGE)
    values: dict[Any, str] = {on_off: "on", template_arguments: '{"a": 1}', file_text: str(Path(__file__))}
    for read, *names in VALUES.values():
        for word in read.words if isinstance(read, Names) else [values.get(read, "1")]:
            parameters(package, fields_of(parse_arguments(("--model", "m.gguf", names[0], word))))
    for name, *_ in SWITCHES.values():
        for flag in (name, "--no-" + name[2:]):
            parameters(package, fields_of(parse_arguments(("--model", "m.gguf", flag))))


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--model", "/nonexistent/model.gguf"), "No such file or directory"),
        (("--model", __file__), "invalid magic"),
        (("--model", "m.gguf", "--lora", "x.gguf"), "unrecognized arguments: --lora"),
        (("--model", "m.gguf", "--chat-template-file", "/nonexistent"), "--chat-template-file"),
        (("--alias", "acme/tiny"), "--model"),
    ],
)
async def test_what_the_server_cannot_start_with(model: Path, flags: tuple[str, ...], words: str) -> None:
    async with llama_server(*flags) as server:
        code, log = await server.ended()
    assert code not in (0, None)
    assert words in log
    assert "error: " in log


async def test_a_batch_through_the_platform(model: Path, tmp_path: Path) -> None:
    lines = [request(number, question) for number, question in enumerate(QUESTIONS)]
    given = block(model)
    # It has no effect: the runner's own port stands behind it.
    given["model_template"]["spec"]["engine"]["serve_args"] = ["--port", "1"]
    async with (
        suite(tmp_path, "all") as platform,
        openai.AsyncOpenAI(base_url=f"{platform.url}/v1", api_key="any") as client,
    ):
        batch = await run(client, jsonl(*lines), endpoint="/v1/completions", extra_body={"aibrix": given})
        assert batch.status == "completed", platform.log("all")[-3000:]
        answers = await lines_of(client, batch.output_file_id)
        await eventually(nobody_has_open(model), "the engine of the batch has ended")
    assert batch.request_counts is not None
    assert batch.request_counts.model_dump() == {"total": 3, "completed": 3, "failed": 0}
    assert batch.model == MODEL
    assert {answer["custom_id"] for answer in answers} == {line["custom_id"] for line in lines}
    bodies = [answer["response"]["body"] for answer in answers]
    for body in bodies:
        assert body["model"] == MODEL
        assert body["choices"][0]["text"].strip()
        assert 0 < body["usage"]["completion_tokens"] <= 32
    assert batch.usage is not None
    assert batch.usage.input_tokens == sum(body["usage"]["prompt_tokens"] for body in bodies) > 0
    assert batch.usage.output_tokens == sum(body["usage"]["completion_tokens"] for body in bodies)
    logs = [path.read_text() for path in (tmp_path / "data" / "runner" / "engines").glob("*.log")]
    assert len(logs) == 1
    assert "llama.cpp serves" in logs[0]
    assert CANARY not in logs[0] + platform.log("all")


def nobody_has_open(model: Path) -> Any:
    async def holds() -> bool:
        return not any(str(model) in (each.info["cmdline"] or []) for each in psutil.process_iter(["cmdline"]))

    return holds


async def test_a_batch_whose_model_is_not_there_fails_with_the_engines_words(model: Path, tmp_path: Path) -> None:
    given = block(model.with_name("missing.gguf"))
    async with (
        suite(tmp_path, "all", AIBRIX_RUNNER__LAUNCH_ATTEMPTS="1") as platform,
        openai.AsyncOpenAI(base_url=f"{platform.url}/v1", api_key="any") as client,
    ):
        line = request(0, QUESTIONS[0])
        batch = await run(client, jsonl(line), endpoint="/v1/completions", extra_body={"aibrix": given})
    assert batch.status == "failed"
    assert "No such file or directory" in str(batch.errors)


def test_demo_real(model: Path) -> None:
    done = cli("demo-real")
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert re.fullmatch(r"demo-real: 50/50 completed, 0 failed, [1-9]\d* output tokens, [1-9]\d* tokens/s", lines[-1])
    assert sum(bool(re.fullmatch(r"  .+\? -> .+  \(\d+ in, \d+ out\)", line)) for line in lines) == 5


@pytest.mark.parametrize("package", [ENGINE_PACKAGE, MODEL_PACKAGE])
def test_demo_real_without_the_extra(package: str) -> None:
    code = (
        f"import sys; sys.modules[{package!r}] = None; sys.argv[1:] = ['demo-real']; from cli.main import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment(), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert package in done.stderr
    assert "make llamacpp" in done.stderr
    assert 'pip install "aibrix-batch[llamacpp]"' in done.stderr
    assert done.stdout == ""
