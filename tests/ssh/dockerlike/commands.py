"""The commands of `programs/docker`: what they read, what they print, and with which status they end."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.ssh.dockerlike import containers
from tests.ssh.dockerlike.containers import DAEMON, State
from tests.ssh.dockerlike.flags import Command, Failed, Flag, filtering, whole
from tests.ssh.dockerlike.run import COMMAND as RUN
from tests.ssh.dockerlike.run import complain, daemon, run, say
from tests.ssh.dockerlike.template import render

VERSION = "28.2.2"
Values = dict[str, Any]


def pull(values: Values, words: list[str]) -> int:
    image = containers.checked(words[0])
    daemon()
    containers.pull(image, (lambda text: None) if values["quiet"] else say)
    return 0


def image_inspect(values: Values, words: list[str]) -> int:
    daemon()
    status = 0
    found = []
    for word in words:
        image = containers.checked(word)
        if containers.has_image(image):
            found.append({"Id": "sha256:" + image.encode().hex().ljust(64, "0")[:64], "RepoTags": [image]})
        else:
            complain(f"{DAEMON}No such image: {image}")
            status = 1
    _print_all(found, values["format"])
    return status


def inspect(values: Values, words: list[str]) -> int:
    daemon()
    found = [containers.find(word) for word in words]
    _print_all([described(state) for state in found if state], values["format"])
    for word, state in zip(words, found, strict=True):
        if state is None:
            complain(f"error: no such object: {word}")
    return 1 if None in found else 0


def _print_all(found: list[State], template: str | None) -> None:
    if template is None:
        say(json.dumps(found, indent=4))
        return
    for one in found:
        say(render(template, one))
    if not found:
        say("")


def described(state: State) -> State:
    running = state["status"] == "running"
    times = {"StartedAt": state["started"], "FinishedAt": state["finished"]}
    flags = {"Running": running, "Paused": False, "Restarting": False, "OOMKilled": False, "Dead": False}
    ports = {f"{inner}/tcp": [{"HostIp": "127.0.0.1", "HostPort": str(port)}] for inner, port in state["ports"].items()}
    return {
        "Id": state["id"],
        "Created": state["created"],
        "Path": "vllm",
        "Args": ["serve", *state["args"]],
        "State": {"Status": state["status"], **flags, "Pid": state["pid"], "ExitCode": state["exit_code"], **times},
        "Name": f"/{state['name']}",
        "RestartCount": 0,
        "HostConfig": {"PortBindings": ports, "Binds": state["volumes"], "RestartPolicy": {"Name": "no"}},
        "Config": {
            "Image": state["image"],
            "Env": [f"{name}={value}" for name, value in state["env"].items()],
            "Cmd": state["args"],
            "Entrypoint": ["vllm", "serve"],
            "Labels": state["labels"],
        },
        "NetworkSettings": {"Ports": ports if running else {}},
    }


def ps(values: Values, words: list[str]) -> int:
    daemon()
    chosen = [state for state in containers.every() if values["all"] or state["status"] == "running"]
    for text in values["filter"]:
        name, _, value = text.partition("=")
        chosen = [state for state in chosen if _fits(state, name, value)]
    if values["quiet"]:
        for state in chosen:
            say(state["id"] if values["no-trunc"] else state["id"][:12])
        return 0
    template = values["format"] or "{{.ID}}\t{{.Image}}\t{{.Status}}\t{{.Names}}"
    if values["format"] is None:
        say("CONTAINER ID\tIMAGE\tSTATUS\tNAMES")
    for state in chosen:
        shown = "Up 2 seconds" if state["status"] == "running" else f"Exited ({state['exit_code']}) 1 second ago"
        identifier = state["id"] if values["no-trunc"] else state["id"][:12]
        row = {"ID": identifier, "Image": state["image"], "Names": state["name"], "State": state["status"]}
        row |= {"Status": "Created" if state["status"] == "created" else shown, "Labels": state["labels"]}
        say(render(template, row))
    return 0


def _fits(state: State, name: str, value: str) -> bool:
    match name:
        case "label":
            key, equals, wanted = value.partition("=")
            return key in state["labels"] and (not equals or state["labels"][key] == wanted)
        case "name":
            return value.removeprefix("^").removeprefix("/").removesuffix("$") in state["name"] and (
                not value.endswith("$") or state["name"].endswith(value.strip("^/$"))
            )
        case "id":
            return bool(state["id"].startswith(value))
        case "status":
            return bool(state["status"] == value)
        case _:
            raise Failed(f"{DAEMON}invalid filter '{name}'", 1)


def logs(values: Values, words: list[str]) -> int:
    """Standard output to standard output, standard error to standard error."""
    daemon()
    folder = containers.root() / containers.get(words[0])["name"]
    tail = values["tail"] or "all"
    if tail == "all":
        lines = [line for name in ("log.1", "log") for line in _read(folder / name).split(b"\n")[:-1]]
    else:
        lines = last(folder / "log", int(tail))
        lines = last(folder / "log.1", int(tail) - len(lines)) + lines
    for line in lines:
        os.write(1 if line[:1] == b"1" else 2, line[1:] + b"\n")
    return 0


def _read(path: Path) -> bytes:
    return path.read_bytes() if path.exists() else b""


def last(path: Path, count: int) -> list[bytes]:
    """The last lines, read from the end: a log may be of any size."""
    if count <= 0 or not path.exists():
        return []
    with path.open("rb") as file:
        at = file.seek(0, os.SEEK_END)
        data = b""
        while at > 0 and data.count(b"\n") <= count:
            step = min(at, 1 << 16)
            at = file.seek(at - step)
            data = file.read(step) + data
            file.seek(at)
    return data.split(b"\n")[:-1][-count:]


def each(act: Callable[[State, Values], None]) -> Callable[[Values, list[str]], int]:
    """A command that does something to each container named, and prints the names of those that it could."""

    def command(values: Values, words: list[str]) -> int:
        daemon()
        status = 0
        for word in words:
            try:
                act(containers.get(word), values)
            except Failed as error:
                complain(error.text)
                status = status or int(not (values.get("force") and "No such container" in error.text))
            else:
                say(word)
        return status

    return command


def _rm(state: State, values: Values) -> None:
    if state["status"] == "running" and not values["force"]:
        name = state["name"]
        raise Failed(
            f'{DAEMON}cannot remove container "/{name}": container is running: stop the container before removing or '
            "force remove",
            1,
        )
    containers.stop(state, 0, signal.SIGKILL)
    containers.remove(state)


def _stop(state: State, values: Values) -> None:
    containers.stop(state, float(values["timeout"] or values["time"] or 10))


def _kill(state: State, values: Values) -> None:
    if state["status"] != "running":
        raise Failed(f"{DAEMON}cannot kill container: {state['name']}: container {state['id']} is not running", 1)
    wanted = values["signal"] or "KILL"
    number = int(wanted) if wanted.isdecimal() else signal.Signals[f"SIG{wanted.removeprefix('SIG')}"]
    containers.stop(state, 10 if number == signal.SIGTERM else 0, number)


def _start(state: State, values: Values) -> None:
    if state["status"] != "running":
        with containers.changing():
            containers.start(state)


def _restart(state: State, values: Values) -> None:
    _stop(state, values)
    _start(containers.get(state["name"]), values)


def version(values: Values, words: list[str]) -> int:
    client = {"Client": {"Version": VERSION, "Os": "linux"}}
    shown = values["format"]
    if shown is None:
        say(f"Client: Docker Engine - Community\n Version:           {VERSION}")
        daemon()
        say(f"\nServer: Docker Engine - Community\n Engine:\n  Version:          {VERSION}")
        return 0
    render(shown, {**client, "Server": {"Version": VERSION, "Os": "linux"}}, "version")
    daemon()
    say(render(shown, {**client, "Server": {"Version": VERSION, "Os": "linux"}}, "version"))
    return 0


def info(values: Values, words: list[str]) -> int:
    daemon()
    runtimes = {"runc": {"path": "runc"}} | ({} if containers.knobs().get("no_gpu_runtime") else {"nvidia": {}})
    shown = {"ServerVersion": VERSION, "Containers": len(containers.every()), "Runtimes": runtimes}
    say(render(values["format"] or "Server:\n Server Version: {{.ServerVersion}}\n Runtimes: {{.Runtimes}}", shown))
    return 0


FORMAT = Flag("format", "f")
TIME = (Flag("timeout", "t", wrong=whole), Flag("time", wrong=whole), Flag("signal", "s"))
PS = (
    Flag("all", "a", bool),
    Flag("filter", "f", list, filtering),
    Flag("format"),
    Flag("no-trunc", "", bool),
    Flag("quiet", "q", bool),
)
CONTAINERS = "CONTAINER [CONTAINER...]"
COMMANDS: dict[str, tuple[Command, Callable[[Values, list[str]], int]]] = {
    command.name: (command, act)
    for command, act in (
        (RUN, run),
        (Command("pull", "docker pull [OPTIONS] NAME[:TAG|@DIGEST]", (Flag("quiet", "q", bool),), 1, 1), pull),
        (Command("image inspect", "docker image inspect [OPTIONS] IMAGE [IMAGE...]", (FORMAT,), 1), image_inspect),
        (Command("inspect", "docker inspect [OPTIONS] NAME|ID [NAME|ID...]", (FORMAT,), 1), inspect),
        (Command("ps", "docker ps [OPTIONS]", PS, 0, 0), ps),
        (Command("logs", "docker logs [OPTIONS] CONTAINER", (Flag("tail", "n"),), 1, 1), logs),
        (Command("rm", f"docker rm [OPTIONS] {CONTAINERS}", (Flag("force", "f", bool),), 1), each(_rm)),
        (Command("stop", f"docker stop [OPTIONS] {CONTAINERS}", TIME, 1), each(_stop)),
        (Command("kill", f"docker kill [OPTIONS] {CONTAINERS}", (Flag("signal", "s"),), 1), each(_kill)),
        (Command("start", f"docker start [OPTIONS] {CONTAINERS}", (), 1), each(_start)),
        (Command("restart", f"docker restart [OPTIONS] {CONTAINERS}", TIME, 1), each(_restart)),
        (Command("version", "docker version [OPTIONS]", (FORMAT,), 0, 0), version),
        (Command("info", "docker info [OPTIONS]", (FORMAT,), 0, 0), info),
    )
}


def main(words: list[str]) -> int:
    try:
        return _main(words)
    except Failed as error:
        complain(error.text)
        return error.status


def _main(words: list[str]) -> int:
    name, rest = (words[0], words[1:]) if words else ("", [])
    if name.startswith("-"):
        Command("", "docker [OPTIONS] COMMAND [ARG...]", ()).parse([name])
    if name == "image" and rest:
        name, rest = f"image {rest[0]}", rest[1:]
    if name not in COMMANDS:
        raise Failed(f"docker: unknown command: docker {name}\n\nRun 'docker --help' for more information", 1)
    command, act = COMMANDS[name]
    return act(*command.parse(rest))
