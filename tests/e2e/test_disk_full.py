"""A full disk: the upload fails with a clear message, or the batch pauses and goes on when there is room again."""

from __future__ import annotations

import asyncio
import io
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest

from tests.e2e.processes import eventually, suite, witness
from tests.e2e.test_crash import check, sdk, start_batch

SIZE_MIB = 8


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of a few MiB, in memory."""
    folder = tmp_path / "small"
    folder.mkdir()
    argv = ["mount", "-t", "tmpfs", "-o", f"size={SIZE_MIB}m", "tmpfs", str(folder)]
    done = subprocess.run(argv, capture_output=True, text=True)
    if done.returncode:
        reason = f"no small file system to fill: {done.stderr.strip()}"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


async def test_an_upload_that_does_not_fit_is_refused_and_leaves_nothing(tmp_path: Path, small_disk: Path) -> None:
    async with suite(tmp_path, "all", AIBRIX_OBJECTS__URL=str(small_disk / "objects")) as platform:
        line = b'{"custom_id":"a","method":"POST","url":"/v1/chat/completions","body":{"x":"' + b"x" * 1000 + b'"}}\n'
        form = aiohttp.FormData()
        form.add_field("purpose", "batch")
        form.add_field("file", io.BytesIO(line * 12_000), filename="big.jsonl")
        async with aiohttp.ClientSession() as session:
            async with session.post(f"{platform.url}/v1/files", data=form) as answer:
                body = await answer.json()
            assert answer.status == 507
            assert "no space left" in body["error"]["message"]
            assert answer.headers["x-should-retry"] == "false"
            async with session.get(f"{platform.url}/v1/files") as answer:
                assert (await answer.json())["data"] == []
        left = [path for path in (small_disk / "objects").rglob("*") if path.is_file()]
        assert left == []


async def test_a_batch_pauses_on_a_full_disk_and_goes_on(tmp_path: Path, small_disk: Path) -> None:
    env = {"AIBRIX_OBJECTS__URL": str(small_disk / "objects"), "AIBRIX_RUNNER__SEGMENT_SECONDS": "0.2"}
    async with witness() as engine, suite(tmp_path, "all", **env) as platform, sdk(platform) as client:
        batch_id = await start_batch(client, tmp_path, engine)
        await engine.reached(50)
        ballast = small_disk / "ballast"
        fill(ballast)

        async def complains() -> bool:
            return "no space left" in platform.log("all")

        await eventually(complains, "the pause is visible")
        assert (await client.batches.retrieve(batch_id)).status == "in_progress"
        await asyncio.to_thread(ballast.unlink)
        await check(client, batch_id)
        assert max(engine.times().values()) == 1


def fill(path: Path) -> None:
    """Write until nothing more fits."""
    with path.open("wb", buffering=0) as out:
        for size in (1 << 20, 1 << 12, 1):
            try:
                while True:
                    out.write(b"x" * size)
            except OSError:
                continue
