"""The end of an engine's log, for the batch's owner: without secrets, and of a size that fits into an error."""

from __future__ import annotations

import re

from services.runner.runtimes.guarded import SECRET_TEXT, TAIL_BYTES, TAIL_LINES

# `HF_TOKEN=...`, `'api_key': ['...']`, `password: ...`. Nothing unbounded stands before the names: a log is long.
NAMED = re.compile(
    r"(?i)((?:token|api[_-]?key|access[_-]?key(?:[_-]id)?|secret(?:[_-]\w{1,32})?|passw(?:or)?d|passphrase|credential|cookie)"
    r"[\"']?\s{0,3}[=:]\s{0,3}\(?[\"']?)(?:\[[^\]\n]{0,4096}|[^\s\"',\])}]+)"
)
# `--hf-token ...`, but not `--max-tokens 8`.
FLAG = re.compile(r"(?i)(--(?:[\w-]{1,32}[_-])?(?:token|api[_-]?key|secret|password)\s{1,3})[^\s-]\S*")
# Keys of clouds, signed tokens, private keys.
SHAPED = re.compile(
    r"\b(?:rpa_\w{8,}|(?:AKIA|ASIA)[0-9A-Z]{16}|eyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*)"
    r"|-----BEGIN [A-Z ]{0,32}PRIVATE KEY-----[^-]{0,16384}(?:-----END [A-Z ]{0,32}PRIVATE KEY-----)?"
)
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def cleaned(text: str, *secrets: str | None) -> str:
    """Its last TAIL_LINES lines; `secrets` are taken out wherever they stand."""
    for secret in secrets:
        if secret:
            text = text.replace(secret, "***")
    text = SHAPED.sub("***", SECRET_TEXT.sub("***", text))
    text = FLAG.sub(r"\1***", NAMED.sub(r"\1***", text))
    lines = CONTROL.sub(" ", text.replace("\r\n", "\n")).rstrip("\n").split("\n")
    return "\n".join(lines[-TAIL_LINES:])[-TAIL_BYTES:]
