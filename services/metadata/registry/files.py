"""Templates or profiles in a file, or in a folder of files, such as a mounted ConfigMap."""

from __future__ import annotations

import asyncio
import os
import stat
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from services.kit.spec.tree import MOST_CHARACTERS
from services.metadata.registry.source import Document, Snapshot, SourceError

SUFFIXES = (".yaml", ".yml", ".json")
MOST_FILES = 20_000
MOST_BYTES = 64 * 1024 * 1024
# UTF-8 has at most four bytes for a character.
MOST_FILE_BYTES = 4 * MOST_CHARACTERS
# A file that changed this lately may change again without a trace: clocks of file systems have ticks.
SETTLED_S = 2.0

Found = tuple[Path, os.stat_result | None]
"""A file, and what is known of it; None if that cannot be said."""


class FileSource:
    """A folder's files are taken in the order of their names, those in its subfolders and hidden ones are not."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = str(path)

    async def check(self) -> None:
        """A path in a folder that exists may come later: a mounted ConfigMap is an empty folder until it is made."""
        if not await asyncio.to_thread(self.path.absolute().parent.is_dir):
            raise ValueError(f"there is neither {self.path} nor a folder for it")

    async def fetch(self, known: object | None) -> Snapshot | None:
        return await asyncio.to_thread(self._fetch, known)

    async def follow(self, changed: Callable[[], None]) -> None:
        pass

    async def close(self) -> None:
        pass

    def _fetch(self, known: object | None) -> Snapshot | None:
        now = time.time()
        found = self._found()
        fingerprint = tuple((str(path), _mark(status)) for path, status in found)
        if fingerprint == known:
            return None
        documents = _read_all(found)
        is_whole = all(document.text is not None for document in documents)
        is_settled = all(status is not None and _changed(status) < now - SETTLED_S for _, status in found)
        return Snapshot(documents, fingerprint if is_whole and is_settled else None)

    def _found(self) -> Sequence[Found]:
        try:
            status = self.path.stat()
            if not stat.S_ISDIR(status.st_mode):
                return [(self.path, status)]
            names = sorted(name for name in os.listdir(self.path) if _is_meant(name))
        except OSError as error:
            raise SourceError(_why(error)) from error
        if len(names) > MOST_FILES:
            raise SourceError(f"more than {MOST_FILES} files")
        found = [(self.path / name, _status(self.path / name)) for name in names]
        return [(path, status) for path, status in found if status is None or not stat.S_ISDIR(status.st_mode)]


def _is_meant(name: str) -> bool:
    return name.endswith(SUFFIXES) and not name.startswith(".")


def _status(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except OSError:
        return None  # reading it will say why


def _mark(status: os.stat_result | None) -> object:
    if status is None:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _changed(status: os.stat_result) -> float:
    return max(status.st_mtime, status.st_ctime)


def _read_all(found: Sequence[Found]) -> tuple[Document, ...]:
    documents = []
    left = MOST_BYTES
    for path, status in found:
        document, size = _read(path, status)
        left -= size
        if left < 0:
            raise SourceError(f"the files hold more than {MOST_BYTES} bytes")
        documents.append(document)
    return tuple(documents)


def _read(path: Path, status: os.stat_result | None) -> tuple[Document, int]:
    """The document, and how many bytes it has."""
    if status is not None and not stat.S_ISREG(status.st_mode):
        return Document(str(path), None, "it is not a file"), 0  # to open a pipe is to wait for it
    try:
        with path.open("rb") as file:
            data = file.read(MOST_FILE_BYTES + 1)
    except OSError as error:
        return Document(str(path), None, _why(error)), 0
    if len(data) > MOST_FILE_BYTES:
        return Document(str(path), None, f"it is larger than {MOST_FILE_BYTES} bytes"), len(data)
    try:
        return Document(str(path), data.decode()), len(data)
    except UnicodeDecodeError as error:
        return Document(str(path), None, f"byte {error.start + 1} is not UTF-8"), len(data)


def _why(error: OSError) -> str:
    return f"it cannot be read: {error.strerror or type(error).__name__}"
