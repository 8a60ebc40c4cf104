"""What a pod is made from: the request's body, and the script that the container runs instead of the image's command."""

from __future__ import annotations

import json
import re
from typing import Any

from services.planner.resource_manager.base import Order

SSH_PORT = 22
HTTP_PORT = 8000
# RunPod cannot place pods with less than 20 GB. What fits into the GPUs must fit on the disk, beside the software.
SOFTWARE_GB = 40
MOST_DISK_GB = 1500
KEY_DIRECTORY = "/etc/aibrix-ssh"
RUN_DIRECTORY = "/run/sshd"
PUBLIC_KEY = re.compile(
    r"(?:ssh-ed25519|ssh-rsa|ecdsa-sha2-nistp\d{3}|sk-[a-z0-9@.-]+) [A-Za-z0-9+/]{40,}={0,3}(?: [^\r\n]*)?"
)

# Run as root by /bin/sh. Nothing secret goes in, and the host's private key never leaves the pod: the log, which only the
# account can read, carries the public half. CUDA is tried because a GPU can be listed and yet not work; a fabric that is
# still coming up gets half a minute. Sessions get the image's own PATH, which sshd would not give them.
_BOOT = r"""
set -eu
umask 077
image_path=$PATH
PATH=$PATH:/usr/sbin:/sbin
mkdir -p KEY_DIRECTORY
mkdir -p -m 755 RUN_DIRECTORY
if ! command -v sshd >/dev/null; then
  if ! command -v apt-get >/dev/null; then
    echo "the image has neither sshd nor apt-get" >&2
    exit 1
  fi
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -qq
  apt-get install -qq -y --no-install-recommends openssh-server
fi
usermod -p '*' root || echo "root's password was not touched" >&2
printf '%s\n' "$PUBLIC_KEY" >KEY_DIRECTORY/authorized_keys
[ -f KEY_DIRECTORY/host_key ] || ssh-keygen -q -t ed25519 -N '' -C '' -f KEY_DIRECTORY/host_key
cat >KEY_DIRECTORY/sshd_config <<END
Port 22
HostKey KEY_DIRECTORY/host_key
PidFile none
AuthorizedKeysFile KEY_DIRECTORY/authorized_keys
AuthenticationMethods publickey
PasswordAuthentication no
PermitRootLogin prohibit-password
AllowUsers root
AllowTcpForwarding local
AllowAgentForwarding no
X11Forwarding no
PermitTunnel no
PermitUserRC no
UsePAM no
LogLevel ERROR
Subsystem sftp internal-sftp
SetEnv "PATH=$image_path" "LD_LIBRARY_PATH=${LD_LIBRARY_PATH:-}"
END
cuda=unknown
if command -v nvidia-smi >/dev/null && command -v python3 >/dev/null; then
  for try in 1 2 3 4 5 6; do
    cuda=$(timeout 60 python3 -c 'import ctypes; print(ctypes.CDLL("libcuda.so.1").cuInit(0))' || echo unknown)
    [ "$cuda" = 0 ] && break
    sleep 5
  done
fi
echo "CUDA $MACHINE_NAME $cuda"
echo "HOSTKEY $MACHINE_NAME $(cut -d ' ' -f 1,2 KEY_DIRECTORY/host_key.pub)"
exec "$(command -v sshd)" -D -e -f KEY_DIRECTORY/sshd_config
"""


def boot_script(key_directory: str = KEY_DIRECTORY, run_directory: str = RUN_DIRECTORY) -> str:
    return _BOOT.replace("KEY_DIRECTORY", key_directory).replace("RUN_DIRECTORY", run_directory).lstrip()


def create_request(order: Order, *, image: str, cloud: str, public_key: str) -> dict[str, Any]:
    """The body of POST /pods. `args` is the form of entrypoint and command that every revision of v2 takes.

    Only SSH is published: the engine listens on the pod's loopback and is reached through a forward. RunPod's HTTP proxy is
    open to everyone and ends a connection after 100 seconds.
    """
    offer = order.offer
    return {
        "name": order.name,
        "image": image,
        "cloud": cloud,
        "gpu": {"id": offer.instance_type, "count": offer.gpus},
        "dataCenterIds": [offer.region] if offer.region else [],
        "disk": min(SOFTWARE_GB + offer.gpus * offer.memory_gb, MOST_DISK_GB),
        "ports": [f"{SSH_PORT}/tcp"],
        "env": {"PUBLIC_KEY": public_key, "MACHINE_NAME": order.name},
        "args": json.dumps({"entrypoint": ["/bin/sh", "-c"], "cmd": [boot_script()]}),
    }
