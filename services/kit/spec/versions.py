"""The order of template versions: v1.10.0 is later than v1.9.0, and v2.0.0 later than v2.0.0-rc.1.

Semantic Versioning 2.0 (semver.org, point 11) where a version is written that way; what is not still has one fixed order.
"""

from __future__ import annotations

import re
from typing import Any

NUMBERS = re.compile(r"[vV]?(\d+(?:\.\d+)*)", re.ASCII)
CHUNKS = re.compile(r"\d+|\D+", re.ASCII)
# Letters straight behind the number, as Python writes them (PEP 440): 1.0rc1 comes before 1.0, 1.0.post1 after it.
EARLIER = re.compile(r"[._]?(?:a|alpha|b|beta|c|rc|pre|preview|dev)[._-]?\d*(?![a-z])", re.ASCII | re.IGNORECASE)

BEFORE, SAME, AFTER = range(3)


def version_key(version: str) -> tuple[Any, ...]:
    """Sorts versions from the earliest to the latest. Two spellings of one version (`v1`, `1.0`) are ordered by their text."""
    number = NUMBERS.match(version)
    if number is None:
        return (0, (), SAME, (), _natural(version), version)  # such as `stable`: before everything that has a number
    parts = tuple(int(part) for part in number[1].split("."))
    while len(parts) > 1 and parts[-1] == 0:
        parts = parts[:-1]
    rest, _, _ = version[number.end() :].partition("+")  # what stands behind a plus says how it was built
    if not rest:
        return (1, parts, SAME, (), (), version)
    stage = BEFORE if rest.startswith("-") or EARLIER.match(rest) else AFTER
    identifiers = tuple(_identifier(part) for part in re.split(r"[.]", rest.strip("-._")))
    return (1, parts, stage, identifiers, (), version)


def _identifier(text: str) -> tuple[Any, ...]:
    """Numbers are compared as numbers, and come before words."""
    return (0, int(text), ()) if text.isascii() and text.isdigit() else (1, 0, _natural(text))


def _natural(text: str) -> tuple[tuple[int, int, str], ...]:
    chunks = CHUNKS.findall(text)
    return tuple((0, int(chunk), "") if chunk.isdigit() and chunk.isascii() else (1, 0, chunk) for chunk in chunks)
