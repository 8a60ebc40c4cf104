"""The input file of `run` before it is uploaded: which endpoint its lines call, and `--model` filled in.

A line that cannot be read passes as it is: the server's validation complains about it, with its number.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from cli.exits import Refused

MAX_COMPLAINTS = 20
BOM = b"\xef\xbb\xbf"
Fields = dict[str, msgspec.Raw]


class First(msgspec.Struct):
    url: str


def endpoint_of(path: Path) -> str:
    """The `url` of the first line. Error: Refused."""
    with path.open("rb") as source:
        for number, line in enumerate(source, 1):
            if text := _text(number, line):
                try:
                    return msgspec.json.decode(text, type=First).url
                except (msgspec.DecodeError, UnicodeDecodeError) as error:
                    raise Refused(f"{path}, line {number}: {error}") from error
    raise Refused(f"{path} has no lines")


def with_model(source: Path, target: Path, model: str) -> None:
    """Copy `source` with `model` in each line that names none. Error: Refused, when a line names another model."""
    complaints: list[str] = []
    with source.open("rb") as lines, target.open("wb") as out:
        for number, line in enumerate(lines, 1):
            text = _text(number, line)
            named = _named(text)
            if named is None:
                out.write(line)
                continue
            changed, other = _filled(named, model)
            if other is not None and len(complaints) <= MAX_COMPLAINTS:
                complaints.append(f"line {number} names the model {other}, but --model is {model}")
            out.write(changed + b"\n")
    if complaints:
        more = ["..."] if len(complaints) > MAX_COMPLAINTS else []
        raise Refused("\n  ".join([f"{source}:", *complaints[:MAX_COMPLAINTS], *more]))


def _text(number: int, line: bytes) -> bytes:
    return (line.removeprefix(BOM) if number == 1 else line).strip()


def _named(text: bytes) -> tuple[Fields, Fields] | None:
    """The line and its body, with values as they are written; None for what is no request."""
    try:
        line = msgspec.json.decode(text, type=Fields)
        return line, msgspec.json.decode(line["body"], type=Fields)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, KeyError):
        return None


def _filled(named: tuple[Fields, Fields], model: str) -> tuple[bytes, str | None]:
    """The line with its model, and the other model that it names."""
    line, body = named
    wanted = msgspec.json.encode(model)
    given = body.get("model")
    if given is None or bytes(given) == b"null":
        body = {**body, "model": msgspec.Raw(wanted)}
        return msgspec.json.encode({**line, "body": body}), None
    other = None if msgspec.json.decode(given) == model else bytes(given).decode(errors="replace")[:100]
    return msgspec.json.encode(line), other
