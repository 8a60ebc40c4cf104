"""`run` as a real process against a real engine: what it writes, how it ends, and how it goes on."""

from __future__ import annotations

import asyncio
import signal
from asyncio.subprocess import Process
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.cli.support import COMMAND, PATIENCE_S, cli, environment, ids, read_lines, request, write_lines
from tests.e2e.processes import Witness, witness

COUNT = 400
NAMES = [f"r-{number}" for number in range(COUNT)]
ONCE = Counter(NAMES)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_lines(tmp_path / "in.jsonl", *map(request, NAMES))


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "out.jsonl"


@contextmanager
def folder_gone(target: Path) -> Iterator[None]:
    yield
    assert not target.with_name("out.jsonl.aibrix").exists()


async def start(source: Path, target: Path, engine: Witness, *more: str, **env: str) -> Process:
    argv = (*COMMAND, "run", "-i", str(source), "-o", str(target), "--base-url", engine.url, *more)
    return await asyncio.create_subprocess_exec(
        *argv, env=environment(**env), stderr=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.DEVNULL
    )


async def end(process: Process) -> tuple[int, str]:
    async with asyncio.timeout(PATIENCE_S):
        _, said = await process.communicate()
    assert process.returncode is not None
    return process.returncode, said.decode()


async def test_every_line_succeeds(source: Path, target: Path) -> None:
    async with witness(latency_s=0.001) as engine:
        with folder_gone(target):
            code, said = await end(await start(source, target, engine))
    assert code == 0, said
    assert ids(target) == ONCE
    assert engine.times() == ONCE
    assert f"{COUNT}/{COUNT} completed, 0 failed" in said
    assert not target.with_name("out.jsonl.errors.jsonl").exists()


async def test_some_lines_fail(source: Path, target: Path, tmp_path: Path) -> None:
    argv = ("mock-engine", "--port", "0", "--error-rate", "0.2", "--seed", "3")
    pipe = asyncio.subprocess.PIPE
    engine = await asyncio.create_subprocess_exec(*COMMAND, *argv, env=environment(), stdout=pipe)
    assert engine.stdout is not None
    url = (await engine.stdout.readline()).decode().split()[-1]
    errors = tmp_path / "failed.jsonl"
    try:
        argv = ("run", "-i", str(source), "-o", str(target), "--base-url", f"{url}/v1", "--error-file", str(errors))
        done = await asyncio.to_thread(cli, *argv, AIBRIX_BATCH_INFERENCE_MAX_RETRIES="0")
    finally:
        engine.terminate()
        assert await engine.wait() == 0
    assert done.returncode == 1, done.stderr
    assert ids(target, errors) == ONCE
    assert 40 <= len(read_lines(errors)) <= 120
    assert all(line["response"]["status_code"] == 500 for line in read_lines(errors))
    assert str(errors) in done.stderr


async def test_ctrl_c_writes_what_is_done_and_resume_sends_the_rest(source: Path, target: Path) -> None:
    async with witness(latency_s=0.1) as engine:
        process = await start(source, target, engine, "--max-concurrency", "16")
        await engine.reached(60)
        process.send_signal(signal.SIGINT)
        code, said = await end(process)
        sent = engine.times()
        assert code == 130, said
        assert "--resume" in said
        assert ids(target) == sent  # all that was in flight was waited for, and is there
        assert 60 <= len(sent) < COUNT
        with folder_gone(target):
            code, said = await end(await start(source, target, engine, "--max-concurrency", "16", "--resume"))
    assert code == 0, said
    assert ids(target) == ONCE
    assert engine.times() == ONCE


async def test_kill_9_and_resume(source: Path, target: Path) -> None:
    async with witness(latency_s=0.05) as engine:
        env = {"AIBRIX_METADATA__LEASE_TTL_S": "2", "AIBRIX_RUNNER__SEGMENT_SECONDS": "0.2"}
        process = await start(source, target, engine, "--max-concurrency", "16", **env)
        await engine.reached(150)
        process.kill()
        await end(process)
        assert not target.exists()
        more = ("--max-concurrency", "16", "--resume")
        with folder_gone(target):
            code, said = await end(await start(source, target, engine, *more, **env))
    assert code == 0, said
    assert ids(target) == ONCE
    assert engine.times().keys() == ONCE.keys()
    assert max(engine.times().values()) <= 2
    again = sum(times - 1 for times in engine.times().values())
    assert again < 150, "lines that were committed were sent again"


async def test_a_signal_before_the_start_leaves_something_to_resume(source: Path, target: Path) -> None:
    async with witness(latency_s=2.0) as engine:  # nothing is done before the signal, however busy the computer is
        process = await start(source, target, engine, "--max-concurrency", "8")
        state = target.with_name("out.jsonl.aibrix") / "state.json"
        async with asyncio.timeout(PATIENCE_S):
            while not state.exists():
                await asyncio.sleep(0.005)
        process.send_signal(signal.SIGINT)
        code, said = await end(process)
        assert code == 130, said
        engine.latency_s = 0.02
        process = await start(source, target, engine, "--max-concurrency", "8", "--resume")
        code, said = await end(process)
    assert code == 0, said
    assert ids(target) == ONCE


async def test_resume_refuses_what_is_not_the_same_run(source: Path, target: Path) -> None:
    async with witness(latency_s=0.2) as engine:
        code, said = await end(await start(source, target, engine, "--resume"))
        assert (code, "nothing to resume" in said) == (2, True)

        process = await start(source, target, engine, "--max-concurrency", "8")
        await engine.reached(8)
        process.kill()
        await end(process)

        code, said = await end(await start(source, target, engine, "--max-concurrency", "8"))
        assert (code, "--resume" in said) == (2, True)
        code, said = await end(await start(source, target, engine, "--max-concurrency", "9", "--resume"))
        assert (code, "max_concurrency was 8, now it is 9" in said) == (2, True)
        write_lines(source, request("other"))
        code, said = await end(await start(source, target, engine, "--max-concurrency", "8", "--resume"))
        assert (code, "has changed" in said) == (2, True)
    assert target.with_name("out.jsonl.aibrix").exists()


async def test_faults_of_the_input_are_named_by_line(target: Path, tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", request("a"), request("b"), request("a"))
    async with witness() as engine:
        with folder_gone(target):
            code, said = await end(await start(source, target, engine))
    assert code == 2
    assert "line 3: " in said
    assert engine.seen == []
    assert not target.exists()


async def test_model_is_filled_in_where_it_is_missing(target: Path, tmp_path: Path) -> None:
    big = 2**70
    lines = [request("a", model=None), request("b", model="m1"), request("c")]
    del lines[2]["body"]["model"]
    source = tmp_path / "in.jsonl"
    write_lines(source, *lines)
    source.write_bytes(source.read_bytes().replace(b'"messages"', f'"seed":{big},"messages"'.encode(), 1) + b"\n\n")
    async with witness() as engine:
        code, said = await end(await start(source, target, engine, "--model", "m1"))
    assert code == 0, said
    assert ids(target) == Counter("abc")


async def test_another_model_is_an_error(target: Path, tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", request("a", model="m1"), request("b", model="m2"))
    async with witness() as engine:
        with folder_gone(target):
            code, said = await end(await start(source, target, engine, "--model", "m1"))
    assert code == 2
    assert 'line 2 names the model "m2", but --model is m1' in said
    assert engine.seen == []


def test_paths_are_checked_first(source: Path, tmp_path: Path) -> None:
    url = ("--base-url", "http://127.0.0.1:9")
    absent = cli("run", "-i", tmp_path / "no.jsonl", "-o", tmp_path / "out", *url)
    assert (absent.returncode, "is not a file" in absent.stderr) == (2, True)
    same = cli("run", "-i", source, "-o", source, *url)
    assert (same.returncode, "different files" in same.stderr) == (2, True)
    nowhere = cli("run", "-i", source, "-o", tmp_path / "no" / "out", *url)
    assert (nowhere.returncode, "does not exist" in nowhere.stderr) == (2, True)
    bad = cli("run", "-i", source, "-o", tmp_path / "out", "--base-url", "ftp://host")
    assert bad.returncode == 2, bad.stderr
    assert not (tmp_path / "out.aibrix").exists()
