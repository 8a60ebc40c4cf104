"""A server without keys, and pages in a browser that would like to call it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.gateway.front import Front, fronting, settings_for

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Host": "localhost:8080"}, 200),
        ({"Host": "[::1]:8080"}, 200),
        ({"Host": "127.0.0.1"}, 200),
        ({"Origin": "http://127.0.0.1:3000"}, 200),
        ({"Origin": "http://localhost:3000"}, 200),
        ({"Host": "evil.example:8080"}, 403),
        ({"Host": "127.0.0.1.evil.example"}, 403),
        ({"Host": "localhost.evil.example"}, 403),
        ({"Host": ""}, 403),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Host": "evil.example", "Origin": "http://127.0.0.1"}, 403),
    ],
)
async def test_only_this_machine_and_its_own_pages(front: Front, headers: dict[str, str], status: int) -> None:
    for method, path in (("GET", "/v1/batches"), ("GET", "/v1/models")):
        answer = await front.call(method, path, headers=headers)
        assert answer.status == status, answer.body
        if status == 403:
            assert answer.error["code"] == "forbidden"


async def test_where_the_operator_says_otherwise(tmp_path: Path) -> None:
    named = settings_for(tmp_path / "a").model_copy(update={"allowed_origins": "https://ui.example.com"})
    async with fronting(named) as front:
        answers = [
            await front.call("GET", "/v1/batches", headers={"Origin": origin})
            for origin in ("https://ui.example.com", "https://other.example.com")
        ]
        assert [answer.status for answer in answers] == [200, 403]
    async with fronting(settings_for(tmp_path / "b", allow_anonymous=True)) as front:
        answer = await front.call("GET", "/v1/batches", headers={"Host": "batch.example.com"})
        assert answer.status == 200
