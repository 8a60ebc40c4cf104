"""Pages of other origins: which of them may call, with what, and what everybody else gets."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gateway.auth import new_key
from gateway.cors import Origins
from tests.gateway.front import Front, gateway_of, settings_for
from tests.gateway.scripted import scripted

OURS, OTHER = "https://ui.example.com", "https://evil.example.com"
ASKS = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type"}


async def front_for(tmp_path: Path, origins: str, *, keys: bool = False) -> AsyncIterator[Front]:
    settings = settings_for(tmp_path).model_copy(update={"allowed_origins": origins})
    if keys:
        (tmp_path / "keys").write_text(new_key("p", "n")[1] + "\n")
        settings = settings.model_copy(update={"api_keys_file": str(tmp_path / "keys")})
    async with scripted() as script, gateway_of(settings, "127.0.0.1:1", script.address) as front:
        yield front


@pytest.fixture
async def front(tmp_path: Path) -> AsyncIterator[Front]:
    async for made in front_for(tmp_path, f"{OURS}, http://localhost:5173", keys=True):
        yield made


@pytest.fixture
async def open_front(tmp_path: Path) -> AsyncIterator[Front]:
    async for made in front_for(tmp_path, f"*,{OURS}"):
        yield made


def allowed(headers: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in headers.items() if name.startswith("access-control-")}


async def test_a_page_of_ours_asks_without_a_key(front: Front) -> None:
    for path in ("/api/v1/jobs", "/api/v1/files/upload", "/api/v1/nothing"):
        answer = await front.call("OPTIONS", path, headers={"Origin": OURS} | ASKS)
        assert (answer.status, answer.body) == (204, b"")
        assert answer.headers["access-control-allow-origin"] == OURS
        assert answer.headers["access-control-allow-credentials"] == "true"
        methods = set(answer.headers["access-control-allow-methods"].split(", "))
        assert methods == {"GET", "POST", "PUT", "PATCH", "DELETE"}
        names = answer.headers["access-control-allow-headers"].lower().split(", ")
        assert {"authorization", "content-type", "idempotency-key", "last-event-id"} <= set(names)
        assert int(answer.headers["access-control-max-age"]) > 0


async def test_errors_are_readable_for_pages_of_ours(front: Front) -> None:
    answer = await front.call("GET", "/api/v1/jobs", headers={"Origin": OURS})
    assert (answer.status, answer.error["code"]) == (401, "invalid_api_key")
    assert answer.headers["access-control-allow-origin"] == OURS
    assert "x-request-id" in answer.headers["access-control-expose-headers"]
    assert answer.headers["vary"] == "Origin"


@pytest.mark.parametrize("origin", [OTHER, "null", OURS + ".evil.com", OURS + ":8443", "http://ui.example.com", ""])
async def test_pages_from_elsewhere_get_nothing(front: Front, origin: str) -> None:
    for method, headers in (("OPTIONS", ASKS), ("GET", {})):
        answer = await front.call(method, "/api/v1/jobs", headers={"Origin": origin} | headers)
        assert answer.status == 401
        assert allowed(answer.headers) == {}
        assert answer.headers["vary"] == "Origin"


async def test_other_paths_know_no_origins(front: Front) -> None:
    for path in ("/v1/files", "/healthz", "/api/v1x"):
        for method, headers in (("OPTIONS", ASKS), ("GET", {})):
            answer = await front.call(method, path, headers={"Origin": OURS} | headers)
            assert allowed(answer.headers) == {}
            assert "vary" not in answer.headers


async def test_options_that_are_no_question_of_a_browser(front: Front) -> None:
    assert (await front.call("OPTIONS", "/api/v1/jobs", headers={"Origin": OURS})).status == 401


async def test_any_origin_but_without_credentials(open_front: Front) -> None:
    for method, headers in (("OPTIONS", ASKS), ("GET", {})):
        answer = await open_front.call(method, "/api/v1/jobs", headers={"Origin": OTHER} | headers)
        assert answer.status in {200, 204}
        assert answer.headers["access-control-allow-origin"] == "*"
        assert "access-control-allow-credentials" not in answer.headers
    named = await open_front.call("GET", "/api/v1/jobs", headers={"Origin": OURS})
    assert named.headers["access-control-allow-origin"] == OURS


async def test_without_the_setting_nothing_is_said(tmp_path: Path) -> None:
    async for front in front_for(tmp_path, ""):
        answer = await front.call("GET", "/api/v1/jobs", headers={"Origin": OURS})
        assert (answer.status, allowed(answer.headers), "vary" in answer.headers) == (403, {}, False)
        asked = await front.call("OPTIONS", "/api/v1/jobs", headers={"Origin": OURS} | ASKS)
        assert (asked.status, allowed(asked.headers)) == (403, {})
        assert (await front.call("GET", "/api/v1/jobs")).status == 200


@pytest.mark.parametrize(
    "text", ["ui.example.com", "https://a/", "https://a/b", "https://*.a", "ftp://a", "null", "https://a:x", "**"]
)
async def test_what_is_no_origin_stops_the_start(tmp_path: Path, text: str) -> None:
    with pytest.raises(ValueError, match="ALLOWED_ORIGINS"):
        await anext(front_for(tmp_path, text))


def test_how_origins_are_written() -> None:
    origins = Origins.parse(" HTTPS://A.example , http://[::1]:3000,,")
    assert origins.named == {"https://a.example", "http://[::1]:3000"}
    assert origins.headers("https://A.example")["Access-Control-Allow-Origin"] == "https://A.example"
