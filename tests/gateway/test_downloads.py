"""Downloads: headers, ranges, and readers that are slow or dead."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from tests.gateway.front import LINE, Front, fronting, settings_for

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_a_download_has_its_headers(front: Front) -> None:
    id = await front.upload(LINE, name="\u00fc b.jsonl")
    for accept in ("application/json", "image/png", "application/binary"):
        accepted = await front.call("GET", f"/v1/files/{id}/content", headers={"Accept": accept})
        assert (accepted.status, accepted.body) == (200, LINE)
    answer = await front.call("GET", f"/v1/files/{id}/content")
    assert answer.headers["content-length"] == str(len(LINE))
    assert answer.headers["content-type"] == "application/jsonl; charset=utf-8"
    assert (
        answer.headers["content-disposition"] == "attachment; filename=\"_ b.jsonl\"; filename*=UTF-8''%C3%BC%20b.jsonl"
    )
    assert answer.headers["x-content-type-options"] == "nosniff"
    etag = answer.headers["etag"]
    assert etag.startswith('"')
    head = await front.call("HEAD", f"/v1/files/{id}/content")
    assert (head.status, head.body, head.headers["content-length"]) == (200, b"", str(len(LINE)))
    same = await front.call("GET", f"/v1/files/{id}/content", headers={"If-None-Match": f'"x", W/{etag}'})
    assert (same.status, same.body) == (304, b"")


SIZE = len(LINE)
RANGES: list[tuple[str, int, int, int]] = [
    ("bytes=0-9", 206, 0, 10),
    ("bytes=10-", 206, 10, SIZE),
    ("bytes=-7", 206, SIZE - 7, SIZE),
    ("bytes=-10000", 206, 0, SIZE),
    ("bytes=5-100000", 206, 5, SIZE),
    (f"bytes={SIZE - 1}-{SIZE - 1}", 206, SIZE - 1, SIZE),
    ("bytes=0-0", 206, 0, 1),
    (f"bytes={SIZE}-", 416, 0, 0),
    ("bytes=-0", 416, 0, 0),
    ("bytes=9-5", 200, 0, SIZE),
    ("bytes=0-1,3-4", 200, 0, SIZE),
    ("lines=0-1", 200, 0, SIZE),
    ("bytes=", 200, 0, SIZE),
    ("bytes=-", 200, 0, SIZE),
    ("bytes=a-b", 200, 0, SIZE),
]


@pytest.mark.parametrize(("asked", "status", "start", "end"), RANGES)
async def test_ranges(front: Front, asked: str, status: int, start: int, end: int) -> None:
    id = await front.upload()
    answer = await front.call("GET", f"/v1/files/{id}/content", headers={"Range": asked})
    assert answer.status == status
    if status == 416:
        assert answer.error["code"] == "invalid_range"
        assert answer.headers["content-range"] == f"bytes */{SIZE}"
        return
    assert answer.body == LINE[start:end]
    if status == 206:
        assert answer.headers["content-range"] == f"bytes {start}-{end - 1}/{SIZE}"
    stale = await front.call("GET", f"/v1/files/{id}/content", headers={"Range": asked, "If-Range": '"other"'})
    assert (stale.status, stale.body) == (200, LINE)


async def test_a_slow_reader_is_waited_for_and_a_dead_one_let_go(tmp_path: Path) -> None:
    async with fronting(settings_for(tmp_path, idle_timeout_s=0.5)) as front:
        data = os.urandom(40_000_000)
        id = await front.upload(data, purpose="user_data")
        async with front.session.get(f"{front.url}/v1/files/{id}/content") as response:
            received = b""
            async for chunk in response.content.iter_chunked(4_000_000):
                received += chunk
                await asyncio.sleep(0.05)
            assert received == data
        host, _, port = front.address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port), limit=1000)
        writer.write(f"GET /v1/files/{id}/content HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
        await asyncio.sleep(1.5)
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await reader.readexactly(len(data))
        writer.close()
