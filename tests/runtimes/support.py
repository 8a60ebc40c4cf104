"""Specs, and waiting for real processes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Literal

import psutil

from services.kit.runtime_settings import Local
from services.kit.settings import Settings
from services.kit.spec.block import parse_block
from services.runner.runtimes.base import Gone, Handle, Ready, Runtime, Spec

ENGINE = Path(__file__).with_name("engine.py")
PROJECT = Path(__file__).resolve().parents[2]
MARK = "RUNTIME_TEST_MARK"


def template(engine_type: str = "mock", *, spec: dict[str, Any] | None = None, **engine: Any) -> dict[str, Any]:
    plain = {
        "engine": {"type": engine_type, **engine},
        "model_source": {"type": "local", "uri": "none"},
        "accelerator": {"type": "cpu", "count": 1},
        "supported_endpoints": ["/v1/chat/completions"],
    }
    return {"name": "t", "spec": {**plain, **(spec or {})}}


def local_spec(
    key: str,
    options: dict[str, Any] | None = None,
    source: Literal["inline", "registry"] = "inline",
    **block: Any,
) -> Spec:
    runtime = {"target": "Local", "options": options or {}}
    parsed = parse_block(json.dumps({"model": "acme/tiny", "runtime": runtime, **block}))
    spec = parsed.model_template.spec if parsed.model_template else None
    return Spec(key=key, block=parsed, template=spec, template_source=spec and source, model=parsed.model)


def external_spec(options: dict[str, Any], *default_endpoints: str) -> Spec:
    block = parse_block(json.dumps({"runtime": {"target": "External", "options": options}}))
    return Spec(key="batch_1", block=block, default_endpoints=default_endpoints)


def command(name: str, *flags: str) -> dict[str, list[str]]:
    return {name: [sys.executable, str(ENGINE), "{port}", *flags]}


def settings(folder: Path, models_dir: str = "", **commands: list[str]) -> Settings:
    return Settings(data_dir=folder, local=Local(commands=commands, models_dir=models_dir))


async def until_ready(runtime: Runtime, spec: Spec, handle: Handle, seconds: float = 20) -> Ready:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        probe = await runtime.probe(spec, handle)
        if isinstance(probe, Ready):
            return probe
        assert not isinstance(probe, Gone), probe.why
        await asyncio.sleep(0.02)
    raise AssertionError("never ready")


async def until(condition: Callable[[], Any] | Callable[[], Awaitable[Any]], what: str, seconds: float = 20) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = condition()
        if isinstance(found, Awaitable):
            found = await found
        if found:
            return found
        await asyncio.sleep(0.02)
    raise AssertionError(f"never: {what}")


def marked(value: str) -> list[int]:
    """Living processes that inherited the mark of a test."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(MARK) == value and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
    return found


def alive(pid: int) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False
