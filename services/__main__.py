"""The roles, and how a process runs any of them: `serve` enters them in order and leaves in reverse.

`python -m services metadata runner` runs two of them, without names all; `aibrix-batch serve` is the same with flags.
"""

from __future__ import annotations

import asyncio
import fcntl
import importlib
import socket
import sys
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path

import structlog
import uvloop

from gateway.auth import is_loopback
from services.kit import log as logs
from services.kit.lifecycle import until_signalled
from services.kit.settings import Settings, load
from services.kit.thread import in_own_loop

Run = Callable[[Settings], AbstractAsyncContextManager[str]]

# In start order; they stop in reverse. The console is before metadata, which may read templates from it. Each module has `run(settings)`, a context manager that yields the bound address.
# Modules are named, not imported, so that a process holds only the libraries of the roles it runs.
ROLES = {
    "console": "services.console.server",
    "metadata": "services.metadata.server",
    "planner": "services.planner.server",
    "runner": "services.runner.server",
    "gateway": "gateway.app",
}
# Settings by which the roles that start later find an earlier one.
ADDRESS_SETTINGS = {"metadata": "metadata_addr", "planner": "planner_addr", "console": "console_addr"}
FREE_PORT = "127.0.0.1:0"
ASKED_EARLY = frozenset({"console", "planner"})
# Limits that protect a server and its users from each other, and what lifts them where there is one user.
ONE_USERS = (("external", "allowed_hosts", "*"), ("local", "models_dir", "*"), ("templates", "inline_flags", "any"))
# Beside other roles these run on an event loop in a thread of their own: a runner that is busy with hundreds of answers
# would otherwise make everybody wait who polls the gateway. See docs/decisions/0007-runner-in-a-thread.md.
APART = frozenset({"runner"})
# Seconds after which a busy thread gives way to another; Python's own 5 ms add up over the steps of one call.
GIVE_WAY_S = 0.001
LOCK_FILE = "serve.lock"

log = structlog.get_logger(__name__)


class StartFailed(Exception):
    """A role did not come up; the text says which, and why."""


@asynccontextmanager
async def serve(settings: Settings, roles: Collection[str] = tuple(ROLES)) -> AsyncIterator[dict[str, str]]:
    """Run `roles` in this process for the length of the block; yields the address of each.

    Several roles find each other: those that speak gRPC listen on free loopback ports, unless the settings name one.
    If a role fails later, the block is cancelled, all roles stop and its error is raised. Error: StartFailed.
    """
    if len(roles) > 1:
        settings = together(settings, roles)
    addresses: dict[str, str] = {}
    async with AsyncExitStack() as stack:
        if "metadata" in roles and settings.database_url().startswith("sqlite"):
            stack.enter_context(only_instance(settings.data_dir))
        for role in ROLES:
            if role in roles:
                apart = role in APART and len(roles) > 1
                addresses[role] = await stack.enter_async_context(_starting(role, settings, apart=apart))
                settings = wired(settings, {role: addresses[role]})
        yield addresses


@asynccontextmanager
async def _starting(role: str, settings: Settings, *, apart: bool) -> AsyncIterator[str]:
    run: Run = importlib.import_module(ROLES[role]).run
    if apart:
        sys.setswitchinterval(GIVE_WAY_S)
    async with AsyncExitStack() as stack:
        try:
            entered = in_own_loop(role, lambda: run(settings)) if apart else run(settings)
            address = await stack.enter_async_context(entered)
        except Exception as error:
            raise StartFailed(f"the {role} role did not start: {reason(error)}") from error
        yield address


def wired(settings: Settings, addresses: Mapping[str, str]) -> Settings:
    """The settings by which other roles find those that serve at `addresses`."""
    found = {ADDRESS_SETTINGS[role]: address for role, address in addresses.items() if role in ADDRESS_SETTINGS}
    return settings.model_copy(update=found)


def together(settings: Settings, roles: Collection[str]) -> Settings:
    """The settings of several roles in one process, where the environment says nothing else."""
    update: dict[str, object] = {}
    for role in roles:
        section = getattr(settings, role)
        if role != "gateway" and "listen" not in section.model_fields_set:
            # Some are asked by roles that start before them, so their address is chosen now.
            listen = reserved() if role in ASKED_EARLY else FREE_PORT
            update[role] = section.model_copy(update={"listen": listen})
            if role in ASKED_EARLY:
                update[ADDRESS_SETTINGS[role]] = listen
    if {"gateway", "runner"} <= set(roles) and _is_one_users(settings):
        log.info("loopback only and no API keys, so this is one user's server: any endpoint, file and flag is allowed")
        for name, limit, lifted in ONE_USERS:
            section = getattr(settings, name)
            if limit not in section.model_fields_set:
                update[name] = section.model_copy(update={limit: lifted})
    return settings.model_copy(update=update)


def reserved() -> str:
    """A loopback address with a port that is free now. Should another process take it, the start fails and says so."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def _is_one_users(settings: Settings) -> bool:
    """Whoever can reach the server is on this machine as well, so there is nobody to protect it from."""
    return is_loopback(settings.gateway.listen) and not settings.api_keys_file


@contextmanager
def only_instance(data_dir: Path) -> Iterator[None]:
    """Hold the data folder. The kernel lets go of it when the process dies, however it dies. Error: StartFailed."""
    data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (data_dir / LOCK_FILE).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StartFailed(f"the data folder {data_dir} is in use by another aibrix-batch process") from error
        yield


async def until_stopped(settings: Settings, roles: Collection[str]) -> None:
    """Serve until SIGINT or SIGTERM. A signal during the start gives the start up; a second one ends the process."""
    ready, stop = asyncio.Event(), asyncio.Event()

    async def serving() -> None:
        async with serve(settings, roles) as addresses:
            log.info("ready", **addresses)
            ready.set()
            await stop.wait()
            log.info("stopping")

    async with asyncio.TaskGroup() as group:
        task = group.create_task(serving())
        await until_signalled()
        if ready.is_set():
            stop.set()
        else:
            task.cancel()


def main(settings: Settings, roles: Collection[str] = tuple(ROLES)) -> int:
    """Run a process of `roles`; its exit code."""
    logs.configure(settings.log)
    try:
        uvloop.run(until_stopped(settings, roles))
    except (KeyboardInterrupt, asyncio.CancelledError):  # before our own handlers are there, or between two
        log.info("stopped by a signal during the start")
    except Exception as failure:
        log.error("stopped by a failure", error=reason(failure), exc_info=not _is_expected(failure))
        return 1
    return 0


def reason(error: BaseException) -> str:
    """Why it failed, in one line: what lies inside of groups, each once."""
    if isinstance(error, BaseExceptionGroup):
        return "; ".join(dict.fromkeys(reason(inner) for inner in error.exceptions))
    return str(error) or type(error).__name__


def _is_expected(failure: BaseException) -> bool:
    """A start that failed says why by itself; anything else is a fault of ours and needs its traceback."""
    if isinstance(failure, BaseExceptionGroup):
        return all(_is_expected(inner) for inner in failure.exceptions)
    return isinstance(failure, StartFailed)


if __name__ == "__main__":
    sys.exit(main(load(), sys.argv[1:] or tuple(ROLES)))
