"""What stands between Docker and a container's process: starts it, keeps its log, writes down how it ended."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import subprocess
import threading
import time
from pathlib import Path
from typing import Any, BinaryIO

CHUNK_BYTES = 1 << 16
ALIVE = "alive"


def now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S.000000000Z", time.gmtime())


def write_state(folder: Path, state: dict[str, Any]) -> None:
    """All of it or nothing."""
    draft = folder / "state.new"
    draft.write_text(json.dumps(state))
    draft.replace(folder / "state.json")


def lives(folder: Path) -> bool:
    """Whether a container's shim does: it holds a lock for as long."""
    with (folder / ALIVE).open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


class Log:
    """Lines of both streams, each with the stream's digit in front."""

    def __init__(self, folder: Path, most: int | None) -> None:
        self._path = folder / "log"
        self._most = most
        self._file = self._path.open("ab", buffering=0)
        self._lock = threading.Lock()

    def copy(self, stream: BinaryIO, digit: bytes) -> None:
        rest = b""
        while chunk := os.read(stream.fileno(), CHUNK_BYTES):
            lines, newline, rest = (rest + chunk).rpartition(b"\n")
            if newline:
                self._write(digit + lines.replace(b"\n", b"\n" + digit) + b"\n")
        if rest:
            self._write(digit + rest + b"\n")

    def _write(self, data: bytes) -> None:
        with self._lock, contextlib.suppress(OSError):  # a full disk takes lines away, and stops no container
            if self._most is not None and self._file.tell() + len(data) > self._most:
                self._path.replace(self._path.with_name("log.1"))
                self._file.close()
                self._file = self._path.open("ab", buffering=0)
            self._file.write(data)


def launch(folder: Path, state: dict[str, Any], argv: list[str], environment: dict[str, str]) -> str:
    """Start the shim, in a session of its own. Returns when the process runs; else says why it does not."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        # Whatever happens in here, the caller's code does not go on in this process.
        try:
            os.close(read)
            os.setsid()
            if os.fork() == 0:
                _shim(folder, state, argv, environment, write)
        finally:
            os._exit(0)
    os.close(write)
    os.waitpid(pid, 0)
    with os.fdopen(read, "rb") as pipe:
        return pipe.read().decode()


def _shim(folder: Path, state: dict[str, Any], argv: list[str], environment: dict[str, str], ready: int) -> None:
    # Nothing of the caller's is kept open: its locks, and the pipes of its session.
    os.dup2(ready, 3)
    ready = 3
    os.closerange(4, 256)
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(nothing, number)
    os.close(nothing)
    try:
        alive = (folder / ALIVE).open("ab")
        fcntl.flock(alive, fcntl.LOCK_EX)
        log = Log(folder, state["log_bytes"])
        child = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            start_new_session=True,
        )
        state |= {"status": "running", "pid": child.pid, "started": now(), "exit_code": 0}
        write_state(folder, state)
    except OSError as error:
        os.write(ready, str(error).encode())
        return
    os.close(ready)
    assert child.stdout is not None
    assert child.stderr is not None
    streams = ((child.stdout, b"1"), (child.stderr, b"2"))
    threads = [threading.Thread(target=log.copy, args=pair) for pair in streams]
    for thread in threads:
        thread.start()
    status = child.wait()
    # A container is over with its first process: what else there is in it ends too.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, 9)
    for thread in threads:
        thread.join()
    _ended(folder, state, 128 - status if status < 0 else status)


def _ended(folder: Path, state: dict[str, Any], code: int) -> None:
    if state["auto_remove"]:
        shutil.rmtree(folder, ignore_errors=True)
        return
    with contextlib.suppress(OSError):
        write_state(folder, state | {"status": "exited", "exit_code": code, "pid": 0, "finished": now()})
