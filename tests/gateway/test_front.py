"""What holds for every path: headers, errors, slashes, health, metrics, and metadata that is not there."""

from __future__ import annotations

import asyncio
import json
import socket
from pathlib import Path

import pytest

import gateway.backend
from gateway.errors import STATUSES
from services.kit import errors
from services.metadata import server
from tests.gateway.front import LINE, Front, field, file, form, fronting, gateway_of, settings_for

pytestmark = pytest.mark.asyncio(loop_scope="module")
GOOD = {"input_file_id": "file-none", "endpoint": "/v1/embeddings", "completion_window": "24h"}


def subclasses(cls: type) -> set[type]:
    direct: set[type] = set(cls.__subclasses__())
    return direct.union(*(subclasses(sub) for sub in direct))


async def test_every_service_error_has_its_status() -> None:
    assert set(STATUSES) == {cls for cls in subclasses(errors.ServiceError) if cls.__module__ == errors.__name__}
    for status, _, headers in STATUSES.values():
        retried = status in {408, 409, 429} or (status >= 500 and status not in {500, 503})
        assert (headers.get("x-should-retry") == "false") == retried
        assert int(headers.get("Retry-After", "0")) <= 60


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/", 404, None),
        ("GET", "/v1", 404, None),
        ("POST", "/v1/foo", 404, None),
        ("GET", "/v1/files/a/b/c", 404, None),
        ("GET", "/v1/%00", 404, None),
        ("PUT", "/v1/files", 405, "method_not_supported"),
        ("DELETE", "/v1/batches/batch_x", 405, "method_not_supported"),
        ("PATCH", "/v1/models", 405, "method_not_supported"),
        ("OPTIONS", "/v1/files", 405, "method_not_supported"),
        ("POST", "/healthz", 405, "method_not_supported"),
        ("POST", "/api/v1/a/b", 404, None),
        ("PUT", "/api/v1/jobs", 405, "method_not_supported"),
    ],
)
async def test_paths_and_methods_that_are_none(
    front: Front, method: str, path: str, status: int, code: str | None
) -> None:
    answer = await front.call(method, path)
    assert answer.status == status
    assert (answer.error["type"], answer.error["param"], answer.error["code"]) == ("invalid_request_error", None, code)
    if status == 405:
        assert "GET" in answer.headers["allow"] or "POST" in answer.headers["allow"]


async def test_every_answer_has_an_id_and_a_version(front: Front) -> None:
    seen = set()
    for path in ("/healthz", "/v1/files", "/v1/files/x", "/v1/nothing", "/metrics"):
        answer = await front.call("GET", path)
        assert answer.headers["x-request-id"].startswith("req_")
        assert answer.headers["openai-processing-ms"].isdigit()
        assert answer.headers["openai-version"] == "2020-10-01"
        assert "aiohttp" not in answer.headers["server"]
        seen.add(answer.headers["x-request-id"])
    assert len(seen) == 5


async def test_a_slash_at_the_end_is_the_same_path(front: Front) -> None:
    id = await front.upload()
    for path in ("/v1/files/", f"/v1/files/{id}/", f"/v1/files/{id}/content/", "/v1/batches/", "/healthz/", "/readyz/"):
        assert (await front.call("GET", path)).status == 200
    assert (await front.post_json("/v1/batches/", GOOD)).status == 200


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"])
async def test_a_wrong_content_type(front: Front, kind: str) -> None:
    for path in ("/v1/batches", "/v1/uploads", "/v1/uploads/upload_x/complete"):
        answer = await front.call("POST", path, data=json.dumps(GOOD).encode(), headers={"Content-Type": kind})
        assert answer.status == 415
        assert answer.error["code"] == "unsupported_media_type"


async def test_bodies_that_are_compressed_or_too_long(front: Front) -> None:
    zipped = await front.post_json("/v1/batches", GOOD, **{"Content-Encoding": "gzip"})
    assert zipped.status == 415
    long = await front.post_json("/v1/batches", b" " * 5_000_000)
    assert (long.status, long.headers["x-should-retry"], long.headers["connection"]) == (413, "false", "close")
    assert long.error
    head = b"POST /v1/batches HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunked = await front.raw(head + (b"100000\r\n" + b" " * 0x100000 + b"\r\n") * 5)
    assert chunked.status == 413


@pytest.mark.parametrize(
    "data",
    [
        b"nonsense\r\n\r\n",
        b"FOO /v1/files HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
        b"GET /v1/files HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer ab_secret\0\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /v1/batches HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: x\r\n\r\n",
        b"POST /v1/batches HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET /v1/files HTTP/1.1\r\nHost: 127.0.0.1\r\nX: " + b"y" * 100_000 + b"\r\n\r\n",
    ],
)
async def test_what_is_no_http(front: Front, data: bytes, caplog: pytest.LogCaptureFixture) -> None:
    answer = await front.raw(data)
    assert 400 <= answer.status < 500
    assert answer.error["type"] == "invalid_request_error"
    assert b"ab_secret" not in answer.body
    assert "ab_secret" not in caplog.text


async def test_an_expectation_of_something_else(front: Front) -> None:
    answer = await front.call("GET", "/healthz", headers={"Expect": "tea"})
    assert answer.status == 200


async def test_health(front: Front, tmp_path: Path) -> None:
    ready = await front.call("GET", "/readyz")
    assert (ready.status, ready.json["parts"]) == (200, {"metadata": "ok", "object_store": "ok"})
    async with gateway_of(settings_for(tmp_path), "127.0.0.1:1") as alone:
        assert (await alone.call("GET", "/healthz")).status == 200
        unready = await alone.call("GET", "/readyz")
        assert (unready.status, unready.json["parts"]) == (503, {"metadata": "unavailable", "object_store": "ok"})


async def test_metrics_count_by_template(front: Front) -> None:
    id = await front.upload()
    await front.call("GET", f"/v1/files/{id}/content")
    text = (await front.call("GET", "/metrics")).body.decode()
    assert 'aibrix_gateway_requests_total{method="GET",route="/v1/files/{id}/content",status="200"}' in text
    assert 'aibrix_gateway_request_seconds_bucket{le="0.005",route="/v1/files"}' in text
    assert 'aibrix_gateway_sent_bytes_total{route="/v1/files/{id}/content"}' in text
    assert 'aibrix_gateway_received_bytes_total{route="/v1/files"}' in text
    assert id not in text


async def test_without_metadata_a_create_is_repeated_then_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateway.backend, "PERSIST_S", 0.5)
    async with gateway_of(settings_for(tmp_path), "127.0.0.1:1") as front:
        for answer in (
            await front.call("GET", "/v1/files"),
            await front.post_json("/v1/batches", GOOD),
            await front.post_form("/v1/files", form(field("purpose", "batch"), file(LINE))),
        ):
            assert answer.status == 503
            assert 0 < int(answer.headers["retry-after"]) <= 60
            assert answer.error["type"] == "server_error"
            assert "127.0.0.1" not in answer.error["message"]


async def test_a_create_outlives_a_restart_of_metadata(tmp_path: Path) -> None:
    settings = settings_for(tmp_path)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    fixed = settings.model_copy(update={"metadata": settings.metadata.model_copy(update={"listen": address})})
    async with gateway_of(settings, address) as front:
        async with server.run(fixed):
            assert (await front.post_json("/v1/batches", GOOD)).status == 200
        async with asyncio.TaskGroup() as group:
            uploading = group.create_task(front.post_form("/v1/files", form(field("purpose", "batch"), file(LINE))))
            creating = group.create_task(front.post_json("/v1/batches", GOOD))
            await asyncio.sleep(1)
            assert not uploading.done()
            async with server.run(fixed):
                assert (await uploading).status == 200
                assert (await creating).status == 200
                assert len((await front.call("GET", "/v1/files")).json["data"]) == 1
                assert len((await front.call("GET", "/v1/batches")).json["data"]) == 2


async def test_an_object_that_is_not_there(tmp_path: Path) -> None:
    async with fronting(settings_for(tmp_path)) as front:
        id = await front.upload()
        for path in (front.settings.data_dir / "objects" / "files").iterdir():
            path.unlink()
        answer = await front.call("GET", f"/v1/files/{id}/content")
        assert answer.status == 404
        assert answer.error["message"] == f"No such File object: {id}"


async def test_an_object_that_is_cut_is_never_taken_for_whole(tmp_path: Path) -> None:
    async with fronting(settings_for(tmp_path)) as front:
        id = await front.upload(b"x" * 9_000_000, purpose="user_data")
        for path in (front.settings.data_dir / "objects" / "files").iterdir():
            path.write_bytes(b"x" * 5_000_000)
        with pytest.raises(Exception, match=r"(payload|disconnect|reset|Connection)"):
            await front.call("GET", f"/v1/files/{id}/content")
