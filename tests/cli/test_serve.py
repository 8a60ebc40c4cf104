"""`serve`: what starts, what is refused, how it ends; and the table of roles behind it."""

from __future__ import annotations

import asyncio
import importlib
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from cli.main import Role
from services.__main__ import ROLES, StartFailed, reason, serve, together, until_stopped
from services.kit.lifecycle import background
from services.kit.settings import Gateway, Metadata, Settings
from tests.cli.support import COMMAND, PATIENCE_S, cli, environment
from tests.e2e.processes import Suite, free_port


def test_the_roles_of_the_flag_are_those_of_the_table() -> None:
    assert [str(role) for role in Role] == list(ROLES)


@pytest.mark.parametrize("role", ROLES)
def test_every_role_can_be_run(role: str) -> None:
    assert callable(importlib.import_module(ROLES[role]).run)


async def test_all_in_one_process_starts_and_stops(tmp_path: Path) -> None:
    suite = Suite(tmp_path)
    await suite.start("all")
    assert await suite.stop() == {"all": 0}
    assert '"event": "ready"' in suite.log("all")
    assert "Traceback" not in suite.log("all")


async def test_every_role_by_itself_starts_and_stops(tmp_path: Path) -> None:
    suite = Suite(tmp_path)
    for role in ROLES:
        await suite.start(role)
        answer = await asyncio.to_thread(cli, "health", "--role", role, **suite_settings(suite))
        assert answer.returncode == 0, answer.stdout + answer.stderr
    assert await suite.stop() == dict.fromkeys(ROLES, 0)
    for role in ROLES:
        assert "Traceback" not in suite.log(role)


def suite_settings(suite: Suite) -> dict[str, str]:
    ours = {name: value for name, value in suite.env.items() if name.startswith("AIBRIX_")}
    return ours | {"AIBRIX_GATEWAY__LISTEN": suite.listens["gateway"]}


def test_an_unknown_setting_is_refused() -> None:
    done = cli("serve", AIBRIX_METADATA__LEASE_TLL_S="3")
    assert (done.returncode, done.stderr) == (
        2,
        "error: unknown setting AIBRIX_METADATA__LEASE_TLL_S: see docs/settings.md for the names that exist\n",
    )


def test_a_bad_value_is_refused_without_repeating_it() -> None:
    done = cli("serve", AIBRIX_METADATA__LEASE_TTL_S="secret")
    assert done.returncode == 2
    assert "AIBRIX_METADATA__LEASE_TTL_S" in done.stderr
    assert "secret" not in done.stderr


def test_everybody_without_keys_is_refused(tmp_path: Path) -> None:
    done = cli("serve", "--data-dir", tmp_path, "--host", "0.0.0.0", "--port", str(free_port()))
    assert done.returncode == 1
    assert "AIBRIX_API_KEYS_FILE" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_port_that_is_taken_is_named(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = cli("serve", "--data-dir", tmp_path, "--port", str(port))
    assert done.returncode == 1
    assert "the gateway role did not start" in done.stderr
    assert str(port) in done.stderr


async def test_the_second_server_on_a_data_folder_is_refused(tmp_path: Path) -> None:
    suite = Suite(tmp_path)
    await suite.start("all")
    argv = ("serve", "--data-dir", suite.env["AIBRIX_DATA_DIR"], "--port", "0")
    second = await asyncio.to_thread(cli, *argv)
    assert second.returncode == 1
    assert "in use by another aibrix-batch process" in second.stderr
    await suite.kill("all")
    await suite.start("all")  # the lock died with its holder
    await suite.stop()


async def test_a_signal_during_the_start_ends_it(tmp_path: Path) -> None:
    argv = (*COMMAND, "serve", "--data-dir", str(tmp_path / "data"), "--port", "0")
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*argv, env=environment(), stderr=pipe)
    assert process.stderr is not None
    async with asyncio.timeout(PATIENCE_S):
        await process.stderr.readline()  # the first line of the log: the start is under way
        process.send_signal(signal.SIGTERM)
        rest = (await process.stderr.read()).decode()
        assert await process.wait() == 0, rest
    assert "Traceback" not in rest


Steps = list[str]


def recording(monkeypatch: pytest.MonkeyPatch, steps: Steps, **broken: BaseException) -> None:
    """Replace the roles by ones that say when they start and stop."""

    def module(role: str) -> SimpleNamespace:
        @asynccontextmanager
        async def run(settings: Settings) -> AsyncIterator[str]:
            if role in broken:
                raise broken[role]
            steps.append(f"start {role} metadata={settings.metadata_addr}")
            yield f"{role}:1"
            steps.append(f"stop {role}")

        return SimpleNamespace(run=run)

    modules = {path: module(role) for role, path in ROLES.items()}
    monkeypatch.setattr(importlib, "import_module", modules.__getitem__)


async def test_order_and_wiring(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    steps: Steps = []
    recording(monkeypatch, steps)
    async with serve(Settings(data_dir=tmp_path), ["gateway", "metadata", "runner"]) as addresses:
        assert addresses == {role: f"{role}:1" for role in ("metadata", "runner", "gateway")}
    assert [step.split()[:2] for step in steps] == [
        ["start", "metadata"],
        ["start", "runner"],
        ["start", "gateway"],
        ["stop", "gateway"],
        ["stop", "runner"],
        ["stop", "metadata"],
    ]
    assert steps[2].endswith("metadata=metadata:1")


async def test_a_role_that_does_not_start_is_named_and_the_others_stop(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    steps: Steps = []
    recording(monkeypatch, steps, console=OSError("no such host"))
    with pytest.raises(ExceptionGroup) as caught:
        await until_stopped(Settings(data_dir=tmp_path), tuple(ROLES))
    assert reason(caught.value) == "the console role did not start: no such host"
    assert isinstance(caught.value.exceptions[0], StartFailed)
    assert not any("runner" in step for step in steps)


async def test_a_role_that_fails_later_ends_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    steps: Steps = []
    recording(monkeypatch, steps)
    whole = importlib.import_module

    async def breaks() -> None:
        raise RuntimeError("the loop broke")

    @asynccontextmanager
    async def run(settings: Settings) -> AsyncIterator[str]:
        async with background(breaks()):
            yield "runner:1"

    def module(path: str) -> object:
        return SimpleNamespace(run=run) if path == ROLES["runner"] else whole(path)

    monkeypatch.setattr(importlib, "import_module", module)
    began = time.monotonic()
    with pytest.raises(ExceptionGroup) as caught:
        await until_stopped(Settings(data_dir=tmp_path), tuple(ROLES))
    assert reason(caught.value) == "the loop broke"
    assert time.monotonic() - began < 5


def test_free_ports_unless_one_is_named(tmp_path: Path) -> None:
    settings = together(Settings(metadata=Metadata(listen="127.0.0.1:7000")), tuple(ROLES))
    assert settings.metadata.listen == "127.0.0.1:7000"
    assert settings.runner.listen == "127.0.0.1:0"
    assert settings.gateway.listen == "127.0.0.1:8080"


@pytest.mark.parametrize(
    ("change", "allowed"),
    [
        (dict, "*"),
        (lambda: {"gateway": Gateway(listen="0.0.0.0:80")}, ""),
        (lambda: {"api_keys_file": "keys"}, ""),
        (lambda: {"external": {"allowed_hosts": ""}}, ""),
    ],
)
def test_one_users_server_may_reach_every_address(change: Callable[[], dict[str, object]], allowed: str) -> None:
    settings = together(Settings.model_validate(change()), tuple(ROLES))
    assert settings.external.allowed_hosts == allowed
