"""A PostgreSQL server for the length of a measurement, with its own defaults: every commit is synced."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.support import free_port


def programs() -> Path | None:
    """The folder of initdb and postgres: on the path, or where Debian keeps them."""
    found = shutil.which("initdb")
    folders = [Path(found).parent] if found else sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((folder for folder in folders if (folder / "postgres").exists()), None)


@contextmanager
def server() -> Iterator[str | None]:
    """The URL of an empty database; None where PostgreSQL is not installed."""
    bin = programs()
    if bin is None:
        yield None
        return
    folder = Path(tempfile.mkdtemp(prefix="aibrix-bench-postgres-"))
    user = _unprivileged()
    if user is not None:
        shutil.chown(folder, user)
    data, port = str(folder / "data"), str(free_port())
    env = {**os.environ, "LC_ALL": "C.UTF-8", "HOME": str(folder)}
    make = [str(bin / "initdb"), "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8"]
    subprocess.run(make, user=user, env=env, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    control = [str(bin / "pg_ctl"), "-D", data, "-w", "-l", str(folder / "log")]
    options = f"-c listen_addresses=127.0.0.1 -c port={port} -c unix_socket_directories= -c max_connections=100"
    subprocess.run(
        [*control, "-o", options, "start"], user=user, env=env, cwd=folder, check=True, stdout=subprocess.DEVNULL
    )
    try:
        yield f"postgresql+asyncpg://postgres@127.0.0.1:{port}/postgres"
    finally:
        stop = [*control, "-m", "fast", "stop"]
        subprocess.run(stop, user=user, env=env, cwd=folder, check=True, stdout=subprocess.DEVNULL)
        shutil.rmtree(folder, ignore_errors=True)


def _unprivileged() -> str | None:
    """PostgreSQL refuses to run as root: who runs it instead."""
    if os.geteuid() != 0:
        return None
    names = {entry.pw_name for entry in pwd.getpwall()}
    return next((name for name in ("postgres", "nobody") if name in names), None)
