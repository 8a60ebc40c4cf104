"""`vllm` and `docker` of the machine: they read what the real ones read, refuse the rest, and go wrong on request."""

from __future__ import annotations

import json
import os
import shlex
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import asyncssh
import pytest

from services.kit.engines.listed import HOST, SERVED, Integer, Kind, OneOf, Real, Switch
from services.kit.engines.vllm import LISTED, VLLM
from tests.conftest import free_port
from tests.e2e.processes import eventually
from tests.ssh.conftest import connect, say
from tests.ssh.machine import Machine

Line = asyncssh.SSHClientConnection

GONE = {"--swap-space", "--disable-log-requests"}
"""Flags of older versions that templates may still have: vLLM 0.33 refuses them."""
IMAGE = "vllm/vllm-openai:v0.33.0"


@pytest.fixture
def port() -> int:
    return free_port()


@asynccontextmanager
async def through(line: Line, port: int) -> AsyncIterator[aiohttp.ClientSession]:
    """HTTP to a port of the machine, by a forward."""
    async with (
        line.forward_local_port("127.0.0.1", 0, "127.0.0.1", port) as way,
        aiohttp.ClientSession(f"http://127.0.0.1:{way.get_port()}") as session,
    ):
        yield session


async def healthy(session: aiohttp.ClientSession) -> None:
    async def answers() -> bool:
        try:
            async with session.get("/health") as answer:
                return answer.status == 200
        except aiohttp.ClientError:
            return False

    await eventually(answers, "the engine is healthy", seconds=20)


async def chat(session: aiohttp.ClientSession, text: str, model: str = "m", **headers: str) -> int:
    body = {"model": model, "messages": [{"role": "user", "content": text}]}
    async with session.post("/v1/chat/completions", json=body, headers=headers) as answer:
        await answer.read()
        return answer.status


async def start(line: Line, port: int, *words: str, prefix: str = "") -> None:
    command = shlex.join(["vllm", "serve", "m", "--port", str(port), *words])
    await say(line, f"{prefix} setsid nohup {command} >log 2>&1 </dev/null &")


async def no_engine(here: Machine) -> None:
    async def none() -> bool:
        return not here.engines()

    await eventually(none, "no engine runs", here.log, seconds=20)


async def status(line: Line, command: str) -> tuple[int | None, str]:
    """Status and standard error."""
    done = await line.run(command, timeout=20)
    return done.exit_status, str(done.stderr)


def sample(kind: Kind) -> list[str]:
    match kind:
        case Switch():
            return []
        case Integer():
            return [str(kind.least)]
        case Real():
            return ["0.5"]
        case OneOf():
            return [kind.words[-1]]
        case _:
            return {id(HOST): ["127.0.0.1"], id(SERVED): ["m"]}.get(id(kind), ["name"])


# vllm


async def test_vllm_knows_each_flag_that_the_adapter_gives(here: Machine, line: Line) -> None:
    here.knobs(exit=0)
    words = [word for name, kind in LISTED.items() if name not in GONE for word in (name, *sample(kind))]
    rest = [word for name in sorted(VLLM.flags() - set(LISTED)) for word in (name, "x")]
    await say(line, shlex.join(["vllm", "serve", "m", *words, *rest]))
    await say(line, "vllm serve --max_model_len=32 m --served-model-name a b")
    await say(line, "vllm serve --model m")
    assert [call["argv"][-1] for call in here.calls()[1:]] == ["b", "m"]


REFUSED = [
    ("serve m --bogus", "vllm: error: unrecognized arguments: --bogus"),
    ("serve m --swap-space 4", "vllm: error: unrecognized arguments: --swap-space 4"),
    ("serve m n", "vllm: error: unrecognized arguments: n"),
    ("serve m --port eight", "vllm serve: error: argument --port: invalid int value: 'eight'"),
    ("serve m --dtype int8", "vllm serve: error: argument --dtype: invalid choice: 'int8'"),
    ("serve m --enforce-eager=false", "error: argument --enforce-eager/--no-enforce-eager: ignored explicit"),
    ("serve m --host", "vllm serve: error: argument --host: expected one argument"),
    ("launch m", "vllm: error: argument subparser: invalid choice: 'launch'"),
]


async def test_vllm_refuses_what_it_does_not_know(here: Machine, line: Line) -> None:
    for words, why in REFUSED:
        code, complaint = await status(line, f"vllm {words}")
        assert (code, why in complaint) == (2, True), (words, complaint)
    assert here.calls() == []


async def test_vllm_serves_with_a_key_and_counts(here: Machine, line: Line, port: int) -> None:
    await start(line, port, "--served-model-name", "served", prefix="VLLM_API_KEY=secret")
    async with through(line, port) as session:
        await healthy(session)
        assert await chat(session, "one", "served") == 401
        assert await chat(session, "one", "served", Authorization="Bearer wrong") == 401
        assert await chat(session, "one", "served", Authorization="Bearer secret") == 200
        assert await chat(session, "two", "m", Authorization="Bearer secret") == 404
    assert here.times() == {"one": 1, "two": 1}
    (call,) = here.calls()
    assert "VLLM_API_KEY" in call["env"]
    assert "secret" not in json.dumps(call)
    assert here.engines() == [call["pid"]]
    said = await say(line, "cat log")
    assert "Application startup complete." in said
    assert "secret" not in said
    await say(line, f"kill {call['pid']}")
    await no_engine(here)
    assert here.left_over() == []


async def test_a_key_on_the_command_line_is_in_the_log(here: Machine, line: Line) -> None:
    here.knobs(exit=0)
    assert "secret" in await say(line, "vllm serve m --api-key secret")


async def test_a_killed_engine_leaves_a_worker_that_keeps_the_gpu(here: Machine, line: Line, port: int) -> None:
    await start(line, port)
    async with through(line, port) as session:
        await healthy(session)
    (pid,) = here.engines()
    code, complaint = await status(line, f"vllm serve m --port {free_port()}")
    assert (code, "Free memory on device" in complaint) == (1, True)
    await say(line, f"kill -KILL {pid}")
    await no_engine(here)
    assert len(here.left_over()) == 1
    assert (await status(line, "vllm serve m"))[0] == 1
    await say(line, f"kill -KILL -- -{pid}")

    async def free() -> bool:
        return not here.left_over()

    await eventually(free, "the group is gone", seconds=20)


async def test_vllm_exits_as_told_for_as_many_starts_as_told(here: Machine, line: Line, port: int) -> None:
    here.knobs(exit=3, say="the key is $VLLM_API_KEY", log_bytes=1_000_000, first_starts=1)
    code, complaint = await status(line, "VLLM_API_KEY=secret vllm serve m")
    assert code == 3
    assert complaint.startswith("the key is secret\n")
    assert len(complaint) > 1_000_000
    await start(line, port)
    async with through(line, port) as session:
        await healthy(session)


async def test_vllm_dies_or_hangs_in_the_middle(here: Machine, line: Line, port: int) -> None:
    here.knobs(die_after_requests=2, first_starts=1)
    await start(line, port)
    async with through(line, port) as session:
        await healthy(session)
        assert await chat(session, "a") == 200
        with pytest.raises(aiohttp.ClientError):
            await chat(session, "b")
    await no_engine(here)
    assert here.left_over() == []
    here.knobs(hang_after_requests=1)
    await start(line, port)
    async with through(line, port) as session:
        await healthy(session)
        assert await chat(session, "a") == 200
        with pytest.raises(TimeoutError):
            async with session.get("/health", timeout=aiohttp.ClientTimeout(0.2)):
                pass
    assert here.times() == {"a": 2, "b": 1}


async def test_vllm_that_hangs_never_listens(here: Machine, line: Line, port: int) -> None:
    here.knobs(hang=True)
    await start(line, port)

    async def loading() -> bool:
        return "Loading model weights" in await say(line, "cat log")

    await eventually(loading, "it loads", seconds=20)
    async with through(line, port) as session:
        with pytest.raises(aiohttp.ClientError):
            await session.get("/health")
    assert len(here.engines()) == 1


# docker


def docker_run(port: int, *more: str, name: str = "one", image: str = IMAGE) -> str:
    words = ["docker", "run", "-d", "--name", name, "--label", "batch=b", "--gpus", "all", "--ipc=host"]
    return shlex.join([*words, "-p", f"127.0.0.1:{port}:8000", *more, image, "m"])


async def inspected(line: Line, name: str = "one") -> dict[str, Any]:
    state: dict[str, Any] = json.loads(await say(line, f"docker inspect --format '{{{{json .State}}}}' {name}"))
    return state


async def test_a_containers_life(here: Machine, line: Line, port: int) -> None:
    await say(line, f"docker pull {IMAGE}")
    await say(line, "echo VLLM_API_KEY=secret >env")
    identifier = await say(line, f"OTHER=x {docker_run(port, '--env-file', 'env', '-e', 'A=1', '-e', 'OTHER')}")
    assert len(identifier) == 64
    async with through(line, port) as session:
        await healthy(session)
        assert await chat(session, "one") == 401
        assert await chat(session, "one", Authorization="Bearer secret") == 200
    (call,) = here.calls()
    assert {"VLLM_API_KEY", "A", "OTHER"} <= set(call["env"])
    assert "SSH_CLIENT" not in call["env"]
    assert (await inspected(line))["Status"] == "running"
    assert await say(line, "docker inspect -f '{{.State.Running}} {{.State.ExitCode}}' one") == "true 0"
    assert await say(line, "docker inspect -f '{{index .Config.Labels \"batch\"}}' one") == "b"
    assert await say(line, "docker ps -aq --no-trunc --filter label=batch=b") == identifier
    assert await say(line, "docker ps -q --filter label=batch=c") == ""
    done = await line.run("docker logs --tail 2 one")
    assert "200" in str(done.stdout)
    assert str(await say(line, "docker logs one 2>&1")).count("startup complete") == 1
    assert (await status(line, "docker rm one"))[0] == 1
    await say(line, "docker stop -t 5 one")
    state = await inspected(line)
    assert (state["Status"], state["ExitCode"], here.left_over()) == ("exited", 0, [])
    await say(line, "docker start one")
    await say(line, "docker kill one")
    assert (await inspected(line))["ExitCode"] == 137
    await say(line, "docker rm -f one")
    assert (here.containers(), here.left_over()) == ([], [])
    await say(line, "docker rm -f one")
    assert await status(line, "docker logs one") == (1, "Error response from daemon: No such container: one\n")


DOCKER_REFUSED = [
    ("run --x img", 125, "unknown flag: --x\n\nUsage:  docker run [OPTIONS] IMAGE [COMMAND] [ARG...]"),
    ("run -dx img", 125, "unknown shorthand flag: 'x' in -dx"),
    ("run -d --name", 125, "flag needs an argument: --name"),
    ("run -d", 1, "docker: 'docker run' requires at least 1 argument"),
    ("run -d Upper", 125, "docker: invalid reference format: repository name (library/Upper) must be lowercase"),
    ("run -d 'a b'", 125, "docker: invalid reference format"),
    ("run -d --env-file nope img", 125, "docker: open nope: no such file or directory"),
    ("run -d --pull x img", 125, "docker: invalid pull option: 'x'"),
    ("run -d --pull never img", 125, "No such image: img:latest"),
    ("run -d --shm-size x img", 125, "invalid size: 'x'"),
    ("run -d --name 'a b' img", 125, "Invalid container name (a b)"),
    ("logs", 1, "docker: 'docker logs' requires 1 argument"),
    ("stop -t x one", 125, 'invalid argument "x" for "-t, --timeout" flag'),
    ("ps --filter x", 125, "bad format of filter"),
    ("inspect -f '{{.State' x", 1, "error: no such object: x"),
    ("version -f '{{.Client'", 64, "template parsing error"),
    ("image inspect other", 1, "No such image: other:latest"),
    ("bogus", 1, "docker: unknown command: docker bogus"),
    ("--x ps", 125, "unknown flag: --x"),
]


async def test_docker_refuses_as_docker_does(here: Machine, line: Line) -> None:
    for words, code, why in DOCKER_REFUSED:
        found, complaint = await status(line, f"docker {words}")
        assert (found, why in complaint) == (code, True), (words, complaint)
    assert here.containers() == []


async def test_names_and_ports_are_taken_once(here: Machine, line: Line, port: int) -> None:
    await say(line, docker_run(port))
    code, complaint = await status(line, docker_run(port))
    assert (code, 'The container name "/one" is already in use by container' in complaint) == (125, True)
    code, complaint = await status(line, docker_run(port, name="two"))
    assert (code, "port is already allocated" in complaint) == (125, True)
    # As with the real one, a container that could not start is there.
    assert (await inspected(line, "two"))["Status"] == "created"


async def test_what_a_container_cannot_do_in_a_real_one(here: Machine, line: Line, port: int) -> None:
    """Listening on the container's own loopback, or on another port, reaches nobody outside."""
    here.knobs(shared_gpu=True)
    await say(line, docker_run(port) + " --host 127.0.0.1")

    async def ready() -> bool:
        return "startup complete" in await say(line, "docker logs one 2>&1")

    await eventually(ready, "it listens", seconds=20)
    async with through(line, port) as session:
        with pytest.raises(aiohttp.ClientError):
            await session.get("/health")


@pytest.mark.parametrize(
    ("knob", "why"),
    [
        ({"pull_fails": "denied"}, "pull access denied for vllm/vllm-openai"),
        ({"pull_fails": "not_found"}, "manifest unknown"),
        ({"pull_fails": "disk"}, "no space left on device"),
        ({"docker_down": True}, "Cannot connect to the Docker daemon"),
        ({"docker_needs_root": True}, "permission denied while trying to connect to the Docker daemon"),
        ({"no_gpu_runtime": True}, "could not select device driver"),
    ],
)
async def test_docker_fails_as_told(here: Machine, line: Line, port: int, knob: dict[str, Any], why: str) -> None:
    here.knobs(**knob)
    code, complaint = await status(line, docker_run(port))
    assert (code, why in complaint) == (125, True), complaint


async def test_sudo_gives_root_and_takes_the_environment(here: Machine, line: Line, port: int) -> None:
    here.knobs(docker_needs_root=True)
    await say(line, f"SECRET=x sudo -n {docker_run(port, '-e', 'SECRET')}")

    async def called() -> bool:
        return bool(here.calls())

    await eventually(called, "it starts", seconds=20)
    assert "SECRET" not in here.calls()[0]["env"]
    code, complaint = await status(line, "sudo -E docker ps")
    assert (code, "invalid option" in complaint) == (1, True)
    here.knobs(sudo_password=True)
    assert await status(line, "sudo -n docker ps") == (1, "sudo: a password is required\n")


async def test_containers_end_with_the_machine(here: Machine, line: Line, port: int) -> None:
    await say(line, docker_run(port))
    await here.kill(everything=True)
    assert here.left_over() == []
    await here.start()
    async with await connect(here) as again:
        state = await inspected(again)
    assert (state["Status"], state["ExitCode"]) == ("exited", 255)


async def test_an_engine_that_fails_gives_its_status_to_the_container(here: Machine, line: Line, port: int) -> None:
    here.knobs(exit=3, say="no such model", log_bytes=200_000)
    await say(line, docker_run(port))

    async def ended() -> bool:
        return bool((await inspected(line))["Status"] == "exited")

    await eventually(ended, "it ends", seconds=20)
    assert (await inspected(line))["ExitCode"] == 3
    done = await line.run("docker logs --tail 1 one")
    assert str(done.stderr).startswith("RuntimeError: Engine core initialization failed")
    assert await say(line, "docker logs one 2>&1 | grep -c 'no such model'") == "1"


async def test_the_log_of_a_container_is_bounded_if_told(here: Machine, line: Line, port: int) -> None:
    here.knobs(exit=0, log_bytes=5_000_000)
    await say(
        line, docker_run(port, "--log-driver", "json-file", "--log-opt", "max-size=1m", "--log-opt", "max-file=2")
    )

    async def ended() -> bool:
        return bool((await inspected(line))["Status"] == "exited")

    await eventually(ended, "it ends", seconds=20)
    assert sum(path.stat().st_size for path in (here.home / "docker" / "one").glob("log*")) <= 2 << 20


async def test_a_signal_ends_engine_and_worker_together(here: Machine, line: Line, port: int) -> None:
    await start(line, port)
    async with through(line, port) as session:
        await healthy(session)
    os.kill(here.engines()[0], signal.SIGTERM)
    await no_engine(here)
    assert here.left_over() == []
