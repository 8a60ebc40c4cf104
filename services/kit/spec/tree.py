"""YAML text as plain data that knows where it stands in the text. Bounded, and strict where YAML is careless.

Built from the parser's events without recursion, so no nesting exhausts the stack. Unlike YAML 1.1: timestamps, base 60,
infinities and not-a-number stay texts, every JSON number is a number, and a key that stands twice is a fault.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
MOST_CHARACTERS = 8 * 1024 * 1024
# A text of this size that is all brackets would otherwise take gigabytes.
MOST_NODES = 1_000_000
# What aliases may add to them: a text of ten lines can name millions.
MOST_ALIASED = 200_000
DEEPEST = 64
LONGEST_NUMBER = 64

NULLS = frozenset({"", "~", "null", "Null", "NULL"})
BOOLEANS = {
    spelling: truth
    for word, truth in (("true", True), ("yes", True), ("on", True), ("false", False), ("no", False), ("off", False))
    for spelling in (word, word.capitalize(), word.upper())
}
FIRST = frozenset("+-.0123456789")
WHOLE = re.compile(r"[-+]?(?:0|[1-9][0-9_]*)", re.ASCII)
BASED = re.compile(r"([-+]?)(?:0b([01_]+)|0x([0-9a-fA-F_]+)|0o?([0-7_]+))", re.ASCII)
REAL = re.compile(r"[-+]?(?:(?:0|[1-9][0-9_]*)(?:\.[0-9_]*)?|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?", re.ASCII)
STANDARD = "tag:yaml.org,2002:"
TAGS: dict[str, tuple[type, ...]] = {
    "null": (type(None),),
    "bool": (bool,),
    "int": (int,),
    "float": (float, int),
    "str": (str,),
    "seq": (list,),
    "map": (dict,),
}

EMPTY: Mapping[str, Any] = {}

# What YAML 1.1 calls not printable: the parser would say it without a line.
STRAY = re.compile("[^\t\n\r -~\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")

Place = tuple[int, int]
"""Line and column, both from 1."""


class Unreadable(Exception):
    """The text is no YAML, or passes a limit."""

    def __init__(self, message: str, place: Place | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.place = place


@dataclass(slots=True, eq=False)
class Node:
    """Scalars are many: they share the empty containers, which nothing changes."""

    value: Any
    place: Place
    pairs: Mapping[str, tuple[Node, Node]] = field(default_factory=lambda: EMPTY)
    """Of a mapping: keys and values, by the key's text."""
    elements: Sequence[Node] = ()
    """Of a list."""
    raw: str | None = None
    """Of a scalar without quotes: what is written there."""
    is_literal: bool = False
    """A block that begins with `|`: its lines are the text's lines."""
    faults: tuple[tuple[Place, str, str], ...] = ()
    """What is wrong in the node itself: where, key, why."""
    is_faulty: bool = False
    """It or something in it has faults."""
    size: int = 1
    height: int = 1

    def children(self) -> Iterator[tuple[str | int, Node]]:
        yield from enumerate(self.elements)
        for key, (_, child) in self.pairs.items():
            yield key, child

    def all_faults(self, path: tuple[str | int, ...] = ()) -> Iterator[tuple[Place, tuple[str | int, ...], str]]:
        """Where, path and reason of each fault in it. Its depth is bounded."""
        if not self.is_faulty:
            return
        for place, key, why in self.faults:
            yield place, (*path, key) if key else path, why
        for step, child in self.children():
            yield from child.all_faults((*path, step))

    def at(self, path: tuple[str | int, ...]) -> tuple[Place, Node | None]:
        """Where the field of `path` stands, and its node. For a field that is not there: where it is missing, and None."""
        node, place = self, self.place
        for step in path:
            if isinstance(step, str) and step in node.pairs:
                key, node = node.pairs[step]
                place = key.place
            elif isinstance(step, int) and step < len(node.elements):
                node = node.elements[step]
                place = node.place
            else:
                return place, None
        return place, node


@dataclass(slots=True)
class _Open:
    """A list or a mapping whose end has not come yet."""

    node: Node
    anchor: str | None
    key: Node | None = None
    """The key whose value comes next."""
    pairs: dict[str, tuple[Node, Node]] = field(default_factory=dict)
    elements: list[Node] = field(default_factory=list)
    merged: list[Node] = field(default_factory=list)
    """What `<<` names."""
    faults: list[tuple[Place, str, str]] = field(default_factory=list)

    def add(self, child: Node) -> None:
        if isinstance(self.node.value, list):
            self.node.value.append(child.value)
            self.elements.append(child)
            self._grow(child)
        elif self.key is None:
            self.key = child
        else:
            key, self.key = self.key, None
            self._pair(key, child)

    def _pair(self, key: Node, child: Node) -> None:
        self.faults.extend(key.faults)
        if not isinstance(key.value, str):
            shown = f' "{key.raw}"' if key.raw and len(key.raw) <= LONGEST_NUMBER else ""
            self.faults.append((key.place, "", f"a key must be a text: write it in quotes{shown}"))
        elif key.raw == "<<":
            found = child.elements if isinstance(child.value, list) else [child]
            if all(isinstance(one.value, dict) for one in found):
                self.merged.extend(found)
            else:
                self.faults.append((key.place, "", "<< takes a mapping, or a list of mappings"))
        elif key.value in self.pairs:
            first = self.pairs[key.value][0].place[0]
            self.faults.append((key.place, key.value, f"this key stands there twice, first on line {first}"))
        else:
            self._put(key, child)

    def _put(self, key: Node, child: Node) -> None:
        self.node.value[key.value] = child.value
        self.pairs[key.value] = (key, child)
        self._grow(child)

    def _grow(self, child: Node) -> None:
        self.node.size += child.size
        self.node.height = max(self.node.height, child.height + 1)
        self.node.is_faulty = self.node.is_faulty or child.is_faulty

    def end(self) -> Node:
        for merged in self.merged:
            self.faults.extend(merged.faults)
            for key, (name, child) in merged.pairs.items():
                if key not in self.pairs:
                    self._put(name, child)
        node = self.node
        node.pairs, node.elements, node.faults = self.pairs or EMPTY, self.elements or (), tuple(self.faults)
        node.is_faulty = node.is_faulty or bool(node.faults)
        return node


def compose(text: str, where: Callable[[int, int], Place] = lambda line, column: (line + 1, column + 1)) -> list[Node]:
    """One node for each document of the text. `where` says what place a line and a column, from 0, are. Error: Unreadable."""
    if len(text) > MOST_CHARACTERS:
        raise Unreadable(f"the text is longer than {MOST_CHARACTERS} characters")
    if stray := STRAY.search(text):
        before = text[: stray.start()]
        line, column = before.count("\n"), len(before) - before.rfind("\n") - 1
        raise Unreadable(f"not YAML: the character U+{ord(stray[0]):04X} is not allowed", where(line, column))
    builder = _Builder(where)
    try:
        for event in yaml.parse(text, Loader=LOADER):
            builder.take(event)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        said = ", ".join(part for part in (error.problem, error.context) if part)
        raise Unreadable(f"not YAML: {said}", where(mark.line, mark.column) if mark else None) from error
    except yaml.YAMLError as error:
        raise Unreadable("not YAML") from error
    return builder.documents


class _Builder:
    def __init__(self, where: Callable[[int, int], Place]) -> None:
        self.where = where
        self.documents: list[Node] = []
        self.open: list[_Open] = []
        self.anchors: dict[str, Node | None] = {}
        """None: not at its end yet."""
        self.written = 0
        self.aliased = 0

    def take(self, event: yaml.Event) -> None:
        if isinstance(event, yaml.ScalarEvent):
            node = self._scalar(event)
            if event.anchor:
                self.anchors[event.anchor] = node
            self._add(node)
        elif isinstance(event, (yaml.SequenceStartEvent, yaml.MappingStartEvent)):
            self._begin(event)
        elif isinstance(event, yaml.CollectionEndEvent):
            self._end()
        elif isinstance(event, yaml.AliasEvent):
            self._alias(event)
        elif isinstance(event, yaml.DocumentStartEvent):
            self.anchors.clear()

    def _place(self, event: yaml.Event) -> Place:
        mark: Any = event.start_mark  # events of the parser always have one
        return self.where(mark.line, mark.column)

    def _count(self, place: Place) -> None:
        self.written += 1
        if self.written > MOST_NODES:
            raise Unreadable(f"more than {MOST_NODES} values", place)

    def _scalar(self, event: yaml.ScalarEvent) -> Node:
        place = self._place(event)
        self._count(place)
        is_plain = event.implicit[0]
        tag = event.tag
        takes_its_type = is_plain or (tag or "").removeprefix(STANDARD) in ("null", "bool", "int", "float")
        value = resolved(event.value) if takes_its_type else event.value
        node = Node(value, place, raw=event.value if is_plain else None, is_literal=event.style == "|")
        node.faults = _wrong_tag(node, tag)
        node.is_faulty = bool(node.faults)
        return node

    def _begin(self, event: yaml.SequenceStartEvent | yaml.MappingStartEvent) -> None:
        place = self._place(event)
        self._count(place)
        if len(self.open) >= DEEPEST:
            raise Unreadable(f"nested deeper than {DEEPEST} levels", place)
        opened = _Open(Node([] if isinstance(event, yaml.SequenceStartEvent) else {}, place), event.anchor)
        opened.faults.extend(_wrong_tag(opened.node, event.tag))
        if event.anchor:
            self.anchors[event.anchor] = None
        self.open.append(opened)

    def _end(self) -> None:
        ended = self.open.pop()
        node = ended.end()
        if ended.anchor:
            self.anchors[ended.anchor] = node
        self._add(node)

    def _alias(self, event: yaml.AliasEvent) -> None:
        place = self._place(event)
        name = event.anchor or ""
        node = self.anchors.get(name)
        if node is None:
            is_open = name in self.anchors
            raise Unreadable("an alias inside of what it names" if is_open else "an alias that names nothing", place)
        self.aliased += node.size
        if self.aliased > MOST_ALIASED:
            raise Unreadable(f"aliases make more than {MOST_ALIASED} values", place)
        if len(self.open) + node.height > DEEPEST:
            raise Unreadable(f"nested deeper than {DEEPEST} levels", place)
        self._add(node)

    def _add(self, node: Node) -> None:
        if self.open:
            self.open[-1].add(node)
        else:
            self.documents.append(node)


def _wrong_tag(node: Node, tag: str | None) -> tuple[tuple[Place, str, str], ...]:
    if tag is None or tag == "!":
        return ()
    types = TAGS.get(tag.removeprefix(STANDARD)) if tag.startswith(STANDARD) else None
    if types is not None and isinstance(node.value, types):
        return ()
    return ((node.place, "", "this tag is not known here, or does not fit"),)


def resolved(text: str) -> Any:
    """What a scalar without quotes is: nothing, a truth value, a number, or else a text."""
    if not text or text[0] not in FIRST:
        return None if text in NULLS else BOOLEANS.get(text, text)
    if len(text) > LONGEST_NUMBER:
        return text
    if WHOLE.fullmatch(text):
        return int(text.replace("_", ""))
    if based := BASED.fullmatch(text):
        number = _in_base(*based.groups())
        return text if number is None else number
    if REAL.fullmatch(text):
        real = float(text.replace("_", ""))
        return real if math.isfinite(real) else text
    return text


def _in_base(sign: str, binary: str | None, hexadecimal: str | None, octal: str | None) -> int | None:
    for digits, base in ((binary, 2), (hexadecimal, 16), (octal, 8)):
        if plain := (digits or "").replace("_", ""):
            return int(sign + plain, base)
    return None
