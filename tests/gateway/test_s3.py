"""The same front over an S3 store: uploads go up in parts, downloads come down in ranges."""

from __future__ import annotations

import os
from pathlib import Path

from services.kit.settings import Objects
from tests.gateway.front import LINE, field, file, form, fronting, settings_for


async def test_files_and_uploads_over_s3(tmp_path: Path, s3_objects: dict[str, str]) -> None:
    settings = settings_for(tmp_path).model_copy(update={"objects": Objects.model_validate(s3_objects)})
    async with fronting(settings) as front, front.sdk() as client:
        assert (await front.call("GET", "/readyz")).status == 200
        data = os.urandom(20_000_000)
        id = await front.upload(data, purpose="user_data")
        assert (await client.files.content(id)).content == data
        part = await front.call("GET", f"/v1/files/{id}/content", headers={"Range": "bytes=9000000-9000099"})
        assert (part.status, part.body) == (206, data[9_000_000:9_000_100])
        lines = LINE * 60_000
        done = await client.uploads.upload_file_chunked(
            file=lines, filename="a.jsonl", bytes=len(lines), mime_type="x/y", purpose="batch", part_size=2_000_000
        )
        assert done.file is not None
        assert (await client.files.content(done.file.id)).content == lines
        before = await front.stored()
        answer = await front.post_form("/v1/files", form(field("purpose", "batch"), file(lines + b"\xff")))
        assert answer.error["code"] == "invalid_encoding"
        assert await front.stored() == before
        await client.files.delete(id)
        assert len(await front.stored()) < len(before)
