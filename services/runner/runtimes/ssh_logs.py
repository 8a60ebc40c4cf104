"""The end of an engine's log, for the batch's owner: without secrets, and of a size that fits into an error."""

from __future__ import annotations

import re

from services.runner.runtimes.guarded import SECRET_TEXT, TAIL_BYTES, TAIL_LINES

# `HF_TOKEN=...`, `'api_key': ['...']`, `password: ...`. Nothing unbounded stands before the names: a log is long.
NAMED = re.compile(
    r"(?i)((?:token|api[_-]?key|secret|passw(?:or)?d|credential)[\"']?\s{0,3}[=:]\s{0,3}[\[(]?[\"']?)[^\s\"',\])}]+"
)
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def cleaned(text: str, *secrets: str | None) -> str:
    """Its last TAIL_LINES lines; `secrets` are taken out wherever they stand."""
    for secret in secrets:
        if secret:
            text = text.replace(secret, "***")
    text = NAMED.sub(r"\1***", SECRET_TEXT.sub("***", text))
    lines = CONTROL.sub(" ", text.replace("\r\n", "\n")).rstrip("\n").split("\n")
    return "\n".join(lines[-TAIL_LINES:])[-TAIL_BYTES:]
