"""The check of a machine that its provider calls up: log in, and start CUDA. One with a dead GPU can look well otherwise."""

from __future__ import annotations

import asyncssh
import structlog

from services.kit.clock import monotonic
from services.kit.settings import Settings
from services.kit.ssh.commands import TimedOut, run
from services.kit.ssh.connect import Patience, SshError, Target, always_allowed, connect
from services.kit.ssh.keys import VARIABLE, HostKey, read_client_key
from services.planner.domain import Machine
from services.planner.resource_manager.base import Gone, Pending, Probe, Ready
from services.planner.resource_manager.health import HealthCheck, ssh_banner

LOGIN_S = 15.0
# The fabric between GPUs may still be coming up, so it is tried for half a minute.
CUDA_S = 45.0
# What cuInit says, 0 if all is well; `unknown` on a machine without the driver's library or without Python.
SCRIPT = r"""
said=unknown
for try in 1 2 3 4 5 6; do
  said=$(timeout 20 python3 -c 'import ctypes; print(ctypes.CDLL("libcuda.so.1").cuInit(0))' 2>/dev/null) || said=unknown
  case $said in 0|unknown) break ;; esac
  sleep 5
done
echo "$said"
"""

log = structlog.get_logger(__name__)


class CudaProbe:
    """Remembers who passed: a machine that works is only asked for a sign of life."""

    def __init__(self, key: asyncssh.SSHKey) -> None:
        self._key = key
        self._passed: set[str] = set()

    async def __call__(self, machine: Machine) -> Probe:
        if machine.id in self._passed:
            return await ssh_banner(machine)
        if not machine.host_key:
            return Pending("its host key is not known yet", machine)
        try:
            said = await self._ask(machine)
        except (SshError, ValueError) as error:
            # Until cloud-init has run the machine shows the image's own host key, and refuses ours.
            return Pending(str(error), machine)
        if said == "unknown":
            log.warning("CUDA could not be tried", machine=machine.name)
        elif said != "0":
            return Gone("Unhealthy", f"CUDA does not start on {machine.name}: error {said[:20]}")
        self._passed.add(machine.id)
        return Ready(machine)

    async def _ask(self, machine: Machine) -> str:
        """Error: SshError, ValueError."""
        target = Target(
            host=machine.host,
            port=machine.ssh_port,
            user=machine.ssh_user,
            host_key=HostKey.parse(machine.host_key),
            allows=always_allowed,
        )
        connection = await connect(target, self._key, Patience(handshake_s=LOGIN_S), until=monotonic())
        try:
            finished = await run(connection, SCRIPT, timeout_s=CUDA_S)
        except TimedOut:
            return "none within 45 s"
        finally:
            connection.abort()
        return finished.output.strip() or "unknown"


def health_check(settings: Settings) -> HealthCheck:
    """With the key of the runners we can log in; without it the hello of an SSH server has to do. Error: ValueError."""
    if not settings.batch_ssh_key_file:
        log.warning("machines are not asked whether CUDA starts", missing=VARIABLE)
        return ssh_banner
    return CudaProbe(read_client_key(settings.batch_ssh_key_file))
