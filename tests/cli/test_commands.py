"""The small commands: settings, keys, version, health, mock-engine, demo, and what --help costs."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
import time
from pathlib import Path

import aiohttp
import pytest

from cli.server import overridden
from cli.settings import table
from services.kit.settings import Settings, environment_names
from tests.cli.support import COMMAND, PATIENCE_S, cli, environment
from tests.e2e.processes import Suite, free_port

ROOT = Path(__file__).parents[2]


def test_the_page_of_settings_is_the_table() -> None:
    assert (ROOT / "docs" / "settings.md").read_text() == table(), "run: make docs"


def test_every_setting_is_described() -> None:
    assert [name for name, meaning in environment_names().items() if not meaning] == []


def test_the_table_does_not_read_the_environment() -> None:
    done = cli("settings", AIBRIX_DATA_DIR="/elsewhere")
    assert (done.returncode, done.stdout) == (0, table())


def test_help_imports_nothing_heavy() -> None:
    code = "import sys, cli.main; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True).stdout
    assert not {"grpc", "aiohttp", "sqlalchemy", "openai", "pydantic"} & set(loaded.split())


@pytest.mark.parametrize("command", ["serve", "run", "demo", "mock-engine", "keys", "settings", "health", "version"])
def test_every_command_has_help(command: str) -> None:
    done = cli(command, "--help")
    assert done.returncode == 0
    assert "Usage" in done.stdout


def test_a_wrong_flag_is_exit_code_2() -> None:
    assert cli("serve", "--no-such-flag").returncode == 2
    assert cli("serve", "--role", "no-such-role").returncode == 2


def test_version() -> None:
    done = cli("version")
    assert re.fullmatch(r"(\d+\.\d+\.\d+|source)\n", done.stdout)


@pytest.mark.parametrize(
    ("host", "port", "listen"),
    [
        (None, None, "127.0.0.1:8080"),
        ("0.0.0.0", None, "0.0.0.0:8080"),
        (None, 9, "127.0.0.1:9"),
        ("::1", 9, "[::1]:9"),
    ],
)
def test_flags_override_settings(host: str | None, port: int | None, listen: str) -> None:
    settings = overridden(Settings(), data_dir=Path("here"), host=host, port=port)
    assert (settings.gateway.listen, settings.data_dir) == (listen, Path("here"))


async def test_a_new_key_opens_the_gateway(tmp_path: Path) -> None:
    made = await asyncio.to_thread(cli, "keys", "new", "--project", "search", "--name", "alice")
    assert made.returncode == 0
    key = made.stderr.split()[-1]
    assert key not in made.stdout
    file = tmp_path / "keys.txt"
    file.write_text(made.stdout)
    suite = Suite(tmp_path, AIBRIX_API_KEYS_FILE=str(file))
    await suite.start("all")
    try:
        async with aiohttp.ClientSession() as session:
            for header, status in (({}, 401), ({"Authorization": f"Bearer {key}"}, 200)):
                async with session.get(f"{suite.url}/v1/batches", headers=header) as answer:
                    assert answer.status == status
    finally:
        await suite.stop()
    assert key not in suite.log("all")


def test_a_key_needs_a_proper_project() -> None:
    done = cli("keys", "new", "--project", "a b", "--name", "alice")
    assert (done.returncode, done.stdout) == (2, "")


def test_health_where_nothing_listens() -> None:
    closed = {f"AIBRIX_{role}__LISTEN": f"127.0.0.1:{free_port()}" for role in ("GATEWAY", "METADATA", "PLANNER")}
    closed |= {f"AIBRIX_{role}__LISTEN": f"127.0.0.1:{free_port()}" for role in ("CONSOLE", "RUNNER")}
    assert cli("health", **closed).returncode == 1
    one = cli("health", "--role", "gateway", **closed)
    assert (one.returncode, one.stdout) == (1, "gateway: not serving\n")


async def test_health_finds_the_role_that_runs(tmp_path: Path) -> None:
    suite = Suite(tmp_path)
    await suite.start("planner")
    try:
        listens = {f"AIBRIX_{role.upper()}__LISTEN": address for role, address in suite.listens.items()}
        done = await asyncio.to_thread(cli, "health", **listens)
    finally:
        await suite.stop()
    assert (done.returncode, done.stdout) == (0, "planner: serving\n"), done.stderr


async def test_mock_engine_serves_and_stops() -> None:
    argv = (*COMMAND, "mock-engine", "--port", "0", "--capacity", "1", "--latency-ms", "300")
    process = await asyncio.create_subprocess_exec(*argv, env=environment(), stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    url = (await process.stdout.readline()).decode().split()[-1]
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}

    async def ask(session: aiohttp.ClientSession) -> tuple[int, bool]:
        async with session.post(f"{url}/v1/chat/completions", json=body) as answer:
            return answer.status, "Retry-After" in answer.headers

    async with aiohttp.ClientSession() as session:
        answers = await asyncio.gather(ask(session), ask(session))
    process.terminate()
    async with asyncio.timeout(PATIENCE_S):
        assert await process.wait() == 0
    assert sorted(answers) == [(200, False), (429, True)]


def test_demo() -> None:
    began = time.monotonic()
    done = cli("demo")
    assert done.returncode == 0, done.stdout + done.stderr
    assert time.monotonic() - began < 60
    lines = done.stdout.splitlines()
    assert re.fullmatch(r"demo: 1000/1000 completed, 0 failed, \d+ req/s", lines[-1])
    assert sum(line.startswith("  request-") for line in lines) == 3
    assert any("in flight" in line and "ETA" in line for line in lines)
