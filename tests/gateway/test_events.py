"""Server-sent events, over real HTTP and a real gRPC stream."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from brix.console.v1 import access_pb2
from brix.type.v1.job_pb2 import Job
from gateway import console_keys, events
from gateway.auth import new_key
from services.kit import errors
from services.kit.errors import NotFound
from tests.gateway.front import Front, eventually, gateway_of, settings_for
from tests.gateway.scripted import Script, scripted

PATH = "/api/v1/jobs/job_1/events"


@dataclass
class Watched:
    """A job that changes when the test says so."""

    script: Script
    front: Front
    changes: asyncio.Queue[Job | Exception | None] = field(default_factory=asyncio.Queue)

    def __post_init__(self) -> None:
        self.script.answers["WatchJob"] = self._watch

    async def _watch(self, request: Any) -> AsyncIterator[Job]:
        while (change := await self.changes.get()) is not None:
            if isinstance(change, Exception):
                raise change
            yield change

    def change(self, *revisions: int, **fields: Any) -> None:
        for revision in revisions:
            self.changes.put_nowait(Job(id="job_1", revision=revision, **fields))

    def end(self) -> None:
        self.changes.put_nowait(None)

    @asynccontextmanager
    async def get(self, path: str = PATH, **headers: str) -> AsyncIterator[aiohttp.ClientResponse]:
        async with self.front.session.get(self.front.url + path, headers=headers) as response:
            yield response


@pytest.fixture
async def watched(tmp_path: Path) -> AsyncIterator[Watched]:
    async with scripted() as script, gateway_of(settings_for(tmp_path), "127.0.0.1:1", script.address) as front:
        yield Watched(script, front)


async def block(response: aiohttp.ClientResponse) -> dict[str, str]:
    """The next event, field by field; a comment has no name. Empty at the end."""
    fields: dict[str, str] = {}
    async with asyncio.timeout(20):
        while line := (await response.content.readline()).decode():
            if line == "\n":
                return fields
            name, _, value = line.rstrip("\n").partition(": ")
            fields[name] = value
    return fields


async def test_changes_arrive_one_by_one_and_then_it_ends(watched: Watched) -> None:
    watched.change(1, status=Job.QUEUED)
    async with watched.get() as response:
        assert (response.status, response.headers["Content-Type"]) == (200, "text/event-stream")
        assert response.headers["Cache-Control"] == "no-store"
        assert response.headers["x-request-id"]
        assert await block(response) == {"retry": "2000"}
        first = await block(response)
        assert (first["id"], first["event"]) == ("1", "job")
        job = json.loads(first["data"])
        assert (job["id"], job["object"], job["status"]) == ("job_1", "job", "queued")
        watched.change(2, 5)
        assert [(await block(response))["id"], (await block(response))["id"]] == ["2", "5"]
        watched.end()
        assert await block(response) == {}
    assert watched.script.last().project_id == "default"


async def test_a_client_that_comes_back_gets_only_what_is_newer(watched: Watched) -> None:
    watched.change(3, 4, 7)
    watched.end()
    async with watched.get(PATH + "?after_revision=2", **{"Last-Event-ID": "4"}) as response:
        await block(response)
        assert (await block(response))["id"] == "7"
        assert await block(response) == {}
    assert watched.script.last().after_revision == 4


async def test_nothing_newer_of_a_job_that_has_ended(watched: Watched) -> None:
    watched.change(4)
    watched.end()
    async with watched.get(**{"Last-Event-ID": "4"}) as response:
        assert (response.status, await response.read()) == (204, b"")


@pytest.mark.parametrize("id", ["x", "-1", "1.0", "9" * 20, "9223372036854775808"])
async def test_a_last_event_that_is_none(watched: Watched, id: str) -> None:
    answer = await watched.front.call("GET", PATH, headers={"Last-Event-ID": id})
    assert (answer.status, answer.error["param"]) == (400, "Last-Event-ID")
    assert watched.script.asked == []


async def test_a_job_that_is_not_there(watched: Watched) -> None:
    watched.changes.put_nowait(NotFound("No job found with id 'job_1'.", param="id"))
    answer = await watched.front.call("GET", PATH)
    assert (answer.status, answer.error["param"]) == (404, "id")


@pytest.mark.parametrize(
    ("error", "kind"), [(errors.Unavailable("later"), "server_error"), (RuntimeError("secret"), "server_error")]
)
async def test_a_fault_in_the_middle_is_an_event(watched: Watched, error: Exception, kind: str) -> None:
    watched.change(1)
    watched.changes.put_nowait(error)
    async with watched.get() as response:
        await block(response)
        assert (await block(response))["id"] == "1"
        last = await block(response)
        assert last["event"] == "error"
        said = json.loads(last["data"])["error"]
        assert (said["type"], "secret" in said["message"]) == (kind, False)
        assert "id" not in last
        assert await block(response) == {}


async def test_a_free_object_with_line_breaks_stays_one_line(watched: Watched) -> None:
    watched.change(1, metadata_json='{\n  "a":\r\n "b\\n"\n}')
    watched.end()
    async with watched.get() as response:
        await block(response)
        event = await block(response)
        assert json.loads(event["data"])["metadata"] == {"a": "b\n"}
        assert await block(response) == {}


async def test_a_stream_that_is_silent_says_that_it_is_there(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "FIRST_S", 0.01)
    monkeypatch.setattr(events, "LOOK_S", 0.01)
    monkeypatch.setattr(events, "HEARTBEAT_S", 0.05)
    async with watched.get() as response:
        assert await block(response) == {"retry": "2000"}
        assert await block(response) == {"": "still there"}
        watched.change(1)
        while "id" not in (event := await block(response)):
            assert event == {"": "still there"}
        assert event["id"] == "1"


async def test_a_client_that_leaves_ends_the_call(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "LOOK_S", 0.02)
    watched.change(1)
    async with watched.get() as response:
        await block(response)
        await block(response)
        assert watched.script.watching == 1
        response.close()
    await eventually(lambda: watched.script.watching == 0)


async def test_a_client_that_does_not_read_is_cut_off(watched: Watched, tmp_path: Path) -> None:
    """And holds no more of its stream in memory than sockets do: the console is not asked for more."""
    sent = 0

    async def endless(request: Any) -> AsyncIterator[Job]:
        nonlocal sent
        for revision in range(1, 100_000):
            sent = revision
            yield Job(id="job_1", revision=revision, name="x" * 100_000)

    watched.script.answers["WatchJob"] = endless
    settings = settings_for(tmp_path, idle_timeout_s=0.3)
    async with gateway_of(settings, "127.0.0.1:1", watched.script.address) as front:
        host, _, port = front.address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port), limit=1024)
        writer.write(f"GET {PATH} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
        await reader.readline()
        await eventually(lambda: watched.script.watching == 1)
        await eventually(lambda: watched.script.watching == 0)
        assert sent < 1000
        writer.close()


async def test_streams_end_when_the_server_stops(watched: Watched, tmp_path: Path) -> None:
    watched.change(1)
    async with aiohttp.ClientSession() as session:
        async with gateway_of(settings_for(tmp_path), "127.0.0.1:1", watched.script.address) as front:
            response = await session.get(front.url + PATH)
            await block(response)
            await block(response)
            stopping = asyncio.get_running_loop().time()
        assert asyncio.get_running_loop().time() - stopping < 5
        assert await block(response) == {}


async def test_a_revoked_key_ends_its_streams(
    watched: Watched, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("LOOK_S", 0.02), ("CHECK_KEY_S", 0.05)):
        monkeypatch.setattr(events, name, value)
    monkeypatch.setattr(console_keys, "BELIEVED_S", 0.05)
    known: dict[str, Any] = {"answer": access_pb2.Principal(project_id="p", key_id="k", name="n")}
    watched.script.answers["Authenticate"] = asked(lambda: known["answer"])
    key, _ = new_key("p", "n")
    _, line = new_key("file", "operator")
    (tmp_path / "keys").write_text(line + "\n")
    settings = settings_for(tmp_path).model_copy(update={"api_keys_file": str(tmp_path / "keys")})
    async with gateway_of(settings, "127.0.0.1:1", watched.script.address) as front:
        watched.front = front
        watched.change(1)
        async with watched.get(Authorization=f"Bearer {key}") as response:
            await block(response)
            assert (await block(response))["id"] == "1"
            known["answer"] = errors.Unavailable("down")
            checks = len(watched.script.asked) + 3
            await eventually(lambda: len(watched.script.asked) > checks)
            watched.change(2)
            assert (await block(response))["id"] == "2"
            known["answer"] = NotFound("revoked")
            assert await block(response) == {}
    assert watched.script.last().DESCRIPTOR.name == "AuthenticateRequest"


def asked(answer: Callable[[], Any]) -> Callable[[Any], Any]:
    def say(request: Any) -> Any:
        said = answer()
        if isinstance(said, Exception):
            raise said
        return said

    return say
