"""A machine for tests: a real `sshd` on loopback whose `vllm` and `docker` are the programs in the folder beside.

Sessions have a home, a path and a mark of their own, so several machines may stand on one computer. What they share with it
is the loopback: two engines of two machines cannot have the same port at the same time.
"""

from __future__ import annotations

import asyncio
import json
import os
import pwd
import re
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Collection, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncssh
import psutil

from tests.conftest import free_port, unavailable
from tests.ssh.processes import MARK, PATIENCE_S, command, end, mark, name
from tests.ssh.slow import SlowDoor

HOST = "127.0.0.1"
PROGRAMS = Path(__file__).parent / "programs"
REPOSITORY = Path(__file__).parents[2]
SYSTEM = [Path(folder) for folder in ("/usr/local/bin", "/usr/bin", "/bin", "/usr/local/sbin", "/usr/sbin", "/sbin")]
DISK_MIB = 4
START_ATTEMPTS = 5


class Machine:
    """What a test sees of it. `machine()` makes one."""

    def __init__(
        self,
        folder: Path,
        *,
        without: Collection[str] = (),
        slow_handshake: float = 0.0,
        shell: str | None = None,
        host: str = HOST,
        port: int | None = None,
    ) -> None:
        """`host`: its address, one of loopback. `port`: of its sshd; a free one, if None."""
        self.folder = folder
        self.id = secrets.token_hex(8)
        self.host = host
        self.port = port or free_port()
        self.user = pwd.getpwuid(os.geteuid()).pw_name
        self.home = folder / "home"
        self.key_file = folder / "client_key"
        self.host_key = ""
        """The public half as OpenSSH writes it: `ssh-ed25519 AAAA...`."""
        self.sshd_options: dict[str, str] = {}
        """Of sshd_config, besides or instead of our own, from the next start on."""
        self.shell = shell or shutil.which("bash") or "/bin/sh"
        self._without = frozenset(without)
        self._sshd = sshd_program()
        self._process: asyncio.subprocess.Process | None = None
        self._door = SlowDoor(slow_handshake) if slow_handshake else None
        self._inner_port = free_port() if self._door else self.port

    # Starting and ending

    async def start(self, *, new_host_key: bool = False, host_key: str = "") -> None:
        """sshd on the same port as before. It answers when this returns. `host_key`: a private key, which is its own from now on."""
        if new_host_key or host_key:
            await self.stop()
        if new_host_key or host_key or not self.host_key:
            self.host_key = make_key(self.folder / "host_key", host_key)
        deadline = asyncio.get_running_loop().time() + PATIENCE_S
        while not await self._serves():
            if asyncio.get_running_loop().time() > deadline:
                raise RuntimeError(f"sshd does not start:\n{self.log()[-2000:]}")
            await asyncio.sleep(0.05)
        if self._door:
            await self._door.open(self.port, self._inner_port)

    async def stop(self) -> None:
        """SIGTERM to sshd and its connections. Engines stay."""
        await self._end_sshd(signal.SIGTERM)

    async def kill(self, *, everything: bool = False) -> None:
        """SIGKILL to sshd and its connections; with `everything` also to all that they started: the machine died."""
        await self._end_sshd(signal.SIGKILL)
        if everything:
            await self._end_processes()

    async def drop_connections(self) -> int:
        """End every connection that there is, and say how many processes of sshd that was; new ones are welcome."""
        sessions = self._sessions()
        await end(sessions, signal.SIGKILL)
        return len(sessions)

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.returncode is None

    # What is on it

    def log(self) -> str:
        """Of sshd."""
        path = self.folder / "sshd.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def engines(self) -> list[int]:
        """Pids of the `vllm serve` that run, without their workers."""
        alive = {process.pid for process in self.processes()}
        return [call["pid"] for call in self.calls() if call["pid"] in alive]

    def left_over(self) -> list[str]:
        """What still runs of all that sessions started, workers and shells included, for a message: pid and command."""
        return [f"{process.pid} {shlex.join(words)}" for process in self.processes() if (words := command(process))]

    def processes(self) -> list[psutil.Process]:
        """Every process that a session started, directly or not."""
        return [process for process in psutil.process_iter() if mark(process) == self.id]

    def containers(self) -> list[str]:
        """Names of Docker containers, those that have ended included."""
        return sorted(path.parent.name for path in (self.home / "docker").glob("*/state.json"))

    def knobs(self, **values: Any) -> None:
        """How `vllm` and `docker` behave from the next start on; see their docstrings. Earlier ones are forgotten."""
        (self.home / "knobs.json").write_text(json.dumps(values))

    def calls(self) -> list[dict[str, Any]]:
        """Starts of `vllm`: `argv`, `env` (names only), `pid`, `host`, `port`."""
        return lines(self.home / "vllm-calls.jsonl")

    def docker_calls(self) -> list[list[str]]:
        """Arguments of every call of `docker`."""
        return [line["argv"] for line in lines(self.home / "docker-calls.jsonl")]

    def requests(self) -> list[dict[str, Any]]:
        """What all engines here were asked: `path`, `digest` (of path and body), `text` (the last message's), `pid`."""
        return lines(self.home / "requests.jsonl")

    def times(self) -> Counter[str]:
        """How often each text was asked."""
        return Counter(line["text"] for line in self.requests())

    # A full disk

    def fill_disk(self) -> None:
        """Until nothing more fits; only on a machine with a small disk."""
        if not os.path.ismount(self.home):
            raise RuntimeError("ask for a machine with full_disk=True")
        with (self.home / "ballast").open("wb", buffering=0) as out:
            for size in (1 << 16, 1):
                try:
                    while True:
                        out.write(b"x" * size)
                except OSError:
                    continue

    def empty_disk(self) -> None:
        (self.home / "ballast").unlink()

    # How

    async def _serves(self) -> bool:
        """Whether sshd answers with its version. Starts it, again if it has ended (its port was not free yet)."""
        if not self.running:
            self._write_config()
            # The program by its full path: sshd starts itself again for each connection.
            argv = [self._sshd, "-D", "-e", "-f", str(self.folder / "sshd_config")]
            with (self.folder / "sshd.log").open("ab") as log:
                self._process = await asyncio.create_subprocess_exec(
                    *argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.folder
                )
        try:
            async with asyncio.timeout(PATIENCE_S):
                reader, writer = await asyncio.open_connection(self.host, self._inner_port)
                try:
                    return (await reader.read(4)) == b"SSH-"
                finally:
                    writer.close()
        except OSError:
            return False

    def _write_config(self) -> None:
        options = {
            "ListenAddress": f"{self.host}:{self._inner_port}",
            "HostKey": quoted(self.folder / "host_key"),
            "AuthorizedKeysFile": quoted(self.folder / "authorized_keys"),
            "ForceCommand": shlex.quote(str(self.folder / "enter")),
            # The user's own shell runs ForceCommand: without this it reads the files of the user's real home.
            "SetEnv": f'"HOME={self.home}"',
            "PermitRootLogin": "prohibit-password",
            "PasswordAuthentication": "no",
            "KbdInteractiveAuthentication": "no",
            "AllowTcpForwarding": "local",
            "X11Forwarding": "no",
            "PermitUserRC": "no",
            "PrintMotd": "no",
            "PrintLastLog": "no",
            "StrictModes": "no",
            "UsePAM": "no",
            "UseDNS": "no",
            "PidFile": "none",
            "LogLevel": "VERBOSE",
        }
        if version(self._sshd) >= (9, 8):
            # A test that knocks with a wrong key may knock again at once.
            options["PerSourcePenalties"] = "no"
        options |= self.sshd_options
        (self.folder / "sshd_config").write_text("".join(f"{name} {value}\n" for name, value in options.items()))

    def _sessions(self) -> list[psutil.Process]:
        """Processes of sshd below the one that listens. What they run is not among them."""
        if not self.running or self._process is None:
            return []
        try:
            below = psutil.Process(self._process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []
        return [process for process in below if name(process).startswith("sshd")]

    async def _end_sshd(self, by: signal.Signals) -> None:
        if self._door:
            await self._door.close()
        if self._process is None or not self.running:
            return
        # Stopped, it starts no session that we would not see.
        self._process.send_signal(signal.SIGSTOP)
        sessions = self._sessions()
        self._process.send_signal(by)
        self._process.send_signal(signal.SIGCONT)
        await end(sessions, by)
        async with asyncio.timeout(PATIENCE_S):
            await self._process.wait()

    async def _end_processes(self) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while left := await asyncio.to_thread(self.processes):
                await end(left, signal.SIGKILL)

    def prepare(self, *, small_disk: bool = False, authorized_key: str = "") -> None:
        """Folders, keys, and the script through which each session goes. `authorized_key`: who may log in, instead of `key_file`."""
        self.home.mkdir(parents=True)
        if small_disk:
            mount(self.home)
        (self.folder / "records").mkdir()
        for record in ("vllm-calls.jsonl", "docker-calls.jsonl", "requests.jsonl", "knobs.json"):
            # Beside the home: what tests ask and say does not depend on room there.
            (self.home / record).symlink_to(self.folder / "records" / record)
        (self.home / "tmp").mkdir()
        (self.folder / "authorized_keys").write_text((authorized_key or make_key(self.key_file)) + "\n")
        script = self.folder / "enter"
        script.write_text(ENTER.format(exports=self._exports(), shell=shlex.quote(self.shell)))
        script.chmod(0o755)
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # sshd as root does not start without it

    def _exports(self) -> str:
        values = {
            "HOME": str(self.home),
            "TMPDIR": str(self.home / "tmp"),
            "SHELL": self.shell,
            "LANG": "C.UTF-8",
            "PATH": os.pathsep.join(map(str, self._path())),
            # For the programs only: they use the repository's mock engine.
            "PYTHONPATH": os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "protos" / "gen")]),
            "PYTHONDONTWRITEBYTECODE": "1",
            MARK: self.id,
        }
        return "".join(f"export {name}={shlex.quote(value)}\n" for name, value in values.items())

    def _path(self) -> list[Path]:
        """The programs, this Python, the system; without what is missing here, even if this computer has it."""
        ours = self.folder / "bin"
        link([PROGRAMS], ours, self._without)
        # No link: a virtual environment is found by the folder in which its Python is called.
        (ours / "python3").write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n')
        (ours / "python3").chmod(0o755)
        if not self._without:
            return [ours, *SYSTEM]
        system = self.folder / "system"
        link(SYSTEM, system, self._without)
        return [ours, system]


ENTER = """\
#!/bin/sh
{exports}cd "$HOME" || exit 1
if [ -n "$SSH_ORIGINAL_COMMAND" ]; then
  command=$SSH_ORIGINAL_COMMAND
  unset SSH_ORIGINAL_COMMAND
  exec {shell} -c "$command"
fi
exec {shell}
"""


@asynccontextmanager
async def machine(
    folder: Path,
    *,
    path_first: bool = True,
    without: Collection[str] = (),
    slow_handshake: float = 0.0,
    full_disk: bool = False,
    shell: str | None = None,
) -> AsyncIterator[Machine]:
    """A machine that answers, in `folder`, which is made. When the block ends, so does all that runs on it.

    path_first: False for a machine without any of the programs. without: names of those that it lacks.
    slow_handshake: seconds from the connection to the first byte of sshd. full_disk: the home is small; see `fill_disk`.
    shell: what reads the commands; bash if there is one, else sh.
    """
    missing = without if path_first else [program.name for program in PROGRAMS.iterdir()]
    made = Machine(folder, without=missing, slow_handshake=slow_handshake, shell=shell)
    try:
        made.prepare(small_disk=full_disk)
        await made.start()
        yield made
    finally:
        await made.kill(everything=True)
        if os.path.ismount(made.home):
            subprocess.run(["umount", "-l", str(made.home)], check=True)


def link(sources: Iterable[Path], folder: Path, without: Collection[str]) -> None:
    """Links to all programs of these folders, the first of a name."""
    folder.mkdir()
    for source in filter(Path.is_dir, sources):
        for program in source.iterdir():
            if program.name not in without and not (folder / program.name).is_symlink():
                (folder / program.name).symlink_to(program)


def sshd_program() -> str:
    path = os.pathsep.join([os.environ.get("PATH", ""), *map(str, SYSTEM)])
    found = shutil.which("sshd", path=path)
    if found is None:
        unavailable("OpenSSH's sshd is not installed here")
    return found


def version(sshd: str) -> tuple[int, int]:
    """Of an OpenSSH program. Older ones do not know -V, but complain with their version."""
    done = subprocess.run([sshd, "-V"], capture_output=True, text=True)
    found = re.search(r"OpenSSH_(\d+)\.(\d+)", done.stderr + done.stdout)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def make_key(path: Path, given: str = "") -> str:
    """A new ed25519 key there, or the private key that is given, for its owner only. The public half."""
    key = asyncssh.import_private_key(given) if given else asyncssh.generate_private_key("ssh-ed25519")
    path.unlink(missing_ok=True)
    path.touch(mode=0o600)
    path.write_bytes(key.export_private_key())
    return key.export_public_key().decode().strip()


def mount(folder: Path) -> None:
    argv = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "tmpfs", str(folder)]
    try:
        done = subprocess.run(argv, capture_output=True, text=True)
    except FileNotFoundError:
        unavailable("no small file system to fill: there is no program mount")
    if done.returncode:
        unavailable(f"no small file system to fill: {done.stderr.strip()}")


def quoted(path: Path) -> str:
    return f'"{path}"'


def lines(path: Path) -> list[dict[str, Any]]:
    """Complete lines; one that is being written is not there yet."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]
