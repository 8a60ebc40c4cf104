"""What a user asked `run` to do, and the work folder that lets the same command go on later.

The folder `<output>.aibrix/` holds the server's data, the log and `state.json`: which input it was (size, time, SHA-256),
with which arguments, and how far the submission got. It is deleted when the batch has ended and its files are written.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

from cli.exits import Refused
from services.kit.ids import new_id

STATE_FILE = "state.json"


@dataclass(frozen=True, kw_only=True)
class Order:
    """The arguments of `run`."""

    input: Path
    output: Path
    errors: Path
    base_url: str
    model: str | None = None
    max_concurrency: int | None = None
    endpoint: str | None = None
    api_key_env: str | None = None

    def arguments(self) -> dict[str, Any]:
        """What must be the same when a run is resumed."""
        return {name: str(value) if isinstance(value, Path) else value for name, value in asdict(self).items()}

    def folder(self) -> Path:
        return self.output.with_name(self.output.name + ".aibrix")


class Input(msgspec.Struct, frozen=True):
    """Which file it was. The hash is compared only if size or time differ."""

    bytes: int
    modified_ns: int
    sha256: str

    @classmethod
    def of(cls, path: Path) -> Input:
        with path.open("rb") as source:
            digest = hashlib.file_digest(source, "sha256").hexdigest()
            stat = os.fstat(source.fileno())
        return cls(stat.st_size, stat.st_mtime_ns, digest)

    def is_still(self, path: Path) -> bool:
        stat = path.stat()
        if stat.st_size != self.bytes:
            return False
        return stat.st_mtime_ns == self.modified_ns or Input.of(path).sha256 == self.sha256


class State(msgspec.Struct, frozen=True):
    """What survives `kill -9` of the command."""

    input: Input
    arguments: dict[str, Any]
    key: str
    """Idempotency key of the batch: creating it again after a kill gives the same one."""
    file_id: str | None = None
    batch_id: str | None = None


class WorkFolder:
    def __init__(self, path: Path, state: State) -> None:
        self.path = path
        self.state = state

    @property
    def data_dir(self) -> Path:
        return self.path / "data"

    def save(self, **changes: str) -> None:
        """Replace the state as a whole: a reader sees the old one or the new one."""
        self.state = msgspec.structs.replace(self.state, **changes)
        draft = self.path / f"{STATE_FILE}.new"
        with draft.open("wb") as out:
            out.write(msgspec.json.encode(self.state))
            out.flush()
            os.fsync(out.fileno())
        draft.replace(self.path / STATE_FILE)

    def delete(self) -> None:
        shutil.rmtree(self.path)


def open_folder(order: Order, *, resume: bool) -> WorkFolder:
    """The work folder of `order`, new or as the last run left it. Error: Refused."""
    _check_paths(order)
    path = order.folder()
    if resume:
        return _reopened(order, path)
    if path.exists():
        raise Refused(f"{path} holds an unfinished run: add --resume to go on with it, or delete it to start anew")
    path.mkdir(mode=0o700)
    folder = WorkFolder(path, State(Input.of(order.input), order.arguments(), new_id("run-")))
    folder.save()
    return folder


def _reopened(order: Order, path: Path) -> WorkFolder:
    try:
        state = msgspec.json.decode((path / STATE_FILE).read_bytes(), type=State)
    except FileNotFoundError:
        raise Refused(f"there is nothing to resume: {path} holds no run. Run the command without --resume") from None
    except msgspec.DecodeError as error:
        raise Refused(f"{path / STATE_FILE} cannot be read ({error}): delete {path} to start anew") from error
    for name, value in order.arguments().items():
        if state.arguments.get(name) != value:
            raise Refused(
                f"--resume needs the arguments of the first run: {name} was {state.arguments.get(name)!r}, "
                f"now it is {value!r}"
            )
    if not state.input.is_still(order.input):
        raise Refused(f"{order.input} has changed since the run began: delete {path} to start anew")
    return WorkFolder(path, state)


def _check_paths(order: Order) -> None:
    if not order.input.is_file():
        raise Refused(f"{order.input} is not a file")
    if not order.output.parent.is_dir():
        raise Refused(f"the folder {order.output.parent} does not exist")
    for path in (order.output, order.errors):
        if path.is_dir():
            raise Refused(f"{path} is a folder")
    if len({path.resolve() for path in (order.input, order.output, order.errors)}) < 3:
        raise Refused("input, output and error file must be three different files")


def absolute(order: Order) -> Order:
    """Paths as they are on disk, so that a resume from another folder is the same command."""
    return replace(order, input=order.input.absolute(), output=order.output.absolute(), errors=order.errors.absolute())


def resume_command() -> str:
    """This very command with --resume."""
    import shlex

    arguments = [one for one in sys.argv[1:] if one != "--resume"]
    return shlex.join(["aibrix-batch", *arguments, "--resume"])
