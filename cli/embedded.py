"""A server inside of a command: all roles in this process on free loopback ports, over one folder."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import openai

from services.__main__ import FREE_PORT, serve, wired
from services.kit import log as logs
from services.kit.lifecycle import until_signalled
from services.kit.runtime_settings import External
from services.kit.settings import Objects, Profiles, Settings, Templates

T = TypeVar("T")
BACK = ("metadata", "planner", "console")
FRONT = ("runner", "gateway")


def embedded(base: Settings, data_dir: Path, *, drain_s: float) -> Settings:
    """The user's settings where they are about speed and retries; every place and address is this command's own."""
    here: dict[str, Any] = {"listen": FREE_PORT}
    quiet = here | {"metrics_listen": ""}
    return base.model_copy(
        update={
            "data_dir": data_dir,
            "api_keys_file": "",
            "default_endpoint": "",
            "gateway": base.gateway.model_copy(update=here),
            "metadata": base.metadata.model_copy(update=quiet | {"database_url": ""}),
            "planner": base.planner.model_copy(update=quiet),
            "console": base.console.model_copy(update=quiet),
            "runner": base.runner.model_copy(update=quiet | {"work_dir": "", "drain_s": drain_s}),
            # One user, who names the engine, its files and its flags.
            "external": External(allowed_hosts="*"),
            "local": base.local.model_copy(update={"models_dir": "*"}),
            "templates": Templates(inline_flags="any"),
            "profiles": Profiles(),
            "objects": Objects(),
        }
    )


@contextmanager
def logging_to(path: Path, settings: Settings) -> Iterator[None]:
    """The server's log goes to a file, so that the screen belongs to the progress bar."""
    with path.open("a", encoding="utf-8") as stream:
        logs.configure(settings.log.model_copy(update={"format": "json"}), stream)
        yield


@asynccontextmanager
async def back(settings: Settings) -> AsyncIterator[Settings]:
    """The roles that keep the record. Yields the settings by which the others find them."""
    async with serve(settings, BACK) as addresses:
        yield wired(settings, addresses)


@asynccontextmanager
async def front(settings: Settings) -> AsyncIterator[tuple[openai.AsyncOpenAI, str]]:
    """The roles that run batches and take calls; leaving the block drains them. Yields a client and the runner's address."""
    async with serve(settings, FRONT) as addresses:
        url = f"http://{addresses['gateway']}/v1"
        # A proxy or a base URL in the environment is not for loopback.
        http = openai.DefaultAsyncHttpxClient(trust_env=False)
        async with openai.AsyncOpenAI(base_url=url, api_key="embedded", http_client=http) as client:
            yield client, addresses["runner"]


async def unless_signalled(work: Coroutine[Any, Any, T]) -> T | None:
    """The result of `work`; None if SIGINT or SIGTERM came first, and then it is cancelled."""
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        task = group.create_task(work)
        signalled = group.create_task(until_signalled(stop))
        await asyncio.wait({task, signalled}, return_when=asyncio.FIRST_COMPLETED)
        task.cancel()
        stop.set()
    return None if task.cancelled() else task.result()
