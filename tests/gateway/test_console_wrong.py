"""Every field, parameter, id, method and body of the console's paths, wrong in every way: a 4xx as OpenAI writes it, which
names what is wrong, and nothing made. All that is behind the gateway is real."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import pytest_asyncio
from pydantic import SecretStr

from gateway.auth import new_key
from gateway.console import ROUTES
from gateway.cors import PREFIX
from services.kit.settings import Console, Planner
from services.metadata import server
from services.planner import server as planner_server
from tests.console.conftest import SPEC, serving_console
from tests.gateway.console_table import BODIES, FILLED, NO_BODIES, NO_JSON, QUERIES
from tests.gateway.front import Answer, Front, eventually, gateway_of, settings_for

pytestmark = pytest.mark.asyncio(loop_scope="module")
CODES = {
    "missing_required_parameter",
    "unknown_parameter",
    "invalid_type",
    "invalid_value",
    "string_above_max_length",
    "object_above_max_properties",
    "integer_below_min_value",
    "integer_above_max_value",
}


@dataclass
class World:
    front: Front
    key: str
    ids: dict[str, str] = field(default_factory=dict)

    def named(self, text: str) -> str:
        for name, id in self.ids.items():
            text = text.replace("{" + name + "}", id)
        return text

    async def send(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        data = body if isinstance(body, bytes) else self.named(json.dumps(body)).encode() if body is not None else None
        known = {"Authorization": f"Bearer {self.key}"} | ({"Content-Type": "application/json"} if data else {})
        return await self.front.call(method, PREFIX + self.named(path), data=data, headers=known | headers)

    async def there(self) -> dict[str, Any]:
        """All that was made."""
        paths = ["models", "models/{model}/deployment-templates", "jobs", "apikeys", "secrets", "files"]
        found = {path: sorted(one["id"] for one in (await self.send("GET", path)).json["data"]) for path in paths}
        shown = {path: (await self.send("GET", path)).json["revision"] for path in ("models/{model}", "quotas")}
        return found | shown

    async def job_has_ended(self) -> bool:
        """Its input does not exist."""
        return (await self.send("GET", "jobs/{job}")).json["status"] == "failed"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    """One of everything; nothing that is wrong makes another, or changes it."""
    folder = tmp_path_factory.mktemp("wrong")
    key, line = new_key("default", "operator")
    (folder / "keys").write_text(line + "\n")
    more = {
        "api_keys_file": str(folder / "keys"),
        "console": Console(listen="127.0.0.1:0"),
        "planner": Planner(listen="127.0.0.1:0"),
        "secrets_encryption_key": SecretStr("ab" * 32),
    }
    settings = settings_for(folder).model_copy(update=more)
    async with server.run(settings) as metadata:
        wired = settings.model_copy(update={"metadata_addr": metadata})
        async with (
            planner_server.run(wired) as planner,
            serving_console(wired, planner_addr=planner) as console,
            gateway_of(wired, metadata, console.address) as front,
        ):
            world = World(front, key)
            world.ids["model"] = (await world.send("POST", "models", {"name": "Base"})).json["id"]
            path = "models/{model}/deployment-templates"
            world.ids["template"] = (await world.send("POST", path, {"name": "base", "spec": SPEC})).json["id"]
            job = await world.send("POST", "jobs", {**BODIES["POST", "jobs"].right, "resource_request": {}})
            assert job.status == 200, job.body
            world.ids["job"] = job.json["id"]
            await eventually(world.job_has_ended)
            before = await world.there()
            yield world
            assert await world.there() == before


def refused(answer: Answer, status: int, param: str | None = None) -> dict[str, Any]:
    """It is OpenAI's error; about `param` or something in it, with a code that clients know."""
    assert answer.status == status, answer.body
    error = answer.error
    assert error["type"] == "invalid_request_error"
    assert 0 < len(error["message"]) < 2000
    if param is not None:
        assert error["code"] in CODES, error
        assert error["param"] == param or (error["param"] or "").startswith((f"{param}.", f"{param}[")), error
    return error


def wrong_fields() -> Iterator[Any]:
    for (method, path), body in BODIES.items():
        for name, values in body.fields.items():
            yield pytest.param(method, path, name, values, id=f"{method} {path} {name}")


@pytest.mark.parametrize(("method", "path", "name", "values"), list(wrong_fields()))
async def test_a_field_that_is_wrong(world: World, method: str, path: str, name: str, values: list[Any]) -> None:
    right = BODIES[method, path].right
    for value in values:
        refused(await world.send(method, path, right | {name: value}), 400, name)


@pytest.mark.parametrize(("method", "path"), BODIES, ids=" ".join)
async def test_a_value_that_no_json_has(world: World, method: str, path: str) -> None:
    body = BODIES[method, path]
    for name in body.fields:
        for value in NO_JSON:
            error = refused(await world.send(method, path, body.right | {name: value}), 400)
            assert "could not parse the JSON body" in error["message"]


@pytest.mark.parametrize(("method", "path"), BODIES, ids=" ".join)
async def test_a_field_that_is_missing(world: World, method: str, path: str) -> None:
    body = BODIES[method, path]
    for name, values in body.fields.items():
        if any(value is None for value in values):
            left = {key: value for key, value in body.right.items() if key != name}
            error = refused(await world.send(method, path, left), 400, name)
            assert error["code"] == "missing_required_parameter"


@pytest.mark.parametrize(("method", "path"), BODIES, ids=" ".join)
async def test_a_field_that_is_not_there(world: World, method: str, path: str) -> None:
    for name in FILLED:
        error = refused(await world.send(method, path, BODIES[method, path].right | {name: "x"}), 400)
        assert (error["code"], error["param"]) == ("unknown_parameter", name)


@pytest.mark.parametrize(("method", "path"), BODIES, ids=" ".join)
async def test_a_body_that_is_none(world: World, method: str, path: str) -> None:
    for name, body in NO_BODIES.items():
        error = refused(await world.send(method, path, body, **{"Content-Type": "application/json"}), 400)
        assert "name" in error["message"] or error["param"] in (None, "name"), (name, error)
    refused(await world.send(method, path, b"{}", **{"Content-Type": "text/plain"}), 415)


async def test_no_body_is_left_out() -> None:
    with_body = {(method, path) for method, path, _ in ROUTES if method in ("POST", "PUT", "PATCH")}
    named = {(method, world_path(path)) for method, path in BODIES}
    without = {("POST", f"{PREFIX}jobs/{{id}}/cancel"), ("POST", f"{PREFIX}jobs/{{id}}/retry")}
    assert with_body - named == without | {("POST", f"{PREFIX}files/upload")}


def world_path(path: str) -> str:
    """As the routes say it."""
    ending = path.removeprefix("models/{model}")
    return PREFIX + (
        f"models/{{model_id}}{ending}".replace("{template}", "{id}")
        if ending.startswith("/")
        else path.replace("{model}", "{id}")
    )


def wrong_parameters() -> Iterator[Any]:
    for path, parameters in QUERIES.items():
        for name, values in parameters.items():
            yield pytest.param(path, name, values, id=f"{path} {name}")


@pytest.mark.parametrize(("path", "name", "values"), list(wrong_parameters()))
async def test_a_parameter_that_is_wrong(world: World, path: str, name: str, values: list[str]) -> None:
    for value in values:
        url = f"{path}?{name}={value.replace(chr(0), '%00').replace(' ', '%20')}"
        refused(await world.send("GET", url), 400, name)
    if path != "files" and name != "status":  # of which there may be several
        error = refused(await world.send("GET", f"{path}?{name}=1&{name}=2"), 400)
        assert (error["code"], error["param"]) == ("duplicate_parameter", name)


@pytest.mark.parametrize("path", sorted(QUERIES.keys() - {"files"}))
async def test_a_parameter_that_is_not_there(world: World, path: str) -> None:
    for name in ("colour", "project_id", "Limit", "limit[]"):
        error = refused(await world.send("GET", f"{path}?{name}=1"), 400)
        assert (error["code"], error["param"]) == ("unknown_parameter", name)


METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")


@pytest.mark.parametrize("path", sorted({path for _, path, _ in ROUTES}))
async def test_a_method_that_a_path_has_not(world: World, path: str) -> None:
    # The name of an upload might be a file's id.
    alike = {path, f"{PREFIX}files/{{id}}"} if path == f"{PREFIX}files/upload" else {path}
    known = {method for method, of, _ in ROUTES if of in alike}
    for method in sorted({"GET", "POST", "PUT", "PATCH", "DELETE", "TRACE"} - known):
        answer = await world.send(method, path.removeprefix(PREFIX).replace("{", "").replace("}", ""), {})
        assert refused(answer, 405)["code"] == "method_not_supported"
        assert set(answer.headers["allow"].split(",")) >= known


@pytest.mark.parametrize(
    ("method", "path", "body", "param"),
    [
        ("POST", "models", {"name": "Base"}, "name"),
        ("POST", "models", {"name": "Other", "id": "{model}"}, "id"),
        ("PATCH", "models/{model}", {"category": "c", "revision": 7}, "revision"),
        ("DELETE", "models/{model}", None, "id"),
        ("POST", "models/{model}/deployment-templates", {"name": "base", "spec": SPEC}, "version"),
        ("PUT", "models/{model}/deployment-templates/{template}", {"status": "draft", "revision": 7}, "revision"),
        ("PUT", "quotas", {"max_gpus": 1, "revision": 7}, "revision"),
        ("POST", "jobs/{job}/cancel", None, "id"),
    ],
    ids=str,
)
async def test_what_does_not_go_with_what_is_there(
    world: World, method: str, path: str, body: Any, param: str | None
) -> None:
    assert refused(await world.send(method, path, body), 409)["param"] == param


@pytest.mark.parametrize(
    ("method", "path"), [("POST", "jobs/{job}/cancel"), ("POST", "jobs/{job}/retry"), ("DELETE", "models/{model}")]
)
async def test_a_body_where_none_is_wanted(world: World, method: str, path: str) -> None:
    error = refused(await world.send(method, path, {"force": True}), 400)
    assert (error["code"], error["param"]) == ("unknown_parameter", "force")


@pytest.mark.parametrize("key", ["x" * 256, "a" * 10_000])
async def test_an_idempotency_key_that_is_none(world: World, key: str) -> None:
    for method, path, body in [("POST", "jobs", BODIES["POST", "jobs"].right), ("POST", "jobs/{job}/retry", None)]:
        refused(await world.send(method, path, body, **{"Idempotency-Key": key}), 400)


IDS = ("none", "%00", "a%2Fb", "é", "x" * 300, "%20", "..%2f", "'%20OR%201=1", "job_" + "0" * 32)


def routes_with_ids() -> Iterator[Any]:
    for method, path, _ in ROUTES:
        if "{" in path:
            yield pytest.param(method, path.removeprefix(PREFIX), id=f"{method} {path}")


@pytest.mark.parametrize(("method", "path"), list(routes_with_ids()))
async def test_an_id_that_nothing_has(world: World, method: str, path: str) -> None:
    body = next(
        (body.right for (of, known), body in BODIES.items() if (of, world_path(known)) == (method, PREFIX + path)), None
    )
    for id in IDS:
        for name in ("{id}", "{model_id}", "{name}"):
            if name in path:
                others = {"{model_id}": world.ids["model"], "{id}": world.ids["template"], "{name}": "base"}
                url = path.replace(name, id)
                for other, right in others.items():
                    url = url.replace(other, right)
                refused(await world.send(method, url, body), 404)
