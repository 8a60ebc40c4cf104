"""Secrets: in, encrypted, never out again but for this process; and what happens when keys or rows are not what they were."""

from __future__ import annotations

import asyncio
import secrets as random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import sqlalchemy as sa
from pydantic import SecretStr

from brix.console.v1 import access_pb2
from services.console.server import run
from services.console.service.access_cipher import CannotOpen, KeyRing, Place, Sealed
from services.console.service.access_secrets import LARGEST_VALUE, SecretService
from services.console.store.tables_access import secrets
from services.kit.errors import Conflict, InvalidArgument, NotFound
from services.kit.settings import Settings
from services.kit.sql import Database, create_engine
from services.kit.transactions import Transactions
from tests.console.conftest import Console, serving_console

OLD, NEW = random.token_hex(32), random.token_hex(32)
CANARY = "canary-" + random.token_hex(16)
HERE = Place("secrets", "secret_1", "ciphertext")


@pytest.fixture
async def console(make_settings: Callable[..., Settings], database_url: str) -> AsyncIterator[Console]:
    """With a key for secrets."""
    settings = make_settings(console={"database_url": database_url}, secrets_encryption_key=SecretStr(OLD))
    async with serving_console(settings) as served:
        yield served


async def put(console: Console, name: str, value: str = CANARY, project: str = "default") -> access_pb2.Secret:
    console.clock.advance(1)
    request = access_pb2.CreateSecretRequest(project_id=project, name=name, value=value)
    return await console.access.CreateSecret(request)


async def listed(console: Console, project: str = "default", **fields: Any) -> access_pb2.ListSecretsResponse:
    return await console.access.ListSecrets(access_pb2.ListSecretsRequest(project_id=project, **fields))


async def remove(console: Console, id: str, project: str = "default") -> None:
    await console.access.DeleteSecret(access_pb2.DeleteSecretRequest(project_id=project, id=id))


@asynccontextmanager
async def inside(console: Console, keys: str = OLD) -> AsyncIterator[tuple[SecretService, Any]]:
    """The service as a part of the process has it, and the database behind it."""
    engine = create_engine(console.settings.console_database_url())
    async with engine.connect() as connection:
        yield SecretService(Transactions(Database(engine), console.clock), KeyRing(keys)), connection
    await engine.dispose()


async def rows(connection: Any) -> dict[str, dict[str, Any]]:
    await connection.rollback()
    return {row["name"]: dict(row) for row in (await connection.execute(sa.select(secrets))).mappings()}


async def test_a_secret_goes_in_and_comes_out_only_inside(console: Console) -> None:
    made = await put(console, "HF_TOKEN")
    assert CANARY not in str(made)
    assert CANARY not in str(await listed(console))
    async with inside(console) as (service, connection):
        assert await service.decrypt("default", "HF_TOKEN") == CANARY
        row = (await rows(connection))["HF_TOKEN"]
        assert CANARY.encode() not in row["ciphertext"]
        assert CANARY not in str(row)


async def test_the_same_name_again_replaces_the_value(console: Console) -> None:
    first = await put(console, "TOKEN", "one")
    second = await put(console, "TOKEN", "two")
    assert (second.id, second.create_time) == (first.id, first.create_time)
    assert second.update_time.seconds == first.update_time.seconds + 1
    assert len((await listed(console)).data) == 1
    async with inside(console) as (service, _):
        assert await service.decrypt("default", "TOKEN") == "two"


async def test_many_at_once_leave_one(console: Console) -> None:
    made = await asyncio.gather(*(put(console, "TOKEN", f"v{number}") for number in range(10)))
    assert len({secret.id for secret in made}) == 1
    async with inside(console) as (service, _):
        assert (await service.decrypt("default", "TOKEN")).startswith("v")


async def test_a_deleted_secret_is_gone_for_good(console: Console) -> None:
    made = await put(console, "TOKEN")
    await remove(console, made.id)
    assert list((await listed(console)).data) == []
    async with inside(console) as (service, connection):
        assert (await rows(connection))["TOKEN"]["ciphertext"] is None
        with pytest.raises(NotFound):
            await service.decrypt("default", "TOKEN")
    with pytest.raises(NotFound):
        await remove(console, made.id)
    again = await put(console, "TOKEN", "new")
    assert again.id != made.id


async def test_anothers_secrets_are_not_there(console: Console) -> None:
    made = await put(console, "TOKEN")
    assert list((await listed(console, "other")).data) == []
    for id in (made.id, "", "\0", "secret_x"):
        with pytest.raises(NotFound):
            await remove(console, id, "other")
    theirs = await put(console, "TOKEN", "theirs", project="other")
    assert theirs.id != made.id
    async with inside(console) as (service, _):
        assert await service.decrypt("default", "TOKEN") == CANARY
        assert await service.decrypt("other", "TOKEN") == "theirs"
        for name in ("token", "NONE", "\0", ""):
            with pytest.raises(NotFound):
                await service.decrypt("default", name)


async def test_two_rows_cannot_be_exchanged(console: Console) -> None:
    """Whoever may write to the database still cannot make one project's secret another's."""
    await put(console, "A", "one")
    await put(console, "B", "two", project="other")
    async with inside(console) as (service, connection):
        found = await rows(connection)
        for name, other in (("A", "B"), ("B", "A")):
            change = secrets.update().where(secrets.c.name == name)
            await connection.execute(change.values(ciphertext=found[other]["ciphertext"]))
        await connection.commit()
        for project, name in (("default", "A"), ("other", "B")):
            with pytest.raises(Conflict, match="cannot be decrypted") as caught:
                await service.decrypt(project, name)
            assert "two" not in caught.value.message


async def test_a_key_is_changed_by_putting_a_new_one_in_front(console: Console) -> None:
    await put(console, "OLD", "old value")
    async with inside(console, f"{NEW}, {OLD}") as (service, connection):
        await service.create_secret("default", "NEW", "new value")
        assert await service.decrypt("default", "OLD") == "old value"
        assert await service.decrypt("default", "NEW") == "new value"
        found = await rows(connection)
        assert found["OLD"]["key_version"] != found["NEW"]["key_version"]
    async with inside(console, NEW) as (service, _):
        assert await service.decrypt("default", "NEW") == "new value"
        with pytest.raises(Conflict, match="is not in SECRETS_ENCRYPTION_KEY"):
            await service.decrypt("default", "OLD")


async def test_without_a_key_no_secret_is_taken(make_settings: Callable[..., Settings], database_url: str) -> None:
    async with serving_console(make_settings(console={"database_url": database_url})) as console:
        with pytest.raises(Conflict, match="SECRETS_ENCRYPTION_KEY"):
            await put(console, "TOKEN")
        assert list((await listed(console)).data) == []


@pytest.mark.parametrize("text", ["abc", "0" * 63, "0" * 65, "g" * 64, OLD + ",", OLD + "," + "x" * 64, "," + OLD])
async def test_a_key_of_another_form_stops_the_start(make_settings: Callable[..., Settings], text: str) -> None:
    with pytest.raises(ValueError, match="SECRETS_ENCRYPTION_KEY: key") as caught:
        async with run(make_settings(secrets_encryption_key=SecretStr(text))):
            raise AssertionError
    assert OLD not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value", "param", "code"),
    [
        ("", "v", "name", "missing_required_parameter"),
        ("a b", "v", "name", "invalid_value"),
        (".a", "v", "name", "invalid_value"),
        ("-a", "v", "name", "invalid_value"),
        ("a\0", "v", "name", "invalid_value"),
        ("é", "v", "name", "invalid_value"),
        ("a" * 129, "v", "name", "invalid_value"),
        ("a", "", "value", "missing_required_parameter"),
        ("a", CANARY + "\0", "value", "invalid_value"),
        ("a", CANARY + "x" * LARGEST_VALUE, "value", "string_above_max_length"),
        ("a", "é" * (LARGEST_VALUE // 2) + "x", "value", "string_above_max_length"),
    ],
)
async def test_what_is_wrong_with_a_secret(console: Console, name: str, value: str, param: str, code: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        await put(console, name, value)
    assert (caught.value.context["param"], caught.value.context["code"]) == (param, code)
    assert CANARY not in caught.value.message


async def test_pages_hold_their_place_when_secrets_are_deleted(console: Console) -> None:
    made = [(await put(console, f"S{number}")).id for number in range(4)][::-1]
    first = await listed(console, limit=2)
    assert ([secret.id for secret in first.data], first.has_more) == (made[:2], True)
    await remove(console, made[1])
    rest = await listed(console, limit=2, after=made[1])
    assert ([secret.id for secret in rest.data], rest.has_more) == (made[2:], False)
    assert list((await listed(console, after="secret_x")).data) == []


async def test_nothing_of_a_secret_is_logged(console: Console, caplog: Any, capsys: Any) -> None:
    made = await put(console, "TOKEN")
    async with inside(console, NEW) as (service, _):
        with pytest.raises(Conflict):
            await service.decrypt("default", "TOKEN")
    await remove(console, made.id)
    said = caplog.text + "".join(capsys.readouterr())
    assert made.id in said
    assert CANARY not in said
    assert OLD not in said


class TestKeyRing:
    ring = KeyRing(OLD)

    @pytest.mark.parametrize("value", ["v", "é" * 1000, "\n", "x" * LARGEST_VALUE])
    def test_there_and_back(self, value: str) -> None:
        assert self.ring.open(self.ring.seal(value, HERE), HERE) == value

    def test_the_same_value_never_looks_the_same(self) -> None:
        assert len({self.ring.seal("v", HERE).ciphertext for _ in range(100)}) == 100

    @pytest.mark.parametrize(
        "place",
        [
            Place("secrets", "secret_2", "ciphertext"),
            Place("api_keys", "secret_1", "ciphertext"),
            Place("secrets", "secret_1", "name"),
        ],
        ids=str,
    )
    def test_elsewhere_it_does_not_open(self, place: Place) -> None:
        with pytest.raises(CannotOpen):
            self.ring.open(self.ring.seal("v", HERE), place)

    @pytest.mark.parametrize("at", [0, 11, 12, -1])
    def test_one_changed_bit_is_noticed(self, at: int) -> None:
        sealed = self.ring.seal("value", HERE)
        changed = bytearray(sealed.ciphertext)
        changed[at] ^= 1
        with pytest.raises(CannotOpen):
            self.ring.open(Sealed(bytes(changed), sealed.version), HERE)

    @pytest.mark.parametrize("ciphertext", [b"", b"x", b"x" * 12, b"x" * 27])
    def test_what_is_too_short_to_be_one(self, ciphertext: bytes) -> None:
        with pytest.raises(CannotOpen):
            self.ring.open(Sealed(ciphertext, self.ring.seal("v", HERE).version), HERE)

    def test_a_ring_may_be_empty_and_shows_no_keys(self) -> None:
        assert not KeyRing("")
        assert not KeyRing("  ")
        assert OLD not in repr(KeyRing(OLD))
        assert KeyRing(OLD.upper()).open(self.ring.seal("v", HERE), HERE) == "v"
