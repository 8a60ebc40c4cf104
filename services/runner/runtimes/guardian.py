"""A small process between the runner and an engine, so that no engine outlives its runner, however that one ends.

    runner --pipe--> guardian --parent--> engine --> its workers

- The runner dies, even by `kill -9`: the pipe closes (or the parent changes), and the guardian ends the engine.
- The guardian dies: the kernel kills the engine (Linux), and the runner or the next one sweeps up its workers.
- The engine dies: the guardian ends what it left behind, tells the runner how it ended, and exits.

The engine leads its own session; on Linux the guardian adopts whatever leaves it. An engine that exited stays a zombie until
its group is gone, so that its number cannot become another process's while signals are sent to it.

Only the standard library is imported: it starts in milliseconds and cannot break with a dependency.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

LINUX = sys.platform == "linux"
# We, the engine and all that it starts carry this variable: what has lost its parents is still known by it.
MARK = "ENGINE_GUARD_MARK"
PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
CHUNK = 64 * 1024
LAST_WAIT_S = 5.0


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to start and where to write about it; given as JSON on the command line."""

    key: str
    mark: str
    arguments: tuple[str, ...]
    folder: str
    record: str
    log: str
    log_bytes: int
    grace_s: float
    owner_pid: int
    owner_start_time: str
    port: int | None
    port_file: str


class Guardian:
    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._stopping = False
        self._parent = os.getppid()
        self._runner_open = True
        self._engine: subprocess.Popen[bytes] | None = None
        self._output = -1
        self._log = Log(Path(plan.log), plan.log_bytes)
        self._wakeup, writer = os.pipe()
        for end in (self._wakeup, writer):
            os.set_blocking(end, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)

    def run(self) -> int:
        signal.signal(signal.SIGTERM, self._stop)
        # A handler and not "ignore", which the engine would inherit.
        for number in (signal.SIGCHLD, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda *_: None)
        if LINUX:
            ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        self._record(None)
        try:
            self._engine = self._start()
        except OSError as error:
            Path(self._plan.record).unlink(missing_ok=True)
            self._tell({"failed": error.strerror or "unknown error"})
            return 1
        self._tell({"started": self._record(self._engine.pid)})
        while not self._stopping and self._code() is None:
            self._step(1.0)
        self._end()
        self._tell({"exited": self._code()})
        return 0

    def _start(self) -> subprocess.Popen[bytes]:
        libc, guardian = ctypes.CDLL(None), os.getpid()

        def die_with_guardian() -> None:
            if LINUX:
                libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
                if os.getppid() != guardian:
                    os._exit(1)

        self._output, end = os.pipe()
        os.set_blocking(self._output, False)
        try:
            return subprocess.Popen(
                self._plan.arguments,
                stdin=subprocess.DEVNULL,
                stdout=end,
                stderr=end,
                cwd=self._plan.folder,
                start_new_session=True,
                preexec_fn=die_with_guardian,  # noqa: PLW1509 - there are no threads here
            )
        finally:
            os.close(end)

    def _step(self, seconds: float) -> None:
        """Wait for anything: output, a signal, the end of the runner."""
        fds = [self._wakeup, *([0] if self._runner_open else []), *([self._output] if self._output >= 0 else [])]
        ready, _, _ = select.select(fds, [], [], seconds)
        if self._wakeup in ready:
            os.read(self._wakeup, CHUNK)
            self._reap_adopted()
        if 0 in ready and not os.read(0, CHUNK):
            self._runner_open = False
            self._stopping = True
        if self._output in ready:
            self._copy()
        if os.getppid() != self._parent:
            self._stopping = True

    def _copy(self) -> None:
        data = os.read(self._output, CHUNK)
        if data:
            self._log.write(data)
        else:
            os.close(self._output)
            self._output = -1

    def _end(self) -> None:
        """TERM, time to end, KILL; then forget the record, unless something could not be killed."""
        self._signal(signal.SIGTERM)
        self._wait(self._plan.grace_s)
        deadline = time.monotonic() + LAST_WAIT_S
        while self._remaining() and time.monotonic() < deadline:
            self._signal(signal.SIGKILL)
            self._wait(0.1)
        while self._output >= 0 and select.select([self._output], [], [], 0)[0]:
            self._copy()
        if not self._remaining():
            for path in (self._plan.record, self._plan.port_file):
                Path(path).unlink(missing_ok=True)

    def _wait(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while self._remaining() and (left := deadline - time.monotonic()) > 0:
            self._step(min(left, 0.05))

    def _remaining(self) -> list[int]:
        """Processes that still run, of the engine's group or adopted from it."""
        engine = self._pid()
        if not LINUX:
            return [] if self._code() is not None else [engine]
        me = os.getpid()
        running = {
            process.pid for process in processes() if engine in (process.pid, process.group) or process.parent == me
        }
        # The first thread of an engine with many may be gone before the process can be waited for.
        return list(running if self._code() is not None else running | {engine})

    def _signal(self, number: signal.Signals) -> None:
        # ours, as long as the engine has not been waited for; macOS refuses a group of zombies
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._pid(), number)
        for pid in self._remaining():
            if pid != self._pid():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)

    def _reap_adopted(self) -> None:
        me, engine = os.getpid(), self._pid()
        for process in processes(zombies=True):
            if process.parent == me and process.pid != engine:
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(process.pid, os.WNOHANG)

    def _code(self) -> int | None:
        """How the engine ended, as `subprocess` says it, without waiting for it."""
        state = os.waitid(os.P_PID, self._pid(), os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if state is None:
            return None
        return state.si_status if state.si_code == os.CLD_EXITED else -state.si_status

    def _pid(self) -> int:
        assert self._engine is not None
        return self._engine.pid

    def _stop(self, *_: Any) -> None:
        self._stopping = True

    def _record(self, engine: int | None) -> dict[str, Any]:
        """Before the engine starts, and again when its number is known."""
        plan = asdict(self._plan)
        kept = ("key", "mark", "owner_pid", "owner_start_time", "port", "port_file", "log")
        record = {name: plan[name] for name in kept}
        record |= {"pid": os.getpid(), "start_time": start_time(os.getpid()), "engine_pid": engine}
        path = Path(self._plan.record)
        draft = path.with_name(path.name + ".draft")
        draft.write_text(json.dumps(record))
        draft.replace(path)
        return record

    def _tell(self, message: dict[str, Any]) -> None:
        with contextlib.suppress(OSError):  # the runner may be gone, and then nobody asks
            os.write(1, json.dumps(message).encode() + b"\n")


class Log:
    """The engine's output, the newest part of it: one file and the one before."""

    def __init__(self, path: Path, limit: int) -> None:
        self._path = path
        self._limit = limit // 2
        self._file = path.open("ab", buffering=0)

    def write(self, data: bytes) -> None:
        try:
            self._file.write(data)
            if self._file.tell() > self._limit:
                self._file.close()
                self._path.replace(previous(self._path))
                self._file = self._path.open("ab", buffering=0)
        except OSError:
            return  # a full disk must not stop the engine


def previous(log: Path) -> Path:
    return log.with_name(log.name + ".1")


@dataclass(frozen=True)
class Process:
    pid: int
    parent: int
    group: int


def processes(*, zombies: bool = False) -> Iterator[Process]:
    """All that run on this machine. Linux only: elsewhere none."""
    if not LINUX:
        return
    for name in os.listdir("/proc"):
        if name.isdigit() and (fields := _stat(int(name))) and (zombies or fields[0] not in "ZX"):
            yield Process(int(name), int(fields[1]), int(fields[2]))


def start_time(pid: int) -> str | None:
    """When the process started, in a form that no other process with this number has. None: it does not run."""
    if not LINUX:
        found = subprocess.run(
            ["ps", "-o", "stat=,lstart=", "-p", str(pid)], capture_output=True, text=True, check=False
        )
        state, _, started = found.stdout.strip().partition(" ")
        return None if not started or state.startswith("Z") else started.strip()
    fields = _stat(pid)
    if fields is None or fields[0] in "ZX":
        return None
    return f"{_boot()}:{fields[19]}"


def _stat(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat after the name, from the state on."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    return text.rpartition(")")[2].split()


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def main() -> int:
    values = json.loads(sys.argv[1])
    return Guardian(Plan(**{**values, "arguments": tuple(values["arguments"])})).run()


if __name__ == "__main__":
    sys.exit(main())
