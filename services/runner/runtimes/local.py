"""Engines as child processes of the runner, on loopback: one of the operator's commands, or the template's engine.

An engine belongs to the runner process that started it and ends with it (guardian.py). So a batch that another runner takes
over finds its engine gone, cleans up by the handle, and starts its own.
"""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import socket
from pathlib import Path
from typing import ClassVar, Literal

import aiohttp
import structlog

from services.kit.clock import monotonic
from services.kit.errors import InvalidArgument
from services.kit.settings import MIB, Settings, child_environment
from services.kit.spec.local import parse_local
from services.runner.engines.files import Files
from services.runner.engines.installed import Command, Place, command
from services.runner.runtimes.base import Endpoint, Gone, Handle, Pending, Probe, Ready, RuntimeFailed, Spec
from services.runner.runtimes.guarded import Guarded, end_leftover, exists, listens, owner_lives, read_records, tail
from services.runner.runtimes.guardian import Plan, previous, start_time
from services.runner.runtimes.kept import Kept

Handles = list[Handle]

log = structlog.get_logger(__name__)

HOST = "127.0.0.1"
GRACE_S = 10.0
READY_TIMEOUT_S = 600.0
HEALTH_TIMEOUT_S = 5.0
LOG_BYTES = 8 * MIB
LOGS_KEPT = 50
KEY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}", re.ASCII)
# It stands in an argument list: nothing that a program takes for a flag or for a way out of a folder.
MODEL = re.compile(r"[A-Za-z0-9_][\w.:@+-]*(?:/[\w:@+-][\w.:@+-]*)*", re.ASCII)


class Local:
    target: ClassVar[str] = "Local"
    owned_by_runner: ClassVar[Literal[True]] = True

    def __init__(self, settings: Settings, *, grace_s: float = GRACE_S) -> None:
        self._commands = settings.local.commands
        self._models_dir = settings.local.models_dir
        self._folder = settings.runner_dir() / "engines"
        self._grace_s = grace_s
        self._engines: dict[str, Guarded] = {}
        self._environment = child_environment(PYTHONUNBUFFERED="1")
        self._lock = asyncio.Lock()
        self._cleaned = False
        self._kept = Kept(self.release)

    async def leave(self, spec: Spec, handle: Handle) -> bool:
        engine = self._mine(handle)
        if spec.kind is None or engine is None or not engine.ready or not engine.running():
            return False
        self._kept.leave(spec.kind, handle, spec.keep_s)
        log.info("engine kept for the next batch", key=engine.plan.key, seconds=spec.keep_s)
        return True

    async def launch(self, spec: Spec) -> Handle:
        async with self._lock:
            if (handle := self._left_for(spec)) is not None:
                return handle
            await self._kept.clear()  # it may take the memory that this one needs
            engine = self._engines.get(spec.key)
            if engine is not None and engine.running():
                return dict(engine.handle)
            if engine is not None:
                await engine.sweep()
            await self._clean()
            # The thread keeps the engine itself: if this call is cancelled meanwhile, the engine is not lost.
            engine = await asyncio.to_thread(self._start, spec)
        log.info("engine started", key=spec.key, pid=engine.handle["engine_pid"], log_file=engine.plan.log)
        return dict(engine.handle)

    async def probe(self, spec: Spec, handle: Handle) -> Probe:
        engine = self._mine(handle)
        if engine is None:
            return Gone("the engine belonged to a runner process that has ended, or was released")
        if not engine.running():
            await engine.sweep()
            return await self._gone(engine, engine.why_ended())
        template = spec.template
        path = template.engine.health_endpoint if template else "/health"
        waiting = await self._not_ready(engine, path)
        if waiting is None:
            engine.ready = True
            return Ready((Endpoint(base_url=f"http://{HOST}:{engine.port()}", health_path=path),))
        limit = template.engine.ready_timeout_seconds if template else READY_TIMEOUT_S
        if not engine.ready and monotonic() - engine.started > limit:
            return await self._gone(engine, f"it was not ready within {limit:g} s: {waiting}")
        return Pending(waiting)

    async def release(self, handle: Handle) -> None:
        engine = self._mine(handle)
        if engine is not None:
            await engine.stop()
            self._engines.pop(engine.plan.key, None)
            log.info("engine ended", key=engine.plan.key, why=engine.why_ended())
            return
        await end_leftover(handle, self._grace_s)
        for path, record in list(read_records(self._folder)):
            if record["mark"] == handle.get("mark"):
                path.unlink(missing_ok=True)

    async def list(self) -> list[Handle]:
        """Ours, and those whose runner is dead. Those of another living runner are its own business."""
        mine = [dict(engine.handle) for engine in self._engines.values() if not engine.swept]
        return mine + await asyncio.to_thread(self._leftovers)

    async def close(self) -> None:
        self._kept.close()
        async with asyncio.TaskGroup() as group:
            for engine in list(self._engines.values()):
                group.create_task(self.release(engine.handle))

    def _left_for(self, spec: Spec) -> Handle | None:
        """The engine of the batch before, if it is of the same kind and still runs."""
        handle = self._kept.take(spec.kind) if spec.kind is not None else None
        engine = self._mine(handle) if handle is not None else None
        if engine is None or not engine.running():
            return None
        log.info("engine of the batch before is used again", key=spec.key, pid=engine.handle["engine_pid"])
        return handle

    def _mine(self, handle: Handle) -> Guarded | None:
        engine = self._engines.get(str(handle.get("key")))
        return engine if engine is not None and engine.plan.mark == handle.get("mark") else None

    async def _clean(self) -> None:
        """Once, before the first start: end what earlier runners left on this machine."""
        if self._cleaned:
            return
        for record in await asyncio.to_thread(self._leftovers):
            log.warning("engine of a dead runner found", key=record.get("key"))
            await self.release(record)
        self._cleaned = True

    def _leftovers(self) -> Handles:
        found = []
        for path, record in list(read_records(self._folder)):
            if owner_lives(record):
                continue
            if exists(record):
                found.append(record)
            else:
                path.unlink(missing_ok=True)
        return found

    def _plan(self, spec: Spec) -> Plan:
        if not KEY.fullmatch(spec.key):
            raise RuntimeFailed("the batch's id cannot be a file's name", retryable=False)
        mark = secrets.token_hex(16)
        name = f"{spec.key}.{mark[:8]}"
        self._make_folder()
        port = self._free_port()
        port_file = self._folder / f"{name}.port"
        chosen = self._command(spec, Place(host=HOST, port=port, port_file=port_file))
        owner = os.getpid()

        return Plan(
            key=spec.key,
            mark=mark,
            arguments=chosen.arguments,
            folder=str(chosen.folder or self._folder),
            record=str(self._folder / f"{name}.json"),
            log=str(self._folder / f"{name}.log"),
            log_bytes=LOG_BYTES,
            grace_s=self._grace_s,
            owner_pid=owner,
            owner_start_time=start_time(owner) or "",
            port=None if chosen.reports_port else port,
            port_file=str(port_file),
        )

    def _command(self, spec: Spec, place: Place) -> Command:
        try:
            options = parse_local(spec.block.options(), self._commands)
            if options.command is not None:
                return _filled(options.command, self._commands[options.command], spec, place)
            if spec.template is not None:
                # Whatever is not said to be the operator's is not trusted to name files.
                bound = spec.template_source != "registry"
                files = Files(
                    models_dir=self._models_dir, folder=self._folder, bound=bound, overridden=spec.template_overridden
                )
                return command(files.located(spec.template), place, served_model=spec.model)
        except InvalidArgument as error:
            raise RuntimeFailed(error.message, retryable=False) from error
        raise RuntimeFailed("nothing to start: give runtime.options.command or model_template", retryable=False)

    def _start(self, spec: Spec) -> Guarded:
        engine = Guarded.start(self._plan(spec), self._environment)
        self._engines[spec.key] = engine
        return engine

    def _make_folder(self) -> None:
        """Only for us: what an engine logs is not for everyone. The oldest logs make place."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            logs = sorted(self._folder.glob("*.log"), key=lambda path: path.stat().st_mtime)
        except OSError as error:
            raise RuntimeFailed(f"the folder for engines cannot be used: {error.strerror}", retryable=True) from error
        used = {engine.plan.log for engine in list(self._engines.values())}
        for path in logs[:-LOGS_KEPT]:
            if str(path) not in used:
                path.unlink(missing_ok=True)
                previous(path).unlink(missing_ok=True)

    def _free_port(self) -> int:
        """Free now. Should another process be faster, the engine fails to bind and the next launch takes another."""
        taken = {engine.plan.port for engine in list(self._engines.values())}
        while True:
            with socket.socket() as probe:
                probe.bind((HOST, 0))
                port: int = probe.getsockname()[1]
            if port not in taken:
                return port

    async def _not_ready(self, engine: Guarded, path: str) -> str | None:
        """Why requests cannot be sent yet; None: they can."""
        port = engine.port()
        if port is None:
            return "the engine has not opened its port"
        # Whoever else listens on a port that was chosen for the engine must not get the batch's prompts.
        unproven = engine.plan.port is not None and not engine.ready
        if unproven and not await asyncio.to_thread(listens, engine.handle["engine_pid"], port):
            return "the engine does not listen on its port"
        timeout = aiohttp.ClientTimeout(total=HEALTH_TIMEOUT_S)
        try:
            async with (
                aiohttp.ClientSession(timeout=timeout) as session,
                session.get(f"http://{HOST}:{port}{path}", allow_redirects=False) as response,
            ):
                return None if response.ok else f"the engine's health check answers {response.status}"
        except (aiohttp.ClientError, TimeoutError):
            return "the engine's health check does not answer"

    async def _gone(self, engine: Guarded, why: str) -> Gone:
        lines = await asyncio.to_thread(tail, Path(engine.plan.log), self._environment)
        return Gone(f"the engine ended: {why}" + (f"; its last output:\n{lines}" if lines else ""))


def _filled(name: str, arguments: list[str], spec: Spec, place: Place) -> Command:
    if not any("{port}" in argument for argument in arguments):
        raise RuntimeFailed(f"the operator's command {name} has no {{port}}", retryable=False)
    model = spec.model or (spec.block.model_template.name if spec.block.model_template else "")
    if any("{model}" in argument for argument in arguments) and not MODEL.fullmatch(model):
        raise RuntimeFailed("aibrix.model is missing, or is no name that may stand in a command", retryable=False)
    values = {"{port}": str(place.port), "{model}": model}
    pattern = re.compile(r"\{port\}|\{model\}")
    return Command(arguments=tuple(pattern.sub(lambda match: values[match[0]], argument) for argument in arguments))
