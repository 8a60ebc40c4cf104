"""`docker run -d`: from what was asked for to a container that runs."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

from tests.ssh.dockerlike import containers
from tests.ssh.dockerlike.containers import DAEMON, State
from tests.ssh.dockerlike.flags import Command, Failed, Flag, label, size, whole

PULLS = ("always", "missing", "never")
UNITS = {"k": 1 << 10, "m": 1 << 20, "g": 1 << 30}
Values = dict[str, Any]

FLAGS = (
    Flag("detach", "d", bool),
    Flag("env", "e", list),
    Flag("env-file", "", list),
    Flag("gpus"),
    Flag("hostname", "h"),
    Flag("init", "", bool),
    Flag("ipc"),
    Flag("label", "l", list, label),
    Flag("log-driver"),
    Flag("log-opt", "", list),
    Flag("name"),
    Flag("publish", "p", list),
    Flag("pull"),
    Flag("quiet", "q", bool),
    Flag("restart"),
    Flag("rm", "", bool),
    Flag("shm-size", wrong=size),
    Flag("stop-timeout", wrong=whole),
    Flag("ulimit", "", list),
    Flag("volume", "v", list),
)
COMMAND = Command("run", "docker run [OPTIONS] IMAGE [COMMAND] [ARG...]", FLAGS, 1, None, mixed=False)


def say(text: str) -> None:
    print(text, flush=True)


def complain(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def daemon(status: int = 1) -> None:
    """Every command that needs the daemon asks whether it is there and whether we may."""
    wanted = containers.knobs()
    time.sleep(wanted.get("daemon_s", 0))
    if sys.argv[1:2] in [[command] for command in wanted.get("daemon_fails", [])]:
        raise Failed(f"{DAEMON}context deadline exceeded", status)
    if wanted.get("docker_down"):
        raise Failed(
            "Cannot connect to the Docker daemon at unix:///var/run/docker.sock. Is the docker daemon running?", status
        )
    if wanted.get("docker_needs_root") and "SUDO_USER" not in os.environ:
        raise Failed(
            "permission denied while trying to connect to the Docker daemon socket at unix:///var/run/docker.sock: "
            "dial unix /var/run/docker.sock: connect: permission denied",
            status,
        )


def run(values: Values, words: list[str]) -> int:
    """Everything that goes wrong before the container runs is 125."""
    try:
        state = _wanted(values, words)
        daemon()
        _have_image(state["image"], values["pull"] or "missing", bool(values["quiet"]))
        with containers.changing():
            containers.create(state)
    except Failed as error:
        raise Failed(f"docker: {error.text}\n\nRun 'docker run --help' for more information", 125) from error
    say(state["id"])
    try:
        with containers.changing():
            containers.start(state)
    except Failed as error:
        raise Failed(f"docker: {error.text}\n\nRun 'docker run --help' for more information", 125) from error
    return 0


def _wanted(values: Values, words: list[str]) -> State:
    pulling = values["pull"]
    if pulling is not None and pulling not in PULLS:
        raise Failed(f"""invalid pull option: '{pulling}': must be one of "always", "missing" or "never\"""", 125)
    if (values["restart"] or "no") != "no":
        raise Failed(f"restart policy '{values['restart']}' is not covered by this program", 125)
    if not values["detach"]:
        raise Failed("a container in the foreground is not covered by this program", 125)
    return {
        "name": values["name"] or "",
        "image": containers.checked(words[0]),
        "args": words[1:],
        "env": _environment(values),
        "labels": {text.partition("=")[0]: text.partition("=")[2] for text in values["label"]},
        "ports": dict(map(_port, values["publish"])),
        "volumes": list(map(_volume, values["volume"])),
        "gpus": values["gpus"],
        "auto_remove": bool(values["rm"]),
        "log_bytes": _log_bytes(values),
        "options": {name: value for name, value in values.items() if value},
    }


def _environment(values: Values) -> dict[str, str]:
    """Files first, then single variables; a name alone is taken from here, if it is here."""
    found: dict[str, str] = {}
    for path in values["env-file"]:
        _take_file(found, path)
    for text in values["env"]:
        name, equals, value = text.partition("=")
        if not name:
            raise Failed(f"invalid environment variable: {text}", 125)
        _take(found, name, value if equals else None)
    return found


def _take_file(found: dict[str, str], path: str) -> None:
    try:
        lines = Path(path).read_text().split("\n")
    except OSError as error:
        raise Failed(f"open {path}: {(error.strerror or '').lower()}", 125) from error
    for line in filter(None, map(str.lstrip, lines)):
        if line.startswith("#"):
            continue
        name, equals, value = line.partition("=")
        if not name:
            raise Failed(f"invalid env file ({path}): no variable name on line '{line}'", 125)
        if any(map(str.isspace, name)):
            raise Failed(f"invalid env file ({path}): variable '{name}' contains whitespaces", 125)
        _take(found, name, value if equals else None)


def _take(found: dict[str, str], name: str, value: str | None) -> None:
    value = os.environ.get(name) if value is None else value
    if value is not None:
        found[name] = value


def _port(text: str) -> tuple[str, int]:
    """`127.0.0.1:8001:8000`; on all addresses, a random port and UDP are not covered."""
    parts = text.removesuffix("/tcp").split(":")
    if len(parts) != 3 or parts[0] != "127.0.0.1":
        raise Failed(f"publishing '{text}' is not covered by this program: only 127.0.0.1:PORT:PORT is", 125)
    for part in parts[1:]:
        if not part.isdecimal() or not 0 < int(part) < 65536:
            raise Failed(f"invalid containerPort: {part}" if part is parts[2] else f"invalid hostPort: {part}", 125)
    return parts[2], int(parts[1])


def _volume(text: str) -> str:
    source, _, target = text.partition(":")
    if not target.startswith("/"):
        raise Failed(f"{DAEMON}invalid volume specification: '{text}'", 125)
    if source.startswith("/"):
        Path(source).mkdir(parents=True, exist_ok=True)
    return text


def _log_bytes(values: Values) -> int | None:
    if (values["log-driver"] or "json-file") not in ("json-file", "local"):
        raise Failed(f"{DAEMON}logger: no log driver named '{values['log-driver']}' is registered", 125)
    options = dict(text.partition("=")[::2] for text in values["log-opt"])
    for name in options:
        if name not in ("max-size", "max-file"):
            raise Failed(f"{DAEMON}unknown log opt '{name}' for json-file log driver", 125)
    most = options.get("max-size")
    return None if most is None else int(most.rstrip("kmg")) * UNITS.get(most[-1], 1)


def _have_image(image: str, when: str, quiet: bool) -> None:
    there = containers.has_image(image)
    if when == "never" and not there:
        raise Failed(f"{DAEMON}No such image: {image}", 125)
    if when == "always" or not there:
        if not there:
            complain(f"Unable to find image '{image}' locally")
        containers.pull(image, (lambda text: None) if quiet else complain)
