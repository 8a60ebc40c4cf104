"""Shared fixtures: both databases, S3, settings. What they start listens on loopback, on a free port."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import asyncpg
import boto3
import pytest
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings

from services.kit.settings import Settings

START_S = 30.0

hypothesis_settings.register_profile(
    "project",
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
hypothesis_settings.load_profile("project")


def unavailable(reason: str) -> NoReturn:
    """Skip what this machine cannot run; on CI nothing is skipped."""
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def program(name: str) -> str | None:
    """Where a PostgreSQL program is: on the path, or where `pg_config` says."""
    found = shutil.which(name)
    if found is None and (config := shutil.which("pg_config")):
        folder = subprocess.run([config, "--bindir"], capture_output=True, text=True, check=True).stdout.strip()
        found = shutil.which(name, path=folder)
    return found


def unprivileged() -> str | None:
    """PostgreSQL refuses to run as root: who runs it instead."""
    if os.geteuid() != 0:
        return None
    names = {entry.pw_name for entry in pwd.getpwall()}
    return next((name for name in ("postgres", "nobody") if name in names), None)


def wait_until(is_up: Callable[[], bool], process: subprocess.Popen[bytes], what: str) -> None:
    until = time.monotonic() + START_S
    while not is_up():
        if process.poll() is not None or time.monotonic() > until:
            raise RuntimeError(f"{what} did not start")
        time.sleep(0.05)


def accepts(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


@pytest.fixture(scope="session")
def postgres_port() -> Iterator[int]:
    """A real PostgreSQL server in a temporary folder; user `postgres`, no password."""
    initdb, postgres, ready = program("initdb"), program("postgres"), program("pg_isready")
    user = unprivileged()
    if initdb is None or postgres is None or ready is None or (os.geteuid() == 0 and user is None):
        unavailable("PostgreSQL is not installed here")
    folder = Path(tempfile.mkdtemp(prefix="brix-postgres-"))
    if user is not None:
        shutil.chown(folder, user)
    data, port = folder / "data", free_port()
    environment = {**os.environ, "LC_ALL": "C.UTF-8", "HOME": str(folder)}
    make = [initdb, "-D", str(data), "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync"]
    subprocess.run(make, user=user, env=environment, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    options = {
        "listen_addresses": "127.0.0.1",
        "port": str(port),
        "unix_socket_directories": "",
        "fsync": "off",
        "max_connections": "200",
    }
    flags = [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(
            [postgres, "-D", str(data), *flags], user=user, env=environment, cwd=folder, stdout=log, stderr=log
        )
        try:
            asked = [ready, "-q", "-h", "127.0.0.1", "-p", str(port), "-U", "postgres"]
            wait_until(lambda: subprocess.run(asked).returncode == 0, server, "PostgreSQL")
            yield port
        finally:
            server.terminate()
            server.wait(timeout=START_S)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
async def postgres_url(postgres_port: int) -> AsyncIterator[str]:
    """An empty database."""
    name = f"test_{uuid.uuid4().hex}"
    address: dict[str, Any] = {"host": "127.0.0.1", "port": postgres_port, "user": "postgres"}
    admin = await asyncpg.connect(**address, database="postgres")
    try:
        await admin.execute(f"CREATE DATABASE {name}")
        yield f"postgresql+asyncpg://postgres@127.0.0.1:{postgres_port}/{name}"
        await admin.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
    finally:
        await admin.close()


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    return f"sqlite+aiosqlite:///{tmp_path / 'test.db'}"


@pytest.fixture(params=["sqlite", "postgres"])
def database_url(request: pytest.FixtureRequest) -> str:
    """An empty database of each kind."""
    url: str = request.getfixturevalue(f"{request.param}_url")
    return url


@pytest.fixture(scope="session")
def s3_port() -> Iterator[int]:
    """An S3 server in a process of its own."""
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: accepts(port), server, "the S3 server")
        yield port
    finally:
        server.terminate()
        server.wait(timeout=START_S)


@pytest.fixture
def s3_objects(s3_port: int) -> dict[str, str]:
    """The section `objects` of the settings, for an empty bucket."""
    endpoint, bucket = f"http://127.0.0.1:{s3_port}", f"test-{uuid.uuid4().hex}"
    client = boto3.client(
        "s3",
        endpoint_url=endpoint,
        region_name="us-east-1",
        aws_access_key_id="test",
        aws_secret_access_key="test",
    )
    client.create_bucket(Bucket=bucket)
    client.close()
    return {
        "url": f"s3://{bucket}",
        "endpoint": endpoint,
        "access_key_id": "test",
        "secret_access_key": "test",
    }


@pytest.fixture
def make_settings(tmp_path: Path) -> Callable[..., Settings]:
    """Settings for roles on free ports, with SQLite and a local folder; sections are given as keyword dictionaries."""

    def make(**overrides: Any) -> Settings:
        sections = {
            name: {"listen": "127.0.0.1:0"} | overrides.pop(name, {})
            for name in ("gateway", "metadata", "planner", "console", "runner")
        }
        return Settings(data_dir=tmp_path / "data", **sections, **overrides)

    return make
