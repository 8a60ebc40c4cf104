"""Which objects a labelSelector and a fieldSelector mean."""

from __future__ import annotations

import re
from typing import Any

from tests.kubernetes.store import Failed

Object = dict[str, Any]

TERM = re.compile(r"\s*(!?)\s*([\w./-]+)\s*(?:(==|=|!=)\s*([\w.-]*)|\s(in|notin)\s*\(([^)]*)\))?\s*(?:,|$)")
# Those that the kinds served here support; real servers support fewer for each single kind.
FIELDS = {
    "metadata.name",
    "metadata.namespace",
    "spec.nodeName",
    "status.phase",
    "type",
    "reason",
    "involvedObject.kind",
    "involvedObject.name",
    "involvedObject.namespace",
    "involvedObject.uid",
}


def matches(found: Object, labels: str, fields: str) -> bool:
    """Error: Failed, if one of the selectors is none."""
    return _by_labels(found["metadata"].get("labels") or {}, labels) and _by_fields(found, fields)


def check(labels: str, fields: str) -> None:
    """Error: Failed, if one of them is none, whatever objects there are."""
    matches({"metadata": {}}, labels, "")
    for term in filter(None, fields.split(",")):
        _by_fields({}, term)


def _by_labels(labels: dict[str, str], selector: str) -> bool:
    position, does = 0, True
    while position < len(selector):
        term = TERM.match(selector, position)
        if term is None:
            raise Failed(400, "BadRequest", f"unable to parse requirement: {selector!r}")
        does &= _term(labels, *term.groups())
        position = term.end()
    return does


def _term(
    labels: dict[str, str], no: str, key: str, sign: str | None, value: str | None, word: str | None, values: str | None
) -> bool:
    if sign in ("=", "=="):
        return labels.get(key) == value
    if sign == "!=":
        return labels.get(key) != value
    if word:
        named = {one.strip() for one in (values or "").split(",")}
        return (labels.get(key) in named) == (word == "in")
    return (key in labels) != bool(no)


def _by_fields(found: Object, selector: str) -> bool:
    for term in filter(None, selector.split(",")):
        path, sign, value = re.fullmatch(r"([\w.]+?)(!=|==|=)(.*)", term).groups()  # type: ignore[union-attr]
        if path not in FIELDS:
            raise Failed(400, "BadRequest", f'field label not supported: "{path}"')
        here: Any = found
        for part in path.split("."):
            here = here.get(part, {}) if isinstance(here, dict) else {}
        if (str(here or "") == value) == (sign == "!="):
            return False
    return True
