"""Containers and images of a machine: folders below `~/docker`."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import secrets
import shutil
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.ssh.dockerlike.flags import Failed
from tests.ssh.dockerlike.shim import launch, lives, now, write_state

NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]+")
COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
IMAGE = re.compile(
    rf"(?:[a-zA-Z0-9.-]+(?::\d+)?/)?{COMPONENT}(?:/{COMPONENT})*(?::\w[\w.-]{{0,127}})?(?:@sha256:[0-9a-f]{{64}})?",
    re.ASCII,
)
DAEMON = "Error response from daemon: "
LAYER_BYTES = 64 * 1024
LOST = 255
# What a program of this folder needs to be what it is; a real container has none of it.
OURS = ("PATH", "HOME", "TMPDIR", "LANG", "PYTHONPATH", "PYTHONDONTWRITEBYTECODE", "AIBRIX_TEST_MACHINE")

State = dict[str, Any]


def root() -> Path:
    folder = Path(os.environ["HOME"]) / "docker"
    folder.mkdir(exist_ok=True)
    return folder


def knobs() -> State:
    path = Path(os.environ["HOME"]) / "knobs.json"
    values: State = json.loads(path.read_text()) if path.exists() else {}
    return values


@contextmanager
def changing() -> Iterator[None]:
    """One command at a time."""
    with (root() / "lock").open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def every() -> list[State]:
    """The newest first, with what is so now."""
    found = []
    for path in root().glob("*/state.json"):
        with contextlib.suppress(FileNotFoundError):  # removed meanwhile
            found.append(_current(path.parent))
    return sorted(found, key=lambda state: -state["number"])


def _current(folder: Path) -> State:
    state: State = json.loads((folder / "state.json").read_text())
    if state["status"] == "running" and not lives(folder):
        # Its end may have been written between the two looks; if not, the machine went down under it.
        state = json.loads((folder / "state.json").read_text())
        if state["status"] == "running":
            state |= {"status": "exited", "exit_code": LOST, "pid": 0}
    return state


def find(name: str) -> State | None:
    """By name, by id, or by the beginning of an id."""
    name = name.removeprefix("/")
    states = every()
    named = [state for state in states if state["name"] == name]
    return next(iter(named or [state for state in states if name and state["id"].startswith(name)]), None)


def get(name: str) -> State:
    state = find(name)
    if state is None:
        raise Failed(f"{DAEMON}No such container: {name}", 1)
    return state


def create(state: State) -> State:
    """A container that does not run. Its name is free, or it gets one."""
    name = state["name"] = state["name"] or f"gpu_{secrets.token_hex(4)}"
    if not NAME.fullmatch(name):
        allowed = "[a-zA-Z0-9][a-zA-Z0-9_.-]"
        raise Failed(f"{DAEMON}Invalid container name ({name}), only {allowed} are allowed", 125)
    taken = next((other for other in every() if other["name"] == name), None)
    if taken is not None:
        raise Failed(
            f'{DAEMON}Conflict. The container name "/{name}" is already in use by container "{taken["id"]}". '
            "You have to remove (or rename) that container to be able to reuse that name.",
            125,
        )
    state |= {"id": secrets.token_hex(32), "number": time.time_ns(), "status": "created", "pid": 0, "exit_code": 0}
    state |= {"created": now(), "started": "0001-01-01T00:00:00Z", "finished": "0001-01-01T00:00:00Z"}
    folder = root() / name
    try:
        folder.mkdir(exist_ok=True)
        write_state(folder, state)
    except OSError as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise Failed(f"{DAEMON}{(error.strerror or '').lower()}", 125) from error
    return state


def start(state: State) -> None:
    """Error: Failed, with status 1."""
    if state["gpus"] is not None and knobs().get("no_gpu_runtime"):
        raise Failed(f'{DAEMON}could not select device driver "" with capabilities: [[gpu]]', 1)
    for port in state["ports"].values():
        _claim(state["name"], port)
    environment = {**state["env"], **{name: os.environ[name] for name in OURS if name in os.environ}}
    environment |= {"AIBRIX_TEST_PORTS": json.dumps(state["ports"]), "AIBRIX_TEST_CONTAINER": state["id"]}
    # The entrypoint of vllm/vllm-openai, whatever image it is.
    why = launch(root() / state["name"], state, ["vllm", "serve", *state["args"]], environment)
    if why:
        raise Failed(f"{DAEMON}{why}", 1)


def stop(state: State, grace_s: float, first: int = signal.SIGTERM) -> None:
    """Returns when it has ended."""
    folder = root() / state["name"]
    if state["status"] != "running":
        return
    _signal(state, first)
    until = time.monotonic() + grace_s
    while lives(folder):
        if time.monotonic() > until:
            _signal(state, signal.SIGKILL)
            until = sys.maxsize
        time.sleep(0.01)


def _signal(state: State, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        (os.killpg if number == signal.SIGKILL else os.kill)(state["pid"], number)


def remove(state: State) -> None:
    shutil.rmtree(root() / state["name"])


def _claim(name: str, port: int) -> None:
    """Published ports are taken from the start of a container on, whether or not its process listens already."""
    why = None
    if any(port in other["ports"].values() for other in every() if other["status"] == "running"):
        why = f"Bind for 127.0.0.1:{port} failed: port is already allocated"
    elif not _is_free(port):
        why = f"failed to bind host port 127.0.0.1:{port}/tcp: address already in use"
    if why is not None:
        raise Failed(f"{DAEMON}driver failed programming external connectivity on endpoint {name}: {why}", 1)


def _is_free(port: int) -> bool:
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


# Images


def checked(image: str) -> str:
    """The image with a tag. Error: Failed, with the text alone."""
    if not IMAGE.fullmatch(image):
        lower = IMAGE.fullmatch(image.lower())
        why = f": repository name (library/{image}) must be lowercase" if lower and "/" not in image else ""
        raise Failed(f"invalid reference format{why}", 1)
    tagged = ":" in image.rpartition("/")[2] or "@" in image
    return image if tagged else f"{image}:latest"


def _layer(image: str) -> Path:
    return root() / "images" / image.encode().hex()[:200]


def has_image(image: str) -> bool:
    return _layer(image).exists() or image in map(checked, knobs().get("images", []))


def pull(image: str, say: Any) -> None:
    """Error: Failed, with status 1."""
    wanted = knobs()
    name, _, tag = image.rpartition(":")
    match wanted.get("pull_fails"):
        case "denied":
            why = f"pull access denied for {name}, repository does not exist or may require 'docker login'"
            raise Failed(f"{DAEMON}{why}: denied: requested access to the resource is denied", 1)
        case "not_found":
            raise Failed(f"{DAEMON}manifest for {image} not found: manifest unknown: manifest unknown", 1)
        case "network":
            why = "dial tcp: lookup registry-1.docker.io: Temporary failure in name resolution"
            raise Failed(f'{DAEMON}Get "https://registry-1.docker.io/v2/": {why}', 1)
        case "disk":
            raise Failed("failed to register layer: write /usr/lib/libcudnn.so: no space left on device", 1)
        case _:
            pass
    say(f"{tag}: Pulling from {name}")
    time.sleep(wanted.get("pull_s", 0))
    layer = _layer(image)
    try:
        layer.parent.mkdir(exist_ok=True)
        layer.write_bytes(b"x" * LAYER_BYTES)
    except OSError as error:
        layer.unlink(missing_ok=True)
        text = f"failed to register layer: write /usr/lib/libcudnn.so: {(error.strerror or '').lower()}"
        raise Failed(text, 1) from error
    say(f"4f4fb700ef54: Pull complete\nStatus: Downloaded newer image for {image}\ndocker.io/{image}")
