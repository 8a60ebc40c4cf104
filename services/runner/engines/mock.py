"""An engine without a model: the OpenAI-compatible surface of a real one, with answers that can be checked (answers.py).

For demos, benchmarks and tests. It runs as a process (`python -m services.runner.engines.mock --port 8000`) or inside
one: `async with mock_engine(MockOptions(latency_ms=20)) as engine: ... engine.url`.
"""

from __future__ import annotations

import argparse
import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
import structlog
import uvloop
from aiohttp import web

from services.kit.engines.mock import Behaviour
from services.kit.errors import InvalidArgument
from services.kit.lifecycle import until_signalled
from services.runner.engines.answers import ANSWERS, CREATED, Body, digest, request_digest
from services.runner.engines.faults import Faults, show
from services.runner.engines.options import MockOptions

log = structlog.get_logger(__name__)

GRACE_S = 10.0
MAX_BODY_BYTES = 64 * 1024 * 1024
METRICS = """\
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{{model_name="{model}"}} {running}
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{{model_name="{model}"}} 0
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc{{model_name="{model}"}} {used}
# TYPE vllm:num_preemptions_total counter
vllm:num_preemptions_total{{model_name="{model}"}} 0
# TYPE vllm:prompt_tokens_total counter
vllm:prompt_tokens_total{{model_name="{model}"}} {prompt_tokens}
# TYPE vllm:generation_tokens_total counter
vllm:generation_tokens_total{{model_name="{model}"}} {generation_tokens}
# TYPE vllm:request_success_total counter
vllm:request_success_total{{model_name="{model}",finished_reason="stop"}} {succeeded}
"""


@dataclass(frozen=True)
class Recorded:
    """A request as it came, kept only with `record`."""

    path: str
    headers: dict[str, str] = field(repr=False)
    body: bytes = field(repr=False)
    digest: str
    """`answers.request_digest`; empty if the body is no JSON object."""


@dataclass
class Requests:
    """What came so far: requests to the paths of answers.py only."""

    count: int = 0
    in_flight: int = 0
    max_in_flight: int = 0
    statuses: Counter[int] = field(default_factory=Counter)
    """Answers by status, those of faults included."""
    prompt_tokens: int = 0
    generation_tokens: int = 0
    recorded: list[Recorded] = field(default_factory=list)


class MockEngine:
    def __init__(self, options: MockOptions, faults: Faults) -> None:
        self.options = options
        self.faults = faults
        self.requests = Requests()
        self.url = ""
        self._attempts: Counter[str] = Counter()

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        expected = ANSWERS.get(request.path)
        if expected is None:
            return self._page(request)
        if request.method != "POST":
            return _error(405, "Method not allowed")
        seen = self.requests
        seen.count += 1
        seen.in_flight += 1
        seen.max_in_flight = max(seen.max_in_flight, seen.in_flight)
        try:
            response = await self._infer(request, expected)
            seen.statuses[response.status] += 1
            return response
        finally:
            seen.in_flight -= 1

    async def _infer(self, request: web.BaseRequest, expected: Callable[[Body], Body]) -> web.StreamResponse:
        raw = await request.read()
        if self.options.record:
            self._record(request, raw)
        if self.faults.faults and (fault := self.faults.take(raw)):
            return await show(fault, request)
        limit = self.options.capacity
        if limit is not None and self.requests.in_flight > limit:
            return _error(429, "The engine is full", headers={"Retry-After": str(self.options.retry_after_s)})
        if self.options.latency_ms:
            await asyncio.sleep(self.options.latency_ms / 1000)
        return self._result(request.path, raw, expected)

    def _result(self, path: str, raw: bytes, expected: Callable[[Body], Body]) -> web.Response:
        try:
            body = orjson.loads(raw)
        except orjson.JSONDecodeError:
            return _error(400, "The body is not valid JSON")
        if not isinstance(body, dict):
            return _error(400, "The body is not a JSON object")
        if body.get("stream"):
            return _error(400, "Invalid value for 'stream': this engine does not stream.", param="stream")
        if self.options.models and "model" in body and body["model"] not in self.options.models:
            return _error(404, "The model does not exist", param="model")
        if self.options.error_rate and self._fails(path, body):
            return _error(500, "The engine made an error on purpose")
        try:
            result = expected(body)
        except InvalidArgument as error:
            return _error(400, error.message, param=error.context.get("param"))
        self._count_tokens(result.get("usage", {}))
        return web.Response(body=orjson.dumps(result), content_type="application/json")

    def _fails(self, path: str, body: Body) -> bool:
        key = request_digest(path, body)
        self._attempts[key] += 1
        return fails(self.options, key, self._attempts[key])

    def _count_tokens(self, usage: Body) -> None:
        self.requests.prompt_tokens += usage.get("prompt_tokens") or usage.get("input_tokens") or 0
        self.requests.generation_tokens += usage.get("completion_tokens") or usage.get("output_tokens") or 0

    def _record(self, request: web.BaseRequest, raw: bytes) -> None:
        try:
            body = orjson.loads(raw)
        except orjson.JSONDecodeError:
            body = None
        key = request_digest(request.path, body) if isinstance(body, dict) else ""
        self.requests.recorded.append(Recorded(request.path, dict(request.headers), raw, key))

    def _page(self, request: web.BaseRequest) -> web.Response:
        match request.path:
            case "/health" | "/ping":
                return web.Response()
            case "/v1/models":
                return web.Response(body=orjson.dumps(self._models()), content_type="application/json")
            case "/metrics":
                return web.Response(text=self._metrics())
            case _:
                return _error(404, "Not found")

    def _models(self) -> Body:
        names = self.options.models or ("mock",)
        data = [{"id": name, "object": "model", "created": CREATED, "owned_by": "mock"} for name in names]
        return {"object": "list", "data": data}

    def _metrics(self) -> str:
        seen, capacity = self.requests, self.options.capacity
        model = self.options.models[0] if self.options.models else "mock"
        return METRICS.format(
            model=model.replace("\\", "\\\\").replace('"', '\\"'),
            running=seen.in_flight,
            used=min(1.0, seen.in_flight / capacity) if capacity else 0.0,
            prompt_tokens=seen.prompt_tokens,
            generation_tokens=seen.generation_tokens,
            succeeded=seen.statuses[200],
        )


def fails(behaviour: Behaviour, key: str, attempt: int) -> bool:
    """Whether the `attempt`-th request (from 1) with this digest gets a 500."""
    draw = int(digest(str(behaviour.seed), key, str(attempt)), 16) / 2**64
    return draw < behaviour.error_rate


def _error(
    status: int, message: str, *, param: str | None = None, headers: dict[str, str] | None = None
) -> web.Response:
    kind = "server_error" if status >= 500 else "rate_limit_error" if status == 429 else "invalid_request_error"
    body = {"error": {"message": message, "type": kind, "param": param, "code": None}}
    return web.Response(status=status, body=orjson.dumps(body), content_type="application/json", headers=headers)


@asynccontextmanager
async def mock_engine(
    options: MockOptions | None = None, *, faults: Faults | None = None, grace_s: float = 0.0
) -> AsyncIterator[MockEngine]:
    """The engine on its own port, for the length of the block; then what is in flight has `grace_s` to end."""
    engine = MockEngine(options or MockOptions(), faults or Faults())
    loop = asyncio.get_running_loop()

    def request(message: Any, payload: Any, protocol: Any, writer: Any, task: Any) -> web.BaseRequest:
        return web.BaseRequest(message, payload, protocol, writer, task, loop, client_max_size=MAX_BODY_BYTES)

    server = web.Server(engine.answer, request_factory=request, handler_cancellation=True, access_log=None)
    listener = await loop.create_server(server, engine.options.host, engine.options.port, backlog=1024)
    try:
        host, port = listener.sockets[0].getsockname()[:2]
        engine.url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        yield engine
    finally:
        listener.close()
        server.pre_shutdown()
        await server.shutdown(grace_s)


async def serve(options: MockOptions, *, started: Callable[[str], None] | None = None) -> None:
    """Serve until SIGINT or SIGTERM. `started` is told the URL."""
    async with mock_engine(options, grace_s=GRACE_S) as engine:
        if options.port_file:
            _write(Path(options.port_file), engine.url.rpartition(":")[2])
        if started is not None:
            started(engine.url)
        await until_signalled()


def main(options: MockOptions, *, started: Callable[[str], None] | None = None) -> None:
    uvloop.run(serve(options, started=started))


def _write(path: Path, text: str) -> None:
    """At once: who reads it finds all or nothing."""
    draft = path.with_name(path.name + ".draft")
    draft.write_text(text)
    draft.replace(path)


def parse_arguments(arguments: Sequence[str] | None = None) -> MockOptions:
    parser = argparse.ArgumentParser(prog="mock", allow_abbrev=False)
    for name, detail in MockOptions.model_fields.items():
        if name not in ("models", "record"):
            parser.add_argument("--" + name.replace("_", "-"), default=argparse.SUPPRESS, help=detail.description)
    parser.add_argument("--model", dest="models", action="append", default=argparse.SUPPRESS, help="may be repeated")
    return MockOptions.model_validate(vars(parser.parse_args(arguments)))


if __name__ == "__main__":
    main(parse_arguments())
