"""The cluster's own words, short and on one line, and its times. Pure."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from services.runner.runtimes.ssh_logs import cleaned

Object = dict[str, Any]

LONGEST = 400
SIGKILL = 137
# What the kubelet calls a container that never ran.
NOT_STARTED = ("StartError", "ContainerCannotRun")


def said(thing: Object) -> str:
    """Of a condition, an event, or a state."""
    text = " ".join(str(thing.get("message") or thing.get("reason") or "no reason was given").split())
    return text if len(text) <= LONGEST else text[:LONGEST] + "..."


def end_of(end: Object) -> str:
    """The words for the state `terminated` of a container."""
    code, reason = end.get("exitCode"), end.get("reason")
    if reason == "OOMKilled":
        return "it was killed since it used more memory than its limit"
    words = _last_of(str(end.get("message") or ""))
    if reason in NOT_STARTED:
        return "it could not be started" + (f": {words}" if words else "")
    killed = " (it was killed)" if code == SIGKILL else ""
    return f"it exited with status {code}{killed}" + (f": {words}" if words else "")


def _last_of(message: str) -> str:
    """What a container left behind may be the end of its log: the end of that says most, and it may hold secrets."""
    text = " ".join(cleaned(message).split())
    return text if len(text) <= LONGEST else "..." + text[-LONGEST:]


def seconds(text: Any, default: float) -> float:
    """A time of the API in Unix seconds."""
    try:
        found = datetime.fromisoformat(str(text))
    except ValueError:
        return default
    return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()
