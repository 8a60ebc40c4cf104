"""What a key may do: those of the operator's file everything, the console's what their role says. Gateway and console are real."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from pydantic import SecretStr

from gateway.auth import new_key
from gateway.console import SERVICES
from gateway.cors import PREFIX
from gateway.roles import ACCESS, NEEDED, Role
from gateway.transcode_routes import bindings_of
from services.kit.settings import Console
from services.metadata import server
from tests.console.conftest import serving_console
from tests.gateway.front import Answer, Front, gateway_of, settings_for

pytestmark = pytest.mark.asyncio(loop_scope="module")
TEAM = "team"


@dataclass
class Doors:
    front: Front
    open: Front
    """Before the same console, a gateway that asks nobody for a key."""
    keys: dict[str, str]

    async def call(self, who: str, method: str, path: str, body: Any = None) -> Answer:
        if who == "nobody":
            return await request(self.open, method, path, body)
        return await request(self.front, method, path, body, Authorization=f"Bearer {self.keys[who]}")

    async def key(self, who: str, **fields: Any) -> tuple[str, str]:
        """The id and the text of a new one."""
        made = await self.call(who, "POST", "apikeys", {"name": "made"} | fields)
        assert made.status == 200, made.body
        return made.json["id"], made.json["key"]


async def request(front: Front, method: str, path: str, body: Any, **headers: str) -> Answer:
    if method in ("POST", "PUT") and body is not None:
        headers |= {"Content-Type": "application/json"}
        return await front.call(method, PREFIX + path, json=body, headers=headers)
    return await front.call(method, PREFIX + path, headers=headers)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def doors(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Doors]:
    folder: Path = tmp_path_factory.mktemp("roles")
    operator, line = new_key(TEAM, "operator")
    (folder / "keys").write_text(line + "\n")
    free = settings_for(folder).model_copy(
        update={"console": Console(listen="127.0.0.1:0"), "secrets_encryption_key": SecretStr("ab" * 32)}
    )
    guarded = free.model_copy(update={"api_keys_file": str(folder / "keys")})
    async with (
        server.run(guarded) as metadata,
        serving_console(guarded) as console,
        gateway_of(guarded, metadata, console.address) as front,
        gateway_of(free, metadata, console.address) as unguarded,
    ):
        doors = Doors(front, unguarded, {"operator": operator})
        for role in ("admin", "member"):
            _, doors.keys[role] = await doors.key("operator", name=role, role=role)
        yield doors


def refused(answer: Answer) -> None:
    assert answer.status == 403, answer.body
    error = answer.error
    assert (error["type"], error["code"], error["param"]) == ("invalid_request_error", "permission_denied", None)
    assert "AIBRIX_API_KEYS_FILE" in error["message"]


# Method, path, body, and who may call.
CALLS = [
    ("POST", "apikeys", {"name": "x"}, {"admin", "operator", "nobody"}),
    ("GET", "apikeys", None, {"admin", "operator", "nobody"}),
    ("DELETE", "apikeys/none", None, {"admin", "operator", "nobody"}),
    ("POST", "secrets", {"name": "X", "value": "y"}, {"admin", "operator", "nobody"}),
    ("DELETE", "secrets/none", None, {"admin", "operator", "nobody"}),
    ("PUT", "quotas", {"max_gpus": 1}, {"operator", "nobody"}),
    ("GET", "secrets", None, {"member", "admin", "operator", "nobody"}),
    ("GET", "quotas", None, {"member", "admin", "operator", "nobody"}),
    ("POST", "models", {"name": ""}, {"member", "admin", "operator", "nobody"}),
    ("GET", "jobs", None, {"member", "admin", "operator", "nobody"}),
]


@pytest.mark.parametrize("who", ["member", "admin", "operator", "nobody"])
@pytest.mark.parametrize(("method", "path", "body", "may"), CALLS, ids=lambda value: str(value)[:40])
async def test_who_may_do_what(doors: Doors, method: str, path: str, body: Any, may: set[str], who: str) -> None:
    answer = await doors.call(who, method, path, body)
    if who in may:
        assert answer.status in (200, 400, 404), answer.body
    else:
        refused(answer)


async def test_what_a_body_says_does_not_matter_to_who_may_not(doors: Doors) -> None:
    refused(await doors.call("member", "PUT", "quotas", {"nonsense": 1}))
    headers = {"Authorization": f"Bearer {doors.keys['member']}", "Content-Type": "text/plain"}
    refused(await doors.front.call("POST", f"{PREFIX}apikeys", data=b"{", headers=headers))


async def test_nobody_lifts_the_quota_that_binds_him(doors: Doors) -> None:
    """A key of the console neither raises it nor makes itself another key, whatever it asks for."""
    before = (await doors.call("operator", "GET", "quotas")).json
    limited = await doors.call("operator", "PUT", "quotas", {"max_live_jobs": 1, "revision": before["revision"]})
    assert limited.status == 200
    for who in ("member", "admin"):
        refused(await doors.call(who, "PUT", "quotas", {"max_live_jobs": 9, "revision": limited.json["revision"]}))
    for role in ("member", "admin", "operator"):
        refused(await doors.call("member", "POST", "apikeys", {"name": "child", "role": role}))
    assert (await doors.call("operator", "GET", "quotas")).json == limited.json


async def test_an_admin_makes_keys_that_are_no_operators(doors: Doors) -> None:
    wrong = await doors.call("admin", "POST", "apikeys", {"name": "x", "role": "operator"})
    assert (wrong.status, wrong.error["param"], wrong.error["code"]) == (400, "role", "invalid_value")
    id, doors.keys["child"] = await doors.key("admin", role="admin", name="child")
    _, doors.keys["grandchild"] = await doors.key("child")
    shown = {one["name"]: one for one in (await doors.call("child", "GET", "apikeys")).json["data"]}
    assert (shown["child"]["role"], shown["child"]["created_by"]) == ("admin", "admin")
    assert (shown["made"]["role"], shown["made"]["created_by"]) == ("member", "child")
    refused(await doors.call("grandchild", "GET", "apikeys"))
    assert (await doors.call("admin", "DELETE", f"apikeys/{id}")).status == 200


async def test_an_admin_is_one_of_its_project_only(doors: Doors, tmp_path: Path) -> None:
    other, line = new_key("other", "operator")
    path = Path(doors.front.settings.api_keys_file)
    settings = doors.front.settings.model_copy(update={"api_keys_file": str(tmp_path / "keys")})
    (tmp_path / "keys").write_text(path.read_text() + line + "\n")
    async with gateway_of(settings, settings.metadata_addr, settings.console_addr) as front:
        theirs = {"Authorization": f"Bearer {other}"}
        made = await request(front, "POST", "apikeys", {"name": "theirs"}, **theirs)
        gone = await doors.call("admin", "DELETE", f"apikeys/{made.json['id']}")
        assert (gone.status, gone.error["param"]) == (404, "id")
        names = {one["name"] for one in (await doors.call("admin", "GET", "apikeys")).json["data"]}
        assert "theirs" not in names


async def test_all_that_manages_access_is_in_the_table() -> None:
    every = {each.rpc: each.http_method for service in SERVICES for each in bindings_of(service)}
    assert set(NEEDED) <= set(every)
    writing = {rpc for rpc, method in every.items() if rpc.startswith(ACCESS) and method != "GET"}
    assert writing <= set(NEEDED)


@pytest.mark.parametrize(
    ("name", "role"),
    [("admin", Role.ADMIN), ("member", Role.MEMBER), ("", Role.MEMBER), ("operator", Role.MEMBER), ("x", Role.MEMBER)],
)
async def test_a_role_that_is_not_known_may_do_least(name: str, role: Role) -> None:
    assert Role.of(name) is role
