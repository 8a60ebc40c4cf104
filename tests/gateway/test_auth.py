"""Keys: every route with no key, a wrong one, and another project's. The matrix is made from the route table."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import openai
import pytest
import pytest_asyncio

from gateway.app import ROUTES, Route
from gateway.auth import PUBLIC, new_key
from services.kit.errors import NotFound
from tests.gateway.front import LINE, Answer, Front, eventually, field, file, form, fronting, settings_for
from tests.gateway.scripted import scripted

pytestmark = pytest.mark.asyncio(loop_scope="module")
CREATE = {"input_file_id": "file-none", "endpoint": "/v1/embeddings", "completion_window": "24h"}
UPLOADS = {"/v1/files", "/api/v1/files/upload"}
UPLOAD = {"bytes": 5, "filename": "a", "mime_type": "text/plain", "purpose": "user_data"}


@dataclass
class Tenants:
    front: Front
    file: Path
    ours: str
    theirs: str
    ids: dict[str, str]
    """Ids of ours by the first part of a path."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def tenants(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Tenants]:
    folder = tmp_path_factory.mktemp("auth")
    (ours, first), (theirs, second) = new_key("one", "laptop"), new_key("two", "laptop")
    keys = folder / "keys"
    keys.write_text(f"# two tenants\n{first}\n{second}\n")
    settings = settings_for(folder).model_copy(update={"api_keys_file": str(keys)})
    async with scripted() as console, fronting(settings, console.address) as front:
        # A key that was taken out of the file is not the console's either.
        console.answers["Authenticate"] = NotFound("No such API key.")
        headers = bearer(ours)
        made = {
            "files": await front.post_form("/v1/files", form(field("purpose", "batch"), file(LINE)), **headers),
            "batches": await front.post_json("/v1/batches", CREATE, **headers),
            "uploads": await front.post_json("/v1/uploads", UPLOAD, **headers),
        }
        yield Tenants(front, keys, ours, theirs, {kind: answer.json["id"] for kind, answer in made.items()})


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


async def ask(tenants: Tenants, route: Route, id: str, headers: dict[str, str]) -> Answer:
    path = re.sub(r"\{(model_id|name)\}", "x", re.sub(r"\{id[^}]*\}", id, route.path))
    method = route.method
    if path in UPLOADS and method == "POST":
        return await tenants.front.post_form(path, form(field("purpose", "batch"), file(LINE)), **headers)
    if path.endswith("/parts"):
        return await tenants.front.post_form(path, form(file(b"x", "u", "data")), **headers)
    bodies = {"/v1/batches": CREATE, "/v1/uploads": UPLOAD}
    if method == "POST":
        body = bodies.get(path, {"part_ids": []} if path.endswith("/complete") else {})
        return await tenants.front.post_json(path, body, **headers)
    return await tenants.front.call(method, path, headers=headers)


ALL = [*ROUTES, Route("GET", "/v1/nothing", ROUTES[0].handle), Route("PUT", "/v1/files", ROUTES[0].handle)]
NAMES = [f"{route.method} {route.path}" for route in ALL]


@pytest.mark.parametrize("route", ALL, ids=NAMES)
@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": ""},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer "},
        {"Authorization": "Bearer ab_wrong"},
        {"Authorization": "Bearer \u00ff"},
        {"Authorization": "Basic YTpi"},
        {"X-Api-Key": "ab_wrong"},
    ],
    ids=str,
)
async def test_without_a_good_key(tenants: Tenants, route: Route, headers: dict[str, str]) -> None:
    answer = await ask(tenants, route, tenants.ids.get(route.path.split("/")[-1], "x"), headers)
    if route.path in PUBLIC:
        assert answer.status in {200, 503}
        return
    assert answer.status == 401
    assert answer.error["code"] == "invalid_api_key"
    assert answer.error["type"] == "invalid_request_error"
    assert "ab_wrong" not in answer.error["message"]
    assert answer.headers["www-authenticate"] == "Bearer"


# The console's own things are in tests/console: here it is a script.
OWNED = [route for route in ROUTES if "{id}" in route.path and (route.path.startswith("/v1") or "/files" in route.path)]


@pytest.mark.parametrize("route", OWNED, ids=[f"{route.method} {route.path}" for route in OWNED])
async def test_what_is_anothers_is_not_there(tenants: Tenants, route: Route) -> None:
    id = tenants.ids[route.path.removeprefix("/api").split("/")[2]]
    foreign = await ask(tenants, route, id, bearer(tenants.theirs))
    unknown = await ask(tenants, route, id[:-4] + "0000", bearer(tenants.theirs))
    assert (foreign.status, unknown.status) == (404, 404)
    assert foreign.body.replace(id.encode(), b"ID") == unknown.body.replace(id[:-4].encode() + b"0000", b"ID")
    changing = {"x-request-id", "openai-processing-ms", "date"}
    assert {k: v for k, v in foreign.headers.items() if k not in changing} == {
        k: v for k, v in unknown.headers.items() if k not in changing
    }


async def test_what_is_ours_is_there_and_nobody_elses_list_has_it(tenants: Tenants) -> None:
    for kind in ("files", "batches"):
        mine = await tenants.front.call("GET", f"/v1/{kind}", headers=bearer(tenants.ours))
        theirs = await tenants.front.call("GET", f"/v1/{kind}", headers=bearer(tenants.theirs))
        assert tenants.ids[kind] in [item["id"] for item in mine.json["data"]]
        assert tenants.ids[kind] not in [item["id"] for item in theirs.json["data"]]
        found = await tenants.front.call("GET", f"/v1/{kind}/{tenants.ids[kind]}", headers=bearer(tenants.ours))
        assert found.status == 200
    assert (await tenants.front.call("GET", "/v1/nothing", headers=bearer(tenants.ours))).status == 404


async def test_the_sdk_says_that_the_key_is_wrong(tenants: Tenants) -> None:
    async with tenants.front.sdk(api_key="My API Key") as client:
        with pytest.raises(openai.AuthenticationError) as caught:
            await client.files.list()
        assert caught.value.code == "invalid_api_key"


async def test_keys_are_read_again_and_a_broken_file_changes_nothing(tenants: Tenants) -> None:
    before = tenants.file.read_text()
    key, line = new_key("three", "new")

    async def answers(key: str, status: int) -> bool:
        return (await tenants.front.call("GET", "/v1/files", headers=bearer(key))).status == status

    tenants.file.write_text(before + line + "\n")
    await eventually(lambda: answers(key, 200))
    tenants.file.write_text("broken\n")
    last, marker = new_key("four", "last")
    assert await answers(tenants.ours, 200)
    replacement = tenants.file.with_suffix(".new")
    replacement.write_text(before + marker + "\n")
    replacement.replace(tenants.file)
    await eventually(lambda: answers(last, 200))
    assert await answers(key, 401)
    assert await answers(tenants.ours, 200)
