"""Running scripts on a machine. A value is one argument there, whatever characters it has, and a secret is on no command line.

The command is always the same two words, a shell that reads from its standard input. So whatever shell the user has, only
a POSIX shell ever sees a value, and only in single quotes; and lists of processes there show nothing.
"""

from __future__ import annotations

import asyncio
import re
import secrets
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import asyncssh

from services.kit.ssh.connect import SshError, Unreachable, plain

SHELL = "exec /bin/sh -s"
MOST_OUTPUT = 128 * 1024
LONGEST_NOISE = 1024
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)


class NoShell(SshError):
    """The machine ran something else than what it was sent: the account's shell runs no commands."""


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

    Its standard input is empty. What files such as ~/.bashrc print before it begins is not part of its output. Error:
    ValueError for a value that no program can be given; TimedOut; NoShell; Unreachable if the connection breaks, when
    nobody knows how far the script came.
    """
    greeting = secrets.token_hex(16)
    text = compose(script, arguments, variables or {}, greeting)
    try:
        async with asyncio.timeout(timeout_s):
            return await _run(connection, text, greeting)
    except TimeoutError as error:
        raise TimedOut(f"a command did not end within {timeout_s:g} s") from error
    except asyncssh.ChannelOpenError as error:
        raise Unreachable(f"the machine opens no session: {plain(error.reason)}") from error
    except (asyncssh.Error, OSError) as error:
        raise Unreachable("the connection to the machine broke") from error


async def _run(connection: asyncssh.SSHClientConnection, text: bytes, greeting: str) -> Finished:
    process: asyncssh.SSHClientProcess[bytes] = await connection.create_process(SHELL, encoding=None)
    try:
        output, complaints, _ = await asyncio.gather(
            _read(process.stdout, greeting), _read(process.stderr, greeting), _write(process, text)
        )
        await process.wait_closed()
    finally:
        process.close()
    status = process.exit_status
    if not output.greeted and status is None:
        raise Unreachable("the connection to the machine broke")
    if not output.greeted:
        said = plain(_decoded(complaints.kept or output.kept)) or f"status {status}"
        raise NoShell(f"the account's shell on the machine runs no commands: {said}")
    return Finished(-1 if status is None else status, _decoded(output.kept), _decoded(complaints.kept))


def compose(script: str, arguments: Sequence[str], variables: Mapping[str, str], greeting: str = "") -> bytes:
    """What the shell reads. It is a function, called at the end: nothing runs before all has arrived.

    `greeting`: a line of plain characters on both outputs before it begins.
    """
    lines = [f"main() {{\n{script}\n}}"]
    for name, value in variables.items():
        if not NAME.fullmatch(name):
            raise ValueError("a variable needs a plain name")
        lines.append(f"{name}={shlex.quote(_checked(value))}")
    if greeting:
        lines.append(f"echo {greeting}; echo {greeting} >&2")
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


@dataclass(frozen=True)
class _Read:
    greeted: bool
    kept: bytes
    """What came after the greeting; without one, the beginning."""


async def _read(stream: asyncssh.SSHReader[bytes], greeting: str) -> _Read:
    """All of it is read, so that the script is not held up; the first part behind the greeting is kept."""
    kept, line, greeted = bytearray(), greeting.encode() + b"\n", False
    noise = b""
    while piece := await stream.read(16 * 1024):
        if not greeted:
            noise += piece
            before, found, piece = noise.partition(line)
            greeted = bool(found)
            # Enough of it to find a greeting that came in two pieces, and to say what came instead of one.
            noise = b"" if greeted else before[:LONGEST_NOISE] + before[LONGEST_NOISE:][-len(line) :]
        kept += piece[: MOST_OUTPUT - len(kept)]
    return _Read(greeted, bytes(kept) if greeted else noise)


def _decoded(data: bytes) -> str:
    return data.decode(errors="replace")
