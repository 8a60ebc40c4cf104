"""LambdaCloud: a container with vLLM on a virtual machine, published on the machine's loopback, reached through an SSH forward."""

from __future__ import annotations

from typing import ClassVar

from services.kit.spec.ssh import LAMBDA_CLOUD
from services.runner.runtimes import ssh_scripts as scripts
from services.runner.runtimes.base import Handle
from services.runner.runtimes.ssh import OverSsh
from services.runner.runtimes.ssh_plan import Plan

# In the container, where it is alone.
PORT = "8000"


class LambdaCloud(OverSsh):
    target: ClassVar[str] = LAMBDA_CLOUD
    user: ClassVar[str] = "ubuntu"
    start_script: ClassVar[str] = scripts.START_CONTAINER
    state_script: ClassVar[str] = scripts.CONTAINER_STATE
    log_script: ClassVar[str] = scripts.CONTAINER_LOG
    stop_script: ClassVar[str] = scripts.STOP_CONTAINER

    def start_arguments(self, wanted: Plan, handle: Handle) -> list[str]:
        container = [wanted.image or "", handle["name"], str(handle["engine_port"])]
        return [*container, "--model", wanted.model, *wanted.flags, "--host", "0.0.0.0", "--port", PORT]

    def more_arguments(self, handle: Handle) -> list[str]:
        return [handle["name"]]
