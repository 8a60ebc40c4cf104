"""Runtimes and specs for machines of tests."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

from services.kit.runtime_settings import External, Ssh
from services.kit.settings import Settings
from services.kit.spec.block import parse_block
from services.runner.runtimes.base import Gone, Handle, Pending, Probe, Ready, Runtime, Spec
from services.runner.runtimes.lambda_cloud import LambdaCloud
from services.runner.runtimes.runpod import RunPod
from tests.conftest import free_port
from tests.ssh.machine import Machine

RUNTIMES: dict[str, type[RunPod] | type[LambdaCloud]] = {"RunPod": RunPod, "LambdaCloud": LambdaCloud}
MODEL = "acme/tiny"


def settings(m: Machine | None, folder: Path, **ssh: Any) -> Settings:
    quick = {"engine_port": free_port(), "keepalive_s": 0.5, "lost_after_s": 1.0, "connect_timeout_s": 5.0}
    return Settings(
        data_dir=folder,
        batch_ssh_key_file=str(m.key_file) if m else "",
        external=External(allowed_hosts="127.0.0.1"),
        ssh=Ssh(**{**quick, "stop_grace_s": 3.0, **ssh}),
    )


def options(m: Machine, **more: Any) -> dict[str, Any]:
    plain = {"host": m.host, "ssh_port": m.port, "ssh_user": m.user, "host_key": m.host_key}
    return {name: value for name, value in (plain | more).items() if value is not None}


def spec_for(target: str, given: dict[str, Any], key: str = "batch_1", **more: Any) -> Spec:
    block = {"model": MODEL, "runtime": {"target": target, "options": given}, **more}
    parsed = parse_block(json.dumps(block))
    template = parsed.model_template.spec if parsed.model_template else None
    return Spec(key=key, block=parsed, template=template, template_source=template and "inline", model=parsed.model)


def vllm_template(**engine: Any) -> dict[str, Any]:
    return {
        "name": "t",
        "spec": {
            "engine": {"type": "vllm", **engine},
            "model_source": {"type": "huggingface", "uri": "acme/weights"},
            "accelerator": {"type": "H100", "count": 1},
            "supported_endpoints": ["/v1/chat/completions"],
        },
    }


class Driver:
    """Asks as the loop of an allocation does: a handle that changed is used from then on."""

    def __init__(self, runtime: Runtime, spec: Spec, handle: Handle) -> None:
        self.runtime = runtime
        self.spec = spec
        self.handle = handle
        self.seen: list[str] = []

    @classmethod
    async def launch(cls, runtime: Runtime, spec: Spec) -> Driver:
        return cls(runtime, spec, await runtime.launch(spec))

    async def probe(self) -> Probe:
        probe = await self.runtime.probe(self.spec, self.handle)
        if not isinstance(probe, Gone) and probe.handle is not None:
            self.handle = json.loads(json.dumps(probe.handle))
        if isinstance(probe, Pending) and (not self.seen or self.seen[-1] != probe.phase):
            self.seen.append(probe.phase)
        return probe

    async def ready(self, seconds: float = 20) -> Ready:
        probe = await self.until(Ready, seconds)
        assert isinstance(probe, Ready)
        return probe

    async def gone(self, seconds: float = 20) -> Gone:
        probe = await self.until(Gone, seconds)
        assert isinstance(probe, Gone)
        return probe

    async def until(self, kind: type[Probe], seconds: float) -> Probe:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            probe = await self.probe()
            if isinstance(probe, kind):
                return probe
            assert not isinstance(probe, Gone), probe.why
            await asyncio.sleep(0.05)
        raise AssertionError(f"not {kind.__name__} in {seconds} s: {self.seen}")


@asynccontextmanager
async def counting() -> AsyncIterator[tuple[int, list[Any]]]:
    """A port, and who knocked there."""
    visitors: list[Any] = []

    def knocked(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        visitors.append(writer.get_extra_info("peername"))
        writer.close()

    async with await asyncio.start_server(knocked, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1], visitors


async def ask(ready: Ready, text: str = "hello", **headers: str) -> int:
    """The status of one request to the first endpoint."""
    endpoint = ready.endpoints[0]
    body = {"model": MODEL, "messages": [{"role": "user", "content": text}]}
    async with aiohttp.ClientSession() as session:
        url = endpoint.base_url + "/v1/chat/completions"
        async with session.post(url, json=body, headers={**endpoint.headers, **headers}) as response:
            await response.read()
            return response.status
