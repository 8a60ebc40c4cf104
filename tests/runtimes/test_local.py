"""The Local runtime with real processes: what starts, what is said about it, and that nothing is left."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from services.runner.runtimes.base import Gone, Pending, RuntimeFailed
from services.runner.runtimes.local import Local
from tests.runtimes.support import (
    MARK,
    PROJECT,
    alive,
    command,
    local_spec,
    marked,
    settings,
    template,
    until,
    until_ready,
)

Make = Callable[..., Local]
SPEC = local_spec("batch_1", {"command": "engine"})


@pytest.fixture
async def make(tmp_path: Path) -> AsyncIterator[Make]:
    """Build runtimes over one folder; they are closed at the end."""
    made: list[Local] = []

    def build(*flags: str, grace_s: float = 2.0) -> Local:
        made.append(Local(settings(tmp_path, **command("engine", *flags)), grace_s=grace_s))
        return made[-1]

    yield build
    for runtime in made:
        await runtime.close()


async def test_command_gets_port_and_model(make: Make) -> None:
    runtime = make("--model", "{model}")
    handle = await runtime.launch(SPEC)
    ready = await until_ready(runtime, SPEC, handle)
    assert ready.endpoints[0].base_url == f"http://127.0.0.1:{handle['port']}"
    log = Path(handle["log"])
    await until(lambda: "model acme/tiny" in log.read_text(), "the model in the log")
    assert log.parent.stat().st_mode & 0o077 == 0


async def test_template_of_a_mock_engine_with_typed_flags(make: Make) -> None:
    runtime = make()
    spec = local_spec("batch_1", model_template=template(serve_args=["--capacity", "1"]))
    ready = await until_ready(runtime, spec, await runtime.launch(spec))
    async with aiohttp.ClientSession() as session, session.get(ready.endpoints[0].base_url + "/v1/models") as answer:
        assert answer.status == 200


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (local_spec("b", {"command": "unknown"}), "runtime.options.command"),
        (local_spec("b", {"shell": "rm"}), "runtime.options.shell"),
        (local_spec("b"), "nothing to start"),
        (local_spec("b", model_template=template("trtllm")), "llamacpp, mock, sglang, vllm"),
        (local_spec("b", model_template=template("llamacpp")), "model_source.uri"),
        (local_spec("b", model_template=template(serve_args=["--port-file", "/tmp/x"])), "serve_args.port_file"),
        (local_spec("b", model_template=template(serve_args=["--latency-ms"])), "serve_args"),
        (local_spec("../b", {"command": "engine"}), "file's name"),
        (local_spec("b", {"command": "engine"}, model="--config=/etc/x"), "aibrix.model"),
        (local_spec("b", {"command": "engine"}, model="/etc/passwd"), "aibrix.model"),
        (local_spec("b", {"command": "engine"}, model="a/../b"), "aibrix.model"),
    ],
)
async def test_what_cannot_be_started_is_refused_for_good(make: Make, spec: object, words: str) -> None:
    runtime = make("--model", "{model}")
    with pytest.raises(RuntimeFailed) as failed:
        await runtime.launch(spec)  # type: ignore[arg-type]
    assert words in failed.value.why
    assert not failed.value.retryable
    assert await runtime.list() == []


async def test_command_that_does_not_exist_or_takes_no_port(tmp_path: Path) -> None:
    commands = {"none": ["/does/not/exist", "{port}"], "deaf": ["true"]}
    runtime = Local(settings(tmp_path, **commands))
    with pytest.raises(RuntimeFailed, match="No such file"):
        await runtime.launch(local_spec("b", {"command": "none"}))
    with pytest.raises(RuntimeFailed, match=r"no \{port\}"):
        await runtime.launch(local_spec("b", {"command": "deaf"}))
    assert list((tmp_path / "runner" / "engines").glob("*.json")) == []


async def test_engine_that_exits_at_once_says_why_without_secrets(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACME_TOKEN", "canary-1234567")
    runtime = make("--exit")
    handle = await runtime.launch(SPEC)

    async def gone() -> Gone | None:
        probe = await runtime.probe(SPEC, handle)
        return probe if isinstance(probe, Gone) else None

    why = (await until(gone, "Gone")).why
    assert "status 3" in why
    assert "loading the model" in why
    assert "my token is ***" in why
    assert "canary" not in why
    # the next launch starts another
    assert (await runtime.launch(SPEC))["mark"] != handle["mark"]


async def test_our_own_settings_do_not_reach_the_engine(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIBRIX_OBJECTS__SECRET_ACCESS_KEY", "canary-1234567")
    runtime = make()
    handle = await runtime.launch(SPEC)
    for pid in (handle["pid"], handle["engine_pid"]):
        environment = Path(f"/proc/{pid}/environ")
        if environment.exists():
            assert b"canary" not in environment.read_bytes()


async def test_engine_that_ignores_sigterm_is_killed_after_the_grace(make: Make) -> None:
    runtime = make("--deaf", grace_s=0.3)
    handle = await runtime.launch(SPEC)
    await until_ready(runtime, SPEC, handle)
    began = time.monotonic()
    await runtime.release(handle)
    assert 0.3 <= time.monotonic() - began < 10
    assert not alive(handle["engine_pid"])
    assert not alive(handle["pid"])


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets a guardian adopt what left the group")
@pytest.mark.parametrize("how", ["release", "engine killed", "guardian killed"])
async def test_workers_end_too_even_those_that_left_the_group(
    make: Make, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    mark = uuid.uuid4().hex
    monkeypatch.setenv(MARK, mark)
    runtime = make("--workers")
    handle = await runtime.launch(SPEC)
    await until_ready(runtime, SPEC, handle)
    await until(lambda: len(marked(mark)) == 4, "guardian, engine and two workers")
    match how:
        case "release":
            await runtime.release(handle)
        case "engine killed":
            os.kill(handle["engine_pid"], signal.SIGKILL)
            await until(lambda: not marked(mark), "the guardian cleaned up by itself")
            probe = await runtime.probe(SPEC, handle)
            assert isinstance(probe, Gone)
            assert "SIGKILL" in probe.why
        case _:
            os.kill(handle["pid"], signal.SIGKILL)
            await until(lambda: not alive(handle["engine_pid"]), "the kernel ended the engine")
            assert isinstance(await runtime.probe(SPEC, handle), Gone)
    assert marked(mark) == []
    assert await runtime.list() == []


async def test_log_is_bounded(make: Make) -> None:
    runtime = make("--chatty")
    handle = await runtime.launch(SPEC)
    await until_ready(runtime, SPEC, handle)
    logs = list(Path(handle["log"]).parent.glob("*.log*"))
    assert 1_000_000 < sum(path.stat().st_size for path in logs) < 9 * 1024 * 1024


async def test_stranger_on_the_port_is_not_taken_for_the_engine(make: Make) -> None:
    runtime = make("--silent")
    handle = await runtime.launch(SPEC)
    with socket.socket() as stranger:
        stranger.bind(("127.0.0.1", handle["port"]))
        stranger.listen()
        probe = await runtime.probe(SPEC, handle)
    assert isinstance(probe, Pending)
    assert "does not listen" in probe.detail


async def test_cancelled_launch_loses_no_engine(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    mark = uuid.uuid4().hex
    monkeypatch.setenv(MARK, mark)
    runtime = make()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.005):
            await runtime.launch(SPEC)
    await until(runtime.list, "the engine is known")
    handle = await runtime.launch(SPEC)
    await until_ready(runtime, SPEC, handle)
    assert len(marked(mark)) == 2
    await runtime.close()
    assert marked(mark) == []


async def test_recycled_pid_is_not_killed(make: Make, tmp_path: Path) -> None:
    """A record whose numbers belong to somebody else by now: nobody is signalled, and the record goes."""
    runtime = make()
    bystander = await asyncio.create_subprocess_exec(sys.executable, "-c", "import time; time.sleep(600)")
    try:
        record = {
            "key": "batch_1",
            "mark": "f" * 32,
            "pid": bystander.pid,
            "start_time": "another:1",
            "engine_pid": bystander.pid,
            "owner_pid": bystander.pid,
            "owner_start_time": "another:1",
        }
        folder = tmp_path / "runner" / "engines"
        folder.mkdir(parents=True)
        (folder / "batch_1.ffffffff.json").write_text(json.dumps(record))
        await runtime.release(record)
        assert list(folder.iterdir()) == []
        (folder / "batch_1.ffffffff.json").write_text(json.dumps(record))
        assert await runtime.list() == []
        assert list(folder.iterdir()) == []
        assert bystander.returncode is None
    finally:
        bystander.kill()
        await bystander.wait()


class RunnerProcess:
    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    async def reaches(self, moment: str) -> dict[str, object]:
        assert self.process.stdout is not None
        while line := await self.process.stdout.readline():
            message: dict[str, object] = json.loads(line)
            if message["moment"] == moment:
                return message
        raise AssertionError(f"it ended before {moment}")

    async def release(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(b"release\n")
        await self.process.stdin.drain()

    async def kill(self) -> None:
        self.process.kill()
        await self.process.wait()


@asynccontextmanager
async def runner_process(folder: Path, mark: str, *flags: str) -> AsyncIterator[RunnerProcess]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.runtimes.runner_process",
        str(folder),
        *flags,
        cwd=PROJECT,
        env={**os.environ, MARK: mark, "PYTHONPATH": str(PROJECT)},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        yield RunnerProcess(process)
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


@pytest.mark.parametrize("delay", [0.0, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.12, 0.2])
async def test_runner_killed_while_it_launches(tmp_path: Path, delay: float) -> None:
    mark = uuid.uuid4().hex
    async with runner_process(tmp_path, mark) as runner:
        await runner.reaches("launching")
        await asyncio.sleep(delay)
        await runner.kill()
        await until(lambda: not marked(mark), "no process is left")


@pytest.mark.parametrize("moment", ["launched", "ready", "releasing"])
@pytest.mark.parametrize("flags", [(), ("--deaf", "--workers")])
async def test_runner_killed_later(tmp_path: Path, moment: str, flags: tuple[str, ...]) -> None:
    mark = uuid.uuid4().hex
    async with runner_process(tmp_path, mark, *flags) as runner:
        if moment == "releasing":
            await runner.reaches("ready")
            await runner.release()
        await runner.reaches(moment)
        await runner.kill()
        await until(lambda: not marked(mark), "no process is left")
    assert list((tmp_path / "runner" / "engines").glob("*.json")) == []


@pytest.mark.skipif(sys.platform != "linux", reason="needs the kernel to end the engine")
async def test_runner_and_guardian_killed_at_once(tmp_path: Path, make: Make) -> None:
    """The engine ends with its guardian; its workers, whom nobody watches any more, are found by the next runner."""
    mark = uuid.uuid4().hex
    async with runner_process(tmp_path, mark, "--workers") as runner:
        handle = await runner.reaches("ready")
        await until(lambda: len(marked(mark)) == 5, "runner, guardian, engine and two workers")
        os.kill(int(str(handle["pid"])), signal.SIGSTOP)  # so that it cannot act on the end of the runner
        await runner.kill()
        os.kill(int(str(handle["pid"])), signal.SIGKILL)
        await until(lambda: not alive(int(str(handle["engine_pid"]))), "the kernel ended the engine")
    assert len(marked(mark)) == 2

    following = make()
    found = await following.list()
    assert [each["key"] for each in found] == ["batch_1"]
    await following.launch(local_spec("batch_2", {"command": "engine"}))
    assert marked(mark) == []
    assert [each["key"] for each in await following.list()] == ["batch_2"]


async def test_takeover_cleans_up_by_the_handle(tmp_path: Path, make: Make) -> None:
    """The old runner lives, cut off; the new one has only the handle."""
    mark = uuid.uuid4().hex
    async with runner_process(tmp_path, mark) as runner:
        message = await runner.reaches("ready")
        handle = {name: value for name, value in message.items() if name != "moment"}
        following = make()
        assert await following.list() == []  # it is not an orphan: its runner lives
        assert isinstance(await following.probe(SPEC, handle), Gone)
        await following.release(handle)
        await until(lambda: marked(mark) == [runner.process.pid], "only the old runner is left")
