"""The worker of a KubernetesJob as a process of its own, with the words and the environment that its manifest gives it."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from services.kit.settings import Settings
from tests.runtimes.kubernetes.support import planned, rendered, template

PATIENCE_S = 60.0


def container(batch_id: str) -> dict[str, Any]:
    """As the Job of this batch has it."""
    (job,) = rendered(planned("KubernetesJob", template("mock", **{"accelerator.type": "cpu"}), key=batch_id))
    (found,) = job["spec"]["template"]["spec"]["containers"]
    return dict(found)


class WorkerProcess:
    def __init__(self, process: asyncio.subprocess.Process, folder: Path) -> None:
        self.process = process
        self.folder = folder

    async def ended(self) -> int:
        """Its exit code."""
        async with asyncio.timeout(PATIENCE_S):
            return await self.process.wait()

    def last_words(self) -> str:
        path = self.folder / "last-words"
        return path.read_text() if path.exists() else ""

    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")


@asynccontextmanager
async def worker(
    settings: Settings,
    batch_id: str,
    engine_url: str,
    folder: Path,
    *,
    manifest: dict[str, Any] | None = None,
    **env: str,
) -> AsyncIterator[WorkerProcess]:
    """`manifest`: of the container, else that of the batch's Job. What a ConfigMap says, and places, are those of the test, as `settings` has them."""
    folder.mkdir(parents=True, exist_ok=True)
    said = manifest or container(batch_id)
    ours = {name: value for name, value in os.environ.items() if not name.startswith("AIBRIX_")}
    ours |= {one["name"]: one["value"].replace("$$", "$") for one in said["env"]}
    ours |= {
        "AIBRIX_DATA_DIR": str(settings.data_dir),
        "AIBRIX_METADATA_ADDR": settings.metadata_addr,
        "AIBRIX_RUNNER__LISTEN": "127.0.0.1:0",
        "AIBRIX_RUNNER__SEGMENT_SECONDS": "0.05",
        "AIBRIX_WORKER__ENGINE_URL": engine_url,
        "AIBRIX_WORKER__LAST_WORDS_FILE": str(folder / "last-words"),
        **env,
    }
    assert said["command"] == ["aibrix-batch"]
    argv = [sys.executable, "-m", "cli", *(word.replace("$$", "$") for word in said["args"])]
    with (folder / "log").open("ab") as log:
        process = await asyncio.create_subprocess_exec(*argv, env=ours, stdout=log, stderr=log)
    try:
        yield WorkerProcess(process, folder)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
