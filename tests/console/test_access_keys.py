"""API keys in the console: shown once, kept as a hash, good until they expire or are revoked."""

from __future__ import annotations

import asyncio
import string
from datetime import UTC, timedelta
from hashlib import sha256
from typing import Any

import pytest
import sqlalchemy as sa

import gateway.auth
from brix.console.v1 import access_pb2
from services.console import access
from services.console.service import access_keys
from services.console.service.access_keys import ApiKeyService
from services.console.store import access_keys as store
from services.console.store import access_secrets as secrets
from services.console.store.tables_access import api_keys
from services.kit.errors import InvalidArgument, NotFound, ResourceExhausted
from services.kit.sql import EPOCH, Database, create_engine
from services.kit.transactions import Transactions
from tests.console.conftest import Console

PAIRS: list[tuple[type, Any]] = [
    (access.ApiKey, access_pb2.ApiKey),
    (access.NewApiKey, access_pb2.CreateApiKeyRequest),
    (access.Principal, access_pb2.Principal),
    (access.Secret, access_pb2.Secret),
    (access.Quota, access_pb2.Quota),
    (access.QuotaChange, access_pb2.UpdateQuotaRequest),
]


@pytest.mark.parametrize(("cls", "message"), PAIRS, ids=lambda pair: pair.__name__)
def test_fields_are_the_proto_fields(cls: Any, message: Any) -> None:
    assert set(cls.__dataclass_fields__) == set(message.DESCRIPTOR.fields_by_name)


async def make(console: Console, name: str = "laptop", project: str = "default", **fields: Any) -> access_pb2.ApiKey:
    console.clock.advance(1)
    asked = access_pb2.CreateApiKeyRequest(project_id=project, name=name, **fields)
    return await console.access.CreateApiKey(asked)


async def enter(console: Console, key: str) -> access_pb2.Principal:
    digest = sha256(key.encode()).hexdigest()
    return await console.access.Authenticate(access_pb2.AuthenticateRequest(key_hash=digest))


async def listed(console: Console, project: str = "default", **fields: Any) -> access_pb2.ListApiKeysResponse:
    return await console.access.ListApiKeys(access_pb2.ListApiKeysRequest(project_id=project, **fields))


async def revoke(console: Console, id: str, project: str = "default") -> None:
    await console.access.DeleteApiKey(access_pb2.DeleteApiKeyRequest(project_id=project, id=id))


async def rows(console: Console) -> list[dict[str, Any]]:
    """What the database holds."""
    engine = create_engine(console.settings.console_database_url())
    async with engine.connect() as connection:
        found = [dict(row) for row in (await connection.execute(sa.select(api_keys))).mappings()]
    await engine.dispose()
    return found


async def test_a_key_is_shown_once_and_opens_its_project(console: Console) -> None:
    made = await make(console, project="team")
    assert made.key.startswith(gateway.auth.PREFIX)
    assert made.prefix == made.key[:10]
    assert not made.HasField("last_used_time")
    assert not made.HasField("expires_time")
    assert await enter(console, made.key) == access_pb2.Principal(
        project_id="team", key_id=made.id, name="laptop", role="member"
    )
    (shown,) = (await listed(console, "team")).data
    assert not shown.HasField("key")
    assert (shown.id, shown.prefix) == (made.id, made.prefix)
    (row,) = await rows(console)
    assert made.key not in str(row)
    assert row["key_hash"] == sha256(made.key.encode()).hexdigest()


async def test_keys_have_the_form_that_the_gateway_asks_for(console: Console) -> None:
    assert (access_keys.PREFIX, access_keys.ALPHABET, access_keys.KEY_LENGTH) == (
        gateway.auth.PREFIX,
        gateway.auth.ALPHABET,
        gateway.auth.KEY_LENGTH,
    )
    made = {(await make(console, str(number))).key for number in range(20)}
    assert len(made) == 20
    assert {len(key) for key in made} == {35}
    assert set("".join(key[3:] for key in made)) <= set(string.ascii_letters + string.digits)


async def test_a_key_has_a_role_and_says_who_made_it(console: Console) -> None:
    plain, empty = await make(console, "plain"), await make(console, "empty", role="")
    admin = await make(console, "admin", role="admin", created_by="operator")
    assert [(key.role, key.created_by) for key in (plain, empty, admin)] == [("member", "")] * 2 + [
        ("admin", "operator")
    ]
    assert (await enter(console, admin.key)).role == "admin"
    shown = {key.name: (key.role, key.created_by) for key in (await listed(console)).data}
    assert shown == {"plain": ("member", ""), "empty": ("member", ""), "admin": ("admin", "operator")}


@pytest.mark.parametrize("role", ["operator", "Admin", "a\0", "x" * 10_000])
async def test_a_role_that_no_key_may_have(console: Console, role: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        await make(console, role=role)
    assert (caught.value.context["param"], caught.value.context["code"]) == ("role", "invalid_value")
    assert await rows(console) == []


async def test_a_revoked_key_opens_nothing(console: Console) -> None:
    made, other = await make(console), await make(console)
    await revoke(console, made.id)
    with pytest.raises(NotFound):
        await enter(console, made.key)
    assert (await enter(console, other.key)).key_id == other.id
    assert [key.id for key in (await listed(console)).data] == [other.id]
    with pytest.raises(NotFound) as caught:
        await revoke(console, made.id)
    assert caught.value.context["param"] == "id"


async def test_an_expired_key_opens_nothing(console: Console) -> None:
    made = await make(console, expires_after_s=60)
    assert made.expires_time.ToDatetime(UTC) == console.clock.time + timedelta(seconds=60)
    console.clock.advance(59.999)
    await enter(console, made.key)
    console.clock.advance(0.001)
    with pytest.raises(NotFound):
        await enter(console, made.key)
    assert [key.id for key in (await listed(console)).data] == [made.id]


@pytest.mark.parametrize("hash", ["", "x", "0" * 64, "A" * 64, "0" * 63 + "\0", "0" * 100_000])
async def test_what_is_no_hash_of_a_key(console: Console, hash: str) -> None:
    with pytest.raises(NotFound):
        await console.access.Authenticate(access_pb2.AuthenticateRequest(key_hash=hash))


async def test_anothers_keys_are_not_there(console: Console) -> None:
    made = await make(console)
    assert list((await listed(console, "other")).data) == []
    messages = set()
    for id in (made.id, "key_" + "0" * 32, "\0", "", "x" * 1000):
        with pytest.raises(NotFound) as caught:
            await revoke(console, id, "other")
        messages.add(caught.value.message.replace(made.id, "key_" + "0" * 32))
    assert (await enter(console, made.key)).key_id == made.id
    assert len(messages) == 4


async def test_use_is_noted_once_a_minute(console: Console) -> None:
    made = await make(console)
    first = console.clock.time
    await enter(console, made.key)
    console.clock.advance(59)
    await asyncio.gather(*(enter(console, made.key) for _ in range(5)))
    (shown,) = (await listed(console)).data
    assert shown.last_used_time.ToDatetime(UTC) == first
    console.clock.advance(1)
    await enter(console, made.key)
    (shown,) = (await listed(console)).data
    assert shown.last_used_time.ToDatetime(UTC) == console.clock.time


async def test_pages_hold_their_place_when_keys_are_revoked(console: Console) -> None:
    made = [(await make(console, f"k{number}")).id for number in range(5)][::-1]
    first = await listed(console, limit=2)
    assert ([key.id for key in first.data], first.has_more) == (made[:2], True)
    await revoke(console, made[1])
    second = await listed(console, limit=2, after=made[1])
    assert ([key.id for key in second.data], second.has_more) == (made[2:4], True)
    last = await listed(console, limit=2, after=made[3])
    assert ([key.id for key in last.data], last.has_more) == (made[4:], False)
    for unknown in ("key_x", "", "\0"):
        assert list((await listed(console, after=unknown)).data) == []


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"name": ""}, "name", "missing_required_parameter"),
        ({"name": "a" * 129}, "name", "string_above_max_length"),
        ({"name": "a\nb"}, "name", "invalid_value"),
        ({"name": "a\0"}, "name", "invalid_value"),
        ({"name": " a"}, "name", "invalid_value"),
        ({"project": ""}, "project_id", "missing_required_parameter"),
        ({"expires_after_s": 0}, "expires_after_s", "integer_below_min_value"),
        ({"expires_after_s": -1}, "expires_after_s", "integer_below_min_value"),
        ({"expires_after_s": 2**62}, "expires_after_s", "integer_above_max_value"),
    ],
)
async def test_what_is_wrong_with_a_key(console: Console, fields: dict[str, Any], param: str, code: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        await make(console, **fields)
    assert (caught.value.context["param"], caught.value.context["code"]) == (param, code)
    assert await rows(console) == []


@pytest.mark.parametrize(
    ("limit", "code"),
    [(-1, "integer_below_min_value"), (0, "integer_below_min_value"), (101, "integer_above_max_value")],
)
async def test_what_is_wrong_with_a_page(console: Console, limit: int, code: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        await listed(console, limit=limit)
    assert (caught.value.context["param"], caught.value.context["code"]) == ("limit", code)


async def test_a_full_disk_keeps_nobody_out(console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    made = await make(console)
    engine = create_engine(console.settings.console_database_url())
    keys = ApiKeyService(Transactions(Database(engine), console.clock))

    async def full(*args: Any) -> None:
        raise ResourceExhausted("the database has no space left")

    monkeypatch.setattr(store, "set_used", full)
    digest = sha256(made.key.encode()).hexdigest()
    assert (await keys.authenticate(digest)).key_id == made.id
    await engine.dispose()


async def test_lists_are_read_from_their_index(console: Console) -> None:
    engine = create_engine(console.settings.console_database_url())
    word = "EXPLAIN QUERY PLAN" if engine.dialect.name == "sqlite" else "EXPLAIN"
    async with engine.connect() as connection:
        if engine.dialect.name != "sqlite":
            await connection.execute(sa.text("SET enable_seqscan = off"))  # nobody scans a table this small otherwise
        for page, index in ((store.page, "ix_api_keys_list"), (secrets.page, "ix_secrets_list")):
            statement = page("p", {"create_time": EPOCH, "id": "x"}, 21)
            text = statement.compile(dialect=engine.dialect, compile_kwargs={"literal_binds": True})
            plan = str([tuple(row) for row in await connection.exec_driver_sql(f"{word} {text}")])
            assert index in plan
            assert "TEMP B-TREE" not in plan
            assert "Sort" not in plan
    await engine.dispose()
