"""The command as a real process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import orjson

COMMAND = (sys.executable, "-m", "cli")
PATIENCE_S = 90.0


def environment(**more: str) -> dict[str, str]:
    """Ours without settings, so that a developer's own do not decide a test."""
    return {name: value for name, value in os.environ.items() if not name.startswith("AIBRIX_")} | more


def cli(*argv: str | Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Run it to its end."""
    words = [*COMMAND, *map(str, argv)]
    return subprocess.run(words, env=environment(**env), capture_output=True, text=True, timeout=PATIENCE_S)


def request(name: str, **body: Any) -> dict[str, Any]:
    content = {"model": "m", "messages": [{"role": "user", "content": name}]} | body
    return {"custom_id": name, "method": "POST", "url": "/v1/chat/completions", "body": content}


def write_lines(path: Path, *lines: dict[str, Any]) -> Path:
    path.write_bytes(b"".join(orjson.dumps(line) + b"\n" for line in lines))
    return path


def read_lines(*paths: Path) -> list[dict[str, Any]]:
    return [orjson.loads(line) for path in paths if path.exists() for line in path.read_bytes().splitlines()]


def ids(*paths: Path) -> Counter[str]:
    return Counter(line["custom_id"] for line in read_lines(*paths))
