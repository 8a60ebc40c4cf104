"""Values reach programs on the machine as one argument each, whatever they are: shown by a real shell there."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import asyncssh
import pytest
from hypothesis import HealthCheck, example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from services.kit.ssh.commands import MOST_OUTPUT, TimedOut, compose, run
from services.kit.ssh.connect import Patience, Unreachable, connect_once
from services.kit.ssh.keys import read_client_key
from services.runner.runtimes import ssh_scripts
from tests.runner.ssh.test_connect import target
from tests.runtimes.support import until
from tests.ssh.machine import Machine, machine

RECORD = 'record-args "$@"'
HOSTILE = [
    "$(touch $HOME/hit)",
    "`touch $HOME/hit`",
    "'; touch $HOME/hit; '",
    '"; touch $HOME/hit; "',
    "a b\tc",
    "line\nbreak\r\n",
    "\\",
    "\\'",
    "'\\''",
    "-rf",
    "--host=0.0.0.0",
    "${HOME}",
    "$HOME",
    "~",
    "*",
    "?",
    "[a-z]",
    "!history",
    "#comment",
    "&& touch $HOME/hit",
    "| tee $HOME/hit",
    "> $HOME/hit",
    "\x1b[31m",
    "\x01\x7f\x85",
    "\u2028\u202e\ufeff",
    "日本語 🚀",
    "",
    " ",
    "}\n}\ntouch $HOME/hit\nmain() {",
    "EOF\ntouch $HOME/hit",
    "exit 0",
    "\udcff".encode("utf-8", "surrogatepass").decode("latin-1"),
]
TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=40)
NASTY = st.lists(
    st.sampled_from(["'", '"', "$", "`", "(", ")", "\\", "\n", " ", "-", ";", "&", "}", "{", "a"]), max_size=12
)
VALUE = st.one_of(TEXT, NASTY.map("".join), st.sampled_from(HOSTILE))


@asynccontextmanager
async def connected(m: Machine) -> AsyncIterator[asyncssh.SSHClientConnection]:
    connection = await connect_once(target(m), read_client_key(str(m.key_file)), Patience())
    try:
        yield connection
    finally:
        connection.abort()


@pytest.fixture
async def connection(m: Machine) -> AsyncIterator[asyncssh.SSHClientConnection]:
    async with connected(m) as made:
        yield made


@pytest.mark.parametrize("shell", ["/bin/sh", "/bin/bash"])
async def test_hostile_values_arrive_as_one_argument_each(tmp_path: Path, shell: str) -> None:
    async with machine(tmp_path / "m", shell=shell) as m, connected(m) as connection:
        done = await run(connection, RECORD, HOSTILE, timeout_s=20)
        assert json.loads(done.output) == HOSTILE
        assert not (m.home / "hit").exists()


async def test_any_value_arrives_as_it_is(m: Machine, connection: asyncssh.SSHClientConnection) -> None:
    """Hypothesis is not asynchronous: its examples run in a thread, each over the one connection of this loop."""
    loop = asyncio.get_running_loop()

    @given(st.lists(st.lists(VALUE, max_size=6), min_size=1, max_size=20))
    @example([HOSTILE])
    @hypothesis_settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    def arrive(lists: list[list[str]]) -> None:
        # Many lists in one script, to spare round trips: each is the arguments of a program of its own.
        texts = [compose(RECORD, values, {"secret": "".join(values)}).decode() for values in lists]
        script = "\n".join(f"(\n{text}\n)" for text in texts)
        done = asyncio.run_coroutine_threadsafe(run(connection, script, timeout_s=30), loop).result()
        assert [json.loads(line) for line in done.output.splitlines()] == lists, done.complaints

    await asyncio.to_thread(arrive)
    assert not (m.home / "hit").exists()


async def test_hostile_models_and_flags_reach_the_engine_as_they_are(
    m: Machine, connection: asyncssh.SSHClientConnection
) -> None:
    """Through all shells between us and the program: the script's, and the one that is detached."""
    log = m.home / ".aibrix-batch" / "b" / "log"
    arguments = ["b", "1", "mark", "record-args", *HOSTILE]
    done = await run(
        connection, ssh_scripts.START_PROCESS, arguments, variables={"key": "k", "adopt": ""}, timeout_s=20
    )
    assert done.status == 0, done.complaints
    await until(lambda: len(log.read_text().splitlines()) == 2, "recorded")
    assert json.loads(log.read_text().splitlines()[1]) == HOSTILE
    assert not (m.home / "hit").exists()


async def test_hostile_images_and_flags_reach_docker_as_they_are(
    m: Machine, connection: asyncssh.SSHClientConnection
) -> None:
    m.knobs(images=["$(touch $HOME/hit)"])
    image, flags = "$(touch $HOME/hit)", ["--model", *HOSTILE]
    arguments = ["b", "1", "mark", image, "aibrix-b-1", "8000", *flags]
    done = await run(
        connection, ssh_scripts.START_CONTAINER, arguments, variables={"key": "k", "adopt": ""}, timeout_s=20
    )
    assert done.status == 0, done.complaints

    def call(command: str) -> list[str]:
        return next((call for call in m.docker_calls() if call[0] == command), [])

    await until(lambda: call("run") or (m.home / ".aibrix-batch" / "b" / "exit").exists(), "it was tried")
    assert call("pull") == ["pull", image]
    if call("run"):  # the daemon may refuse such a name before
        assert call("run")[-1 - len(flags) :] == [image, *flags]
    assert not (m.home / "hit").exists()


async def test_a_secret_is_a_variable_and_on_no_command_line(connection: asyncssh.SSHClientConnection) -> None:
    script = 'printf "%s" "$secret"; cat /proc/*/cmdline 2>/dev/null | tr "\\0" " "'
    done = await run(connection, script, variables={"secret": "s3cr't-$(id)"}, timeout_s=20)
    assert done.output.startswith("s3cr't-$(id)")
    assert "s3cr't" not in done.output.removeprefix("s3cr't")


@pytest.mark.parametrize("value", ["a\0b", "\ud800"])
async def test_what_no_program_can_be_given_is_refused_here(
    connection: asyncssh.SSHClientConnection, value: str
) -> None:
    for arguments, variables in (([value], {}), ([], {"name": value})):
        with pytest.raises(ValueError, match="a value"):
            await run(connection, RECORD, arguments, variables=variables, timeout_s=5)
    with pytest.raises(ValueError, match="plain name"):
        compose(RECORD, [], {"a; b": ""})


async def test_status_output_and_complaints_come_back_bounded(connection: asyncssh.SSHClientConnection) -> None:
    done = await run(connection, "head -c 3000000 /dev/zero; echo no >&2; exit 7", timeout_s=20)
    assert (done.status, len(done.output), done.complaints) == (7, MOST_OUTPUT, "no\n")
    assert (await run(connection, "kill -9 $$", timeout_s=20)).status == -1


async def test_a_command_that_does_not_end(connection: asyncssh.SSHClientConnection) -> None:
    with pytest.raises(TimedOut):
        await run(connection, "sleep 60", timeout_s=0.3)
    assert (await run(connection, "echo fine", timeout_s=20)).output == "fine\n"


async def test_a_connection_that_breaks_meanwhile(m: Machine, connection: asyncssh.SSHClientConnection) -> None:
    async with asyncio.TaskGroup() as group:
        failing = group.create_task(fails(connection))
        await asyncio.sleep(0)
        await m.drop_connections()
    assert isinstance(failing.result(), Unreachable)


async def fails(connection: asyncssh.SSHClientConnection) -> Exception | None:
    try:
        await run(connection, "sleep 60", timeout_s=30)
    except Unreachable as error:
        return error
    return None


async def test_scripts_are_plain_posix_sh(m: Machine, connection: asyncssh.SSHClientConnection) -> None:
    for name, script in vars(ssh_scripts).items():
        if name.isupper() and isinstance(script, str):
            text = f"main() {{\n{script}\n}}\n"
            done = await run(
                connection, 'printf %s "$1" | sh -n && printf %s "$1" | bash --posix -n', [text], timeout_s=10
            )
            assert (done.status, done.complaints) == (0, ""), name
