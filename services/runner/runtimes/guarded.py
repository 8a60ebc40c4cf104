"""The runner's side of a guarded engine: start one, tell how it is, end it, and find what crashes left behind."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import select
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil

from services.kit.clock import monotonic
from services.runner.engines.installed import ROOT
from services.runner.runtimes.base import Handle, RuntimeFailed
from services.runner.runtimes.guardian import LAST_WAIT_S, MARK, Plan, previous, start_time

START_TIMEOUT_S = 30.0
TAIL_LINES = 40
TAIL_BYTES = 16 * 1024
SECRET_NAME = re.compile(r"KEY|TOKEN|SECRET|PASSW|CREDENTIAL|AUTH", re.IGNORECASE)
SECRET_TEXT = re.compile(r"(?i)\b(bearer|basic)\s+\S+|\b(?:sk|hf|pk|ghp)[-_][\w-]{8,}|(?<=://)[^\s/@]+@")


class Guarded:
    """One engine of this process."""

    def __init__(self, plan: Plan, process: subprocess.Popen[bytes], handle: Handle) -> None:
        self.plan = plan
        self.handle = handle
        self.started = monotonic()
        self.ready = False
        self.swept = False
        """It has ended, and so has all that it started."""
        self._process = process
        self._why = ""

    @classmethod
    def start(cls, plan: Plan, environment: Mapping[str, str]) -> Guarded:
        """Blocks until the engine's process runs. Error: RuntimeFailed."""
        with Path(plan.log).open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "services.runner.runtimes.guardian", json.dumps(asdict(plan))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                cwd=ROOT,
                env={**environment, MARK: plan.mark},
                start_new_session=True,  # so that Ctrl-C reaches the runner only, which decides what ends when
            )
        message = _first_message(process)
        if "started" in message:
            return cls(plan, process, message["started"])
        _let_go(process)
        why = message.get("failed")
        if why is None:
            sweep(plan.mark)
            raise RuntimeFailed("the engine's guardian did not start", retryable=True)
        raise RuntimeFailed(f"the engine cannot be started: {why}", retryable=False)

    def running(self) -> bool:
        return self._process.poll() is None

    def port(self) -> int | None:
        if self.plan.port is not None:
            return self.plan.port
        try:
            return int(Path(self.plan.port_file).read_text())
        except (OSError, ValueError):
            return None

    async def stop(self) -> None:
        """The closed pipe tells the guardian. It ends by itself even if nobody waits for it."""
        if self._process.stdin is not None and not self._process.stdin.closed:
            self._process.stdin.close()
        if not await _gone(self._process.poll, self.plan.grace_s + LAST_WAIT_S + 2):
            self._process.kill()
            await _gone(self._process.poll, LAST_WAIT_S)
        await self.sweep()

    async def sweep(self) -> None:
        """After the guardian's end: whatever it could not end itself, since it was killed."""
        if self.swept:
            return
        self.why_ended()
        _let_go(self._process)
        await asyncio.to_thread(sweep, self.plan.mark)
        self._forget()
        self.swept = True

    def _forget(self) -> None:
        for path in (self.plan.record, self.plan.port_file):
            Path(path).unlink(missing_ok=True)

    def why_ended(self) -> str:
        """For the user. Asked after the guardian has ended."""
        if not self._why:
            out = self._process.stdout
            rest = out.read() if out is not None and not out.closed and self._process.poll() is not None else b""
            code = json.loads(rest).get("exited") if rest else None
            self._why = "it was killed with its guardian" if code is None else _ending(code)
        return self._why


def read_records(folder: Path) -> Iterator[tuple[Path, Handle]]:
    """What guardians wrote and did not take back."""
    for path in folder.glob("*.json"):
        try:
            record = json.loads(path.read_text())
        except (OSError, ValueError):
            continue  # taken back just now, or cut short by a crash before anything was started
        if isinstance(record, dict) and isinstance(record.get("mark"), str):
            yield path, record


def owner_lives(record: Handle) -> bool:
    return _is(record, "owner_pid", "owner_start_time")


def exists(record: Handle) -> bool:
    """Whether its guardian, or anything of its engine, still runs."""
    return _is(record, "pid", "start_time") or next(_marked(record.get("mark")), None) is not None


async def end_leftover(record: Handle, grace_s: float) -> None:
    """End an engine of another process by the record of its guardian. Processes that only reuse its number are safe."""
    if _is(record, "pid", "start_time"):
        _signal(record["pid"], record["start_time"], signal.SIGTERM)
        await _gone(lambda: None if _is(record, "pid", "start_time") else 0, grace_s + LAST_WAIT_S + 2)
        _signal(record["pid"], record["start_time"], signal.SIGKILL)
    await asyncio.to_thread(sweep, record.get("mark"))


def sweep(mark: Any) -> None:
    """Kill everything that carries the mark, until nothing does."""
    deadline = monotonic() + LAST_WAIT_S
    while monotonic() < deadline:
        found = list(_marked(mark))
        if not found:
            return
        for process in found:
            with contextlib.suppress(psutil.Error):
                process.kill()  # psutil compares start times before it does
        psutil.wait_procs(found, timeout=0.5)


def listens(pid: int, port: int) -> bool:
    """Whether the port belongs to the process or one below it; true also where that cannot be found out."""
    try:
        engine = psutil.Process(pid)
        for process in (engine, *engine.children(recursive=True)):
            for connection in process.net_connections("tcp"):
                if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port:
                    return True
    except psutil.AccessDenied:
        return True
    except psutil.NoSuchProcess:
        return False
    return False


def tail(log: Path, environment: Mapping[str, str]) -> str:
    """The last lines of the engine's output, without the values of variables that look secret."""
    lines: deque[str] = deque(maxlen=TAIL_LINES)
    for path in (previous(log), log):
        with contextlib.suppress(OSError), path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
            lines.extend(file.read().decode(errors="replace").splitlines())
    text = "\n".join(lines)[-TAIL_BYTES:]
    for name, value in environment.items():
        if SECRET_NAME.search(name) and len(value) >= 6:
            text = text.replace(value, "***")
    return SECRET_TEXT.sub("***", text)


def _first_message(process: subprocess.Popen[bytes]) -> dict[str, Any]:
    assert process.stdout is not None
    if not select.select([process.stdout], [], [], START_TIMEOUT_S)[0]:
        return {}
    line = process.stdout.readline()
    return dict(json.loads(line)) if line else {}


def _let_go(process: subprocess.Popen[bytes]) -> None:
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()
    try:
        process.wait(timeout=LAST_WAIT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _ending(code: int) -> str:
    if code >= 0:
        return f"it exited with status {code}"
    try:
        return f"it was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"it was ended by signal {-code}"


async def _gone(code: Any, seconds: float) -> bool:
    """Poll until `code()` is no longer None."""
    deadline = monotonic() + seconds
    while code() is None:
        if monotonic() > deadline:
            return False
        await asyncio.sleep(0.02)
    return True


def _is(record: Handle, pid: str, started: str) -> bool:
    number, when = record.get(pid), record.get(started)
    return type(number) is int and number > 0 and isinstance(when, str) and start_time(number) == when


def _signal(pid: int, started: str, number: signal.Signals) -> None:
    """Only to the very process that started then: the descriptor holds it while its start time is compared."""
    if not hasattr(os, "pidfd_open"):
        if start_time(pid) == started:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, number)
        return
    try:
        held = os.pidfd_open(pid)
    except OSError:
        return  # gone
    try:
        if start_time(pid) == started:
            signal.pidfd_send_signal(held, number)
    except OSError:
        return  # gone in between, or not ours to end
    finally:
        os.close(held)


def _marked(mark: Any) -> Iterator[psutil.Process]:
    if not isinstance(mark, str) or len(mark) < 16:
        return
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                yield process
