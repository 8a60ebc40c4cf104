"""Roles as processes with what a pod of deploy/kubernetes gives them: its environment, and nothing that can be written but its volumes."""

from __future__ import annotations

import asyncio
import functools
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.cli.support import environment
from tests.deploy.files import dockerfile
from tests.deploy.kube import named
from tests.e2e.processes import PATIENCE_S, eventually, free_port

Container = dict[str, Any]
SERVE = ("aibrix-batch", "serve")
# A mount namespace in which everything but the folder of the process is read only.
READ_ONLY = 'mount --make-rprivate / && mount --bind "$1" "$1" && mount -o remount,ro,bind / && shift && exec "$@"'


@functools.cache
def read_only(folder: Path) -> tuple[str, ...]:
    """What stands before a command, where mounts may be made; nothing elsewhere."""
    words = ("unshare", "--mount", "sh", "-ec", READ_ONLY, "sh", str(folder))
    if shutil.which("unshare") is None:
        return ()
    return words if subprocess.run([*words, "true"], capture_output=True).returncode == 0 else ()


def variables(
    top: str, container: Container, namespace: str, secrets: Mapping[str, Mapping[str, str]]
) -> dict[str, str]:
    """The environment of a container: the image's, then what the manifest says. Error: KeyError for a Secret that is missing."""
    found = {name: value for name, value in dockerfile()[-1].env().items() if name != "PATH"}
    for source in container.get("envFrom", ()):
        if "configMapRef" in source:
            found |= named(top, "ConfigMap", source["configMapRef"]["name"], namespace)["data"]
        else:
            found |= secrets[source["secretRef"]["name"]]
    for one in container.get("env", ()):
        if "valueFrom" not in one:
            found[one["name"]] = one["value"]
            continue
        reference = one["valueFrom"]["secretKeyRef"]
        value = secrets.get(reference["name"], {}).get(reference["key"])
        if value is not None:
            found[one["name"]] = value
        elif not reference.get("optional"):
            raise KeyError(f"{reference['name']}: {reference['key']}")
    return found


@dataclass
class Pod:
    """One process, its volumes and its log in `folder`."""

    name: str
    argv: tuple[str, ...]
    env: dict[str, str]
    folder: Path
    process: asyncio.subprocess.Process | None = None
    ports: dict[str, int] = field(default_factory=dict)

    async def start(self) -> None:
        (self.folder / "tmp").mkdir(parents=True, exist_ok=True)
        command = (*read_only(self.folder), sys.executable, "-m", "cli", *self.argv)
        with (self.folder / "log").open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                *command, env=environment(**self.env), stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log
            )

    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")

    async def serves(self) -> None:
        """What its image's health check says, and so its probes."""

        async def asked() -> bool:
            assert self.process is not None
            assert self.process.returncode is None, self.log()[-4000:]
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", self.ports["LISTEN"])
            except ConnectionRefusedError:
                return False
            writer.close()
            health = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "cli", "health", env=environment(**self.env), stdout=asyncio.subprocess.DEVNULL
            )
            return await health.wait() == 0

        await eventually(asked, f"{self.name} serves", lambda: self.log()[-4000:])

    async def stop(self) -> int:
        """SIGTERM; its exit code."""
        assert self.process is not None
        if self.process.returncode is None:
            self.process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(PATIENCE_S):
            return await self.process.wait()


def role(top: str, name: str, number: int, folder: Path, secrets: Mapping[str, Mapping[str, str]]) -> Pod:
    """A pod of the Deployment `name`, on ports of loopback."""
    deployment = named(top, "Deployment", name)
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    env = variables(top, container, deployment["metadata"]["namespace"], secrets)
    place = folder / f"{name}-{number}"
    env |= {"AIBRIX_DATA_DIR": str(place / "data"), "TMPDIR": str(place / "tmp")}
    ports = {}
    for kind in ("LISTEN", "METRICS_LISTEN"):
        variable = f"AIBRIX_{name.upper()}__{kind}"
        if variable in env:
            ports[kind] = free_port()
            env[variable] = f"127.0.0.1:{ports[kind]}"
    return Pod(f"{name}-{number}", (*SERVE[1:], *container["args"]), env, place, ports=ports)
