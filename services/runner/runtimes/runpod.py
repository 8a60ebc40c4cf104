"""RunPod: `vllm serve` in a pod, on the pod's loopback, reached through an SSH forward.

The proxy that RunPod puts before a pod's ports is open to everyone and ends a connection after 100 seconds, so it is used
only for a batch that names it (`http_base_url`). Then the engine listens on all addresses, and its API key is the door.
"""

from __future__ import annotations

from typing import ClassVar

from services.kit.spec.ssh import RUNPOD
from services.runner.runtimes import ssh_scripts as scripts
from services.runner.runtimes.base import Handle
from services.runner.runtimes.ssh import OverSsh
from services.runner.runtimes.ssh_plan import Plan


class RunPod(OverSsh):
    target: ClassVar[str] = RUNPOD
    user: ClassVar[str] = "root"
    start_script: ClassVar[str] = scripts.START_PROCESS
    state_script: ClassVar[str] = scripts.PROCESS_STATE
    log_script: ClassVar[str] = scripts.PROCESS_LOG
    stop_script: ClassVar[str] = scripts.STOP_PROCESS

    def start_arguments(self, wanted: Plan, handle: Handle) -> list[str]:
        host = "127.0.0.1" if wanted.http_base_url is None else "0.0.0.0"
        # Last, so that nothing before it has a say.
        where = ["--host", host, "--port", str(handle["engine_port"])]
        return ["vllm", "serve", wanted.model, *wanted.flags, *where]
