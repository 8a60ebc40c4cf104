"""Keys that were made in the console, at the door: asked of it by their hash, and not for long believed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from brix.console.v1 import access_pb2, access_pb2_grpc
from gateway import console_keys
from gateway.auth import NOBODY, new_key
from gateway.console_keys import ConsoleKeys
from services.kit import clock
from services.kit.errors import NotFound, Unavailable
from services.kit.server import channel
from services.metadata import server
from tests.gateway.front import NOWHERE, Answer, Front, gateway_of, settings_for
from tests.gateway.scripted import Script, scripted


@dataclass
class Door:
    script: Script
    front: Front
    operators: str
    keys: dict[str, access_pb2.Principal] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.script.answers["Authenticate"] = self._authenticate

    def _authenticate(self, request: Any) -> access_pb2.Principal:
        if request.key_hash not in self.keys:
            raise NotFound("No such API key.", param="key_hash")
        return self.keys[request.key_hash]

    def make(self, project: str) -> str:
        key, _ = new_key(project, "console")
        digest = sha256(key.encode()).hexdigest()
        self.keys[digest] = access_pb2.Principal(project_id=project, key_id="key_1", name=f"{project}'s")
        return key

    async def get(self, key: str, path: str = "/api/v1/quotas") -> Answer:
        return await self.front.call("GET", path, headers={"Authorization": f"Bearer {key}"})


class Time:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> Time:
    time = Time()
    monkeypatch.setattr(clock, "monotonic", time)
    return time


@pytest.fixture
async def door(tmp_path: Path) -> AsyncIterator[Door]:
    operators, line = new_key("ops", "operator")
    (tmp_path / "keys").write_text(line + "\n")
    settings = settings_for(tmp_path).model_copy(update={"api_keys_file": str(tmp_path / "keys")})
    async with (
        server.run(settings) as metadata,
        scripted() as script,
        gateway_of(settings, metadata, script.address) as front,
    ):
        yield Door(script, front, operators)


async def test_a_key_of_the_console_opens_its_project_everywhere(door: Door) -> None:
    key = door.make("team")
    assert (await door.get(key)).status == 200
    assert door.script.last() == access_pb2.GetQuotaRequest(project_id="team")
    assert (await door.get(key, "/v1/files")).status == 200
    body = {"input_dataset": "f", "endpoint": "e"}
    await door.front.post_json("/api/v1/jobs", body, Authorization=f"Bearer {key}")
    assert (door.script.last().project_id, door.script.last().created_by) == ("team", "team's")


async def test_the_console_learns_only_the_hash(door: Door) -> None:
    key = door.make("team")
    await door.get(key)
    assert all(key not in str(request) for _, request in door.script.asked)
    assert door.script.asked[0][1].key_hash == sha256(key.encode()).hexdigest()


async def test_the_operators_key_asks_nobody(door: Door) -> None:
    assert (await door.get(door.operators)).status == 200
    assert door.script.names() == ["GetQuota"]
    assert door.script.last().project_id == "ops"


@pytest.mark.parametrize("key", ["ab_short", "sk-" + "a" * 32, "ab_" + "a" * 31 + "!", "ab_" + "a" * 33, "x" * 5000])
async def test_what_has_not_the_form_of_a_key_is_not_asked(door: Door, key: str) -> None:
    answer = await door.get(key)
    assert (answer.status, answer.error["code"]) == (401, "invalid_api_key")
    assert door.script.asked == []


async def test_an_unknown_key_is_refused_and_not_repeated(door: Door, caplog: pytest.LogCaptureFixture) -> None:
    key, _ = new_key("team", "unknown")
    answer = await door.get(key)
    assert (answer.status, answer.error["code"]) == (401, "invalid_api_key")
    assert key.encode() not in answer.body
    assert key not in caplog.text


async def test_a_revoked_key_dies_within_ten_seconds(door: Door, time: Time) -> None:
    key = door.make("team")
    assert (await door.get(key)).status == 200
    door.keys.clear()
    time.now += 9.9
    assert (await door.get(key)).status == 200
    time.now += 0.2
    assert (await door.get(key)).status == 401
    assert console_keys.BELIEVED_S == 10


async def test_a_new_key_lives_within_ten_seconds_of_being_refused(door: Door, time: Time) -> None:
    key = door.make("team")
    made = dict(door.keys)
    door.keys.clear()
    assert (await door.get(key)).status == 401
    door.keys |= made
    assert (await door.get(key)).status == 401
    time.now += 10
    assert (await door.get(key)).status == 200


async def test_without_the_console_only_the_operators_keys_open(tmp_path: Path, door: Door) -> None:
    settings = door.front.settings
    async with gateway_of(settings, settings.metadata_addr, NOWHERE) as front:
        alone = Door(door.script, front, door.operators)
        assert (await alone.get(alone.operators, "/v1/files")).status == 200
        answer = await alone.get(alone.make("team"), "/v1/files")
        assert (answer.status, answer.error["type"]) == (503, "server_error")
        assert 0 < int(answer.headers["retry-after"]) <= 60
        assert (await alone.get("ab_wrong", "/v1/files")).status == 401


async def test_a_server_without_a_file_asks_nobody_for_a_key(tmp_path: Path, door: Door) -> None:
    folder = tmp_path / "open"
    async with gateway_of(settings_for(folder), NOWHERE, door.script.address) as front:
        answer = await Door(door.script, front, "").get(door.make("team"))
        assert answer.status == 200
        assert door.script.names() == ["GetQuota"]
        assert door.script.last().project_id == "default"
        assert NOBODY == "anonymous"


class TestAnswers:
    """What is remembered of the console's answers."""

    @pytest.fixture
    async def keys(self, door: Door) -> AsyncIterator[ConsoleKeys]:
        async with channel(door.script.address) as console:
            yield ConsoleKeys(access_pb2_grpc.AccessServiceStub(console))

    async def test_calls_with_one_key_ask_once(self, door: Door, keys: ConsoleKeys) -> None:
        key = door.make("team")
        found = await asyncio.gather(*(keys.find(key) for _ in range(50)))
        assert {each.project_id for each in found if each} == {"team"}
        assert door.script.names() == ["Authenticate"]

    async def test_an_outage_is_not_remembered(self, door: Door, keys: ConsoleKeys) -> None:
        key = door.make("team")
        answer = door.script.answers["Authenticate"]
        door.script.answers["Authenticate"] = Unavailable("down")
        outcomes = await asyncio.gather(*(keys.find(key) for _ in range(5)), return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} == {Unavailable}
        door.script.answers["Authenticate"] = answer
        assert await keys.find(key) is not None

    async def test_a_caller_that_is_cancelled_leaves_the_others_an_answer(self, door: Door, keys: ConsoleKeys) -> None:
        key, arrived, free = door.make("team"), asyncio.Event(), asyncio.Event()
        principal = next(iter(door.keys.values()))

        async def slowly(request: Any) -> access_pb2.Principal:
            arrived.set()
            await free.wait()
            return principal

        door.script.answers["Authenticate"] = slowly
        async with asyncio.TaskGroup() as group:
            first = group.create_task(keys.find(key))
            await arrived.wait()
            second = group.create_task(caught(keys, key))
            await asyncio.sleep(0)
            first.cancel()
            assert isinstance(await second, Unavailable)
            free.set()
            assert await keys.find(key) is not None

    async def test_only_so_many_are_remembered(
        self, door: Door, keys: ConsoleKeys, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(console_keys, "MOST", 3)
        made = [door.make(f"p{number}") for number in range(5)]
        for key in made:
            await keys.find(key)
        asked = len(door.script.asked)
        for key in made[2:]:
            assert await keys.find(key) is not None
        assert len(door.script.asked) == asked
        await keys.find(made[0])
        assert len(door.script.asked) == asked + 1


async def caught(keys: ConsoleKeys, key: str) -> BaseException | None:
    try:
        await keys.find(key)
    except Unavailable as error:
        return error
    return None
