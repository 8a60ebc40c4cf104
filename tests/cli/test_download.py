"""`aibrix-batch download-model` against an S3 server: what arrives, what is left alone, what is refused."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from obstore.store import MemoryStore

from cli import download as downloads
from cli import exits
from cli.download import OURS, READ_BYTES, download
from services.kit.objects import ObjectInfo, ObjectStore
from services.runner.runtimes.kubernetes.codes import DOWNLOAD_REFUSED
from tests.cli.support import cli

FILES = {
    "config.json": b"{}",
    "tokenizer.model": os.urandom(1000),
    "empty.txt": b"",
    "parts/a.safetensors": os.urandom(READ_BYTES * 2 + 17),
    "parts/deep/merges.txt": b"a b\n",
}


@pytest.fixture
def variables(s3_objects: dict[str, str]) -> dict[str, str]:
    return {
        "AWS_ENDPOINT_URL": s3_objects["endpoint"],
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
    }


@pytest.fixture
def bucket(
    s3_objects: dict[str, str], variables: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[str, Any]]:
    """The URL of an empty bucket, and a client; the variables are set in this process."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    client = boto3.client("s3", endpoint_url=s3_objects["endpoint"], region_name="us-east-1")
    yield s3_objects["url"], client
    client.close()


def fill(bucket: tuple[str, Any], files: dict[str, bytes], prefix: str = "models/llama") -> str:
    url, client = bucket
    for name, data in files.items():
        client.put_object(Bucket=url.removeprefix("s3://"), Key=f"{prefix}/{name}" if prefix else name, Body=data)
    return f"{url}/{prefix}" if prefix else url


def arrived(folder: Path) -> dict[str, bytes]:
    found = (path for path in folder.rglob("*") if path.is_file() and OURS not in path.parts)
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def stamps(folder: Path) -> dict[str, int]:
    return {name: (folder / name).stat().st_ino for name in arrived(folder)}


def test_a_folder_with_all_its_files(bucket: tuple[str, Any], variables: dict[str, str], tmp_path: Path) -> None:
    uri = fill(bucket, FILES)
    fill(bucket, {"other.bin": b"no"}, "models/llama-2")
    done = cli("download-model", uri + "/", tmp_path / "a" / "b", **variables)
    assert (done.returncode, done.stderr) == (0, "")
    assert arrived(tmp_path / "a" / "b") == FILES
    assert done.stdout.startswith("5 files, 5 of them to download")
    assert list((tmp_path / "a" / "b" / OURS).glob("*.part")) == []


def test_again_downloads_what_changed(bucket: tuple[str, Any], tmp_path: Path) -> None:
    uri = fill(bucket, FILES)
    download(uri, tmp_path)
    before = stamps(tmp_path)
    assert download(uri, tmp_path) == 0
    assert stamps(tmp_path) == before
    # The same size, with other bytes in it; and a file that somebody cut off.
    changed = FILES | {"config.json": b"[]"}
    fill(bucket, {"config.json": b"[]"})
    (tmp_path / "tokenizer.model").write_bytes(b"cut")
    (tmp_path / "empty.txt").unlink()
    download(uri, tmp_path)
    assert arrived(tmp_path) == changed
    same = {name for name, number in stamps(tmp_path).items() if number == before[name]}
    assert same >= {"parts/a.safetensors", "parts/deep/merges.txt"}
    assert "config.json" not in same


def test_a_marker_that_is_broken_counts_for_nothing(bucket: tuple[str, Any], tmp_path: Path) -> None:
    uri = fill(bucket, {"config.json": b"{}"})
    download(uri, tmp_path)
    before = stamps(tmp_path)
    (marker,) = (tmp_path / OURS).glob("*.json")
    marker.write_text("{")
    download(uri, tmp_path)
    assert stamps(tmp_path) != before
    assert json.loads(marker.read_text())["bytes"] == 2


def test_one_object(bucket: tuple[str, Any], tmp_path: Path) -> None:
    uri = fill(bucket, {"tiny.gguf": b"GGUF"}, "")
    assert download(f"{uri}/tiny.gguf", tmp_path) == 0
    assert arrived(tmp_path) == {"tiny.gguf": b"GGUF"}


def test_what_tools_write_for_an_empty_folder_is_no_file(bucket: tuple[str, Any], tmp_path: Path) -> None:
    uri = fill(bucket, {"config.json": b"{}", "": b"", "sub/": b""})
    download(uri, tmp_path)
    assert arrived(tmp_path) == {"config.json": b"{}"}


def test_parts_that_nobody_finishes_are_deleted_after_a_day(bucket: tuple[str, Any], tmp_path: Path) -> None:
    uri = fill(bucket, {"config.json": b"{}"})
    (tmp_path / OURS).mkdir()
    old, young = tmp_path / OURS / "old.part", tmp_path / OURS / "young.part"
    for part in (old, young):
        part.write_bytes(b"x")
    os.utime(old, (time.time() - 2 * 86_400,) * 2)
    download(uri, tmp_path)
    assert (old.exists(), young.exists()) == (False, True)


@pytest.mark.parametrize("uri", ["", "s3://", "s3://bucket", "s3://bucket/", "gs://bucket/x", "/models/x", "s3:///x"])
def test_uris_that_name_no_objects(uri: str, tmp_path: Path) -> None:
    with pytest.raises(exits.Refused, match="the URI must be"):
        download(uri, tmp_path)


def test_nothing_there(bucket: tuple[str, Any], tmp_path: Path) -> None:
    with pytest.raises(exits.Refused, match=r"models/none: there is no such object, and nothing below it$"):
        download(f"{bucket[0]}/models/none", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_no_bucket_is_exit_code_2(variables: dict[str, str], tmp_path: Path) -> None:
    done = cli("download-model", "s3://no-such-bucket-here/models/x", tmp_path, **variables)
    assert (done.returncode, done.stdout) == (exits.REFUSED, "")
    assert done.stderr.startswith("error: s3://no-such-bucket-here/models/x: there is no such bucket")
    assert exits.REFUSED == DOWNLOAD_REFUSED, "the Job's pod failure policy knows it"


def test_credentials_that_are_not_complete(variables: dict[str, str], tmp_path: Path) -> None:
    variables["AWS_SECRET_ACCESS_KEY"] = ""
    del variables["AWS_SECRET_ACCESS_KEY"]
    done = cli("download-model", "s3://bucket/models/x", tmp_path, **variables)
    assert done.returncode == exits.REFUSED
    assert "the credentials are not complete" in done.stderr
    assert "Traceback" not in done.stderr


def test_without_credentials_nobody_asks_the_machine_for_its_own(
    bucket: tuple[str, Any], variables: dict[str, str], tmp_path: Path
) -> None:
    """The store of the tests serves everybody. The address for the machine's credentials leads nowhere."""
    uri = fill(bucket, {"config.json": b"{}"})
    anonymous = {name: value for name, value in variables.items() if "KEY" not in name}
    done = cli("download-model", uri, tmp_path, **anonymous, AWS_METADATA_ENDPOINT="http://127.0.0.1:9")
    assert (done.returncode, done.stderr) == (0, "")


class Odd(ObjectStore):
    """A bucket as a hostile or careless writer may leave it; a real store's client refuses to write such keys."""

    def __init__(self, *keys: str) -> None:
        super().__init__(MemoryStore())
        self._keys = keys

    async def list(self, prefix: str) -> Any:
        for key in self._keys:
            yield ObjectInfo(key, 1, "e", None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "key",
    [
        "m/../x",
        "m/a/../../x",
        "m//x",
        "m/./x",
        "m/a\\b",
        "m/a\nb",
        "m/\x00",
        "m/" + "x" * 256,
        "n/x",
        f"m/{OURS}/x.json",
    ],
)
async def test_keys_that_are_no_files_names_are_refused(key: str, tmp_path: Path) -> None:
    with pytest.raises(exits.Refused, match="the bucket holds a"):
        await downloads._download(Odd("m/fine", key), "m", tmp_path)
    assert list(tmp_path.iterdir()) == []


async def test_a_file_that_is_a_folder_too_is_refused(tmp_path: Path) -> None:
    """No other try would do better, and an init container is started again for ever at any code but this one."""
    with pytest.raises(exits.Refused, match="the bucket holds a as a file and as a folder"):
        await downloads._download(Odd("m/a/b/c", "m/a", "m/b"), "m", tmp_path)
    assert list(tmp_path.iterdir()) == []


async def test_too_many_objects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloads, "MOST_FILES", 2)
    with pytest.raises(exits.Refused, match="more than 2 objects"):
        await downloads._download(Odd("m/a", "m/b", "m/c"), "m", tmp_path)


class Changing(ObjectStore):
    async def head(self, key: str) -> ObjectInfo:
        info = await super().head(key)
        return ObjectInfo(info.key, info.bytes, "another", info.modified_time)


async def test_an_object_that_changes_meanwhile_is_not_kept(tmp_path: Path) -> None:
    store = Changing(MemoryStore())
    await store.put("m/config.json", b"{}")
    with pytest.raises(ExceptionGroup) as raised:
        await downloads._download(store, "m", tmp_path)
    assert "changed in the store" in str(exits.innermost(raised.value))
    assert arrived(tmp_path) == {}
    assert list((tmp_path / OURS).iterdir()) == []


async def test_a_volume_that_is_too_small_is_said_before_anything_is_downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ObjectStore(MemoryStore())
    await store.put("m/config.json", b"{}" * 4)
    monkeypatch.setattr(downloads.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 7}))
    with pytest.raises(exits.Failed, match="the volume has 0 MiB left"):
        await downloads._download(store, "m", tmp_path)
    assert arrived(tmp_path) == {}


def test_a_store_that_does_not_answer_is_exit_code_1(
    variables: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(ObjectStore):
        async def list(self, prefix: str) -> Any:
            raise OSError("connection reset")
            yield

    monkeypatch.setattr(downloads, "_opened", lambda bucket: Broken(MemoryStore()))
    with pytest.raises(exits.Failed, match=r"s3://b/m: connection reset$"):
        download("s3://b/m", tmp_path)
