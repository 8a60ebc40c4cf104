"""Running scripts on a machine. A value is one argument there, whatever characters it has, and a secret is on no command line.

The command is always the same two words, a shell that reads from its standard input. So whatever shell the user has, only
a POSIX shell ever sees a value, and only in single quotes; and lists of processes there show nothing.
"""

from __future__ import annotations

import asyncio
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import asyncssh

from services.kit.ssh.connect import SshError, Unreachable

SHELL = "exec /bin/sh -s"
MOST_OUTPUT = 128 * 1024
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)


class TimedOut(SshError):
    """The command did not end in time, though the connection may well be fine. Nobody knows how far it came."""


@dataclass(frozen=True)
class Finished:
    status: int
    """Of the script; -1: it was ended by a signal."""
    output: str
    """Standard output, at most MOST_OUTPUT bytes of it."""
    complaints: str
    """Standard error, likewise."""


async def run(
    connection: asyncssh.SSHClientConnection,
    script: str,
    arguments: Sequence[str] = (),
    *,
    variables: Mapping[str, str] | None = None,
    timeout_s: float,
) -> Finished:
    """Run `script` with `arguments` as $1, $2, ... and `variables`, which are not exported.

    Its standard input is empty. Error: ValueError for a value that no program can be given; TimedOut; Unreachable if the
    connection breaks, when nobody knows how far the script came.
    """
    text = compose(script, arguments, variables or {})
    try:
        async with asyncio.timeout(timeout_s):
            return await _run(connection, text)
    except TimeoutError as error:
        raise TimedOut(f"a command did not end within {timeout_s:g} s") from error
    except (asyncssh.Error, OSError) as error:
        raise Unreachable("the connection to the machine broke") from error


async def _run(connection: asyncssh.SSHClientConnection, text: bytes) -> Finished:
    process: asyncssh.SSHClientProcess[bytes] = await connection.create_process(SHELL, encoding=None)
    try:
        output, complaints, _ = await asyncio.gather(
            _read(process.stdout), _read(process.stderr), _write(process, text)
        )
        await process.wait_closed()
    finally:
        process.close()
    status = process.exit_status
    return Finished(-1 if status is None else status, _decoded(output), _decoded(complaints))


def compose(script: str, arguments: Sequence[str], variables: Mapping[str, str]) -> bytes:
    """What the shell reads. It is a function, called at the end: nothing runs before all has arrived."""
    lines = [f"main() {{\n{script}\n}}"]
    for name, value in variables.items():
        if not NAME.fullmatch(name):
            raise ValueError("a variable needs a plain name")
        lines.append(f"{name}={shlex.quote(_checked(value))}")
    lines.append(shlex.join(["main", *map(_checked, arguments)]) + " </dev/null")
    return ("\n".join(lines) + "\nexit $?\n").encode()


def _checked(value: str) -> str:
    if "\0" in value:
        raise ValueError("a value holds a NUL character, which no program can be given")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError("a value is not valid Unicode") from error
    return value


async def _write(process: asyncssh.SSHClientProcess[bytes], text: bytes) -> None:
    try:
        process.stdin.write(text)
        await process.stdin.drain()
        process.stdin.write_eof()
    except (BrokenPipeError, ConnectionResetError):
        return  # the shell ended before it had read all: its status says why


async def _read(stream: asyncssh.SSHReader[bytes]) -> bytes:
    """All of it is read, so that the script is not held up; the first part is kept."""
    kept, size = [], 0
    while piece := await stream.read(16 * 1024):
        if size < MOST_OUTPUT:
            kept.append(piece[: MOST_OUTPUT - size])
            size += len(piece)
    return b"".join(kept)


def _decoded(data: bytes) -> str:
    return data.decode(errors="replace")
