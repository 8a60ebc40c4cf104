"""Cuts an input file into lines, in constant memory whatever the lines are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

BOM = b"\xef\xbb\xbf"
BLANKS = b" \t\r"
SLICE = 256 * 1024


class Line(NamedTuple):
    number: int
    """Physical line of the file, from 1."""
    offset: int
    text: bytes
    too_long: bool


def split(chunks: Iterable[bytes], longest: int) -> Iterator[Line]:
    """Non-blank lines without the white space around them. Of a line that is too long only its place is kept."""
    splitter = Splitter(longest)
    for part in slices(chunks):
        yield from splitter.feed(part)
    yield from splitter.end()


class Splitter:
    def __init__(self, longest: int) -> None:
        self.longest = longest
        self.number = 1
        self.start = 0
        # The beginning of a line whose end has not come yet: its size, and its bytes unless it is too long already.
        self.size = 0
        self.held: list[bytes] = []

    def feed(self, part: bytes) -> Iterator[Line]:
        pieces = part.split(b"\n")
        last = pieces.pop()
        if pieces:
            if self.size > self.longest:
                self._next(self.size + len(pieces.pop(0)))
            else:
                pieces[0] = b"".join((*self.held, pieces[0]))
            self.size, self.held = 0, []
            for piece in pieces:
                text = piece.strip(BLANKS)
                if text:
                    yield Line(self.number, self.start + piece.find(text[:1]), text, len(text) > self.longest)
                self._next(len(piece))
        yield from self._hold(last)

    def end(self) -> Iterator[Line]:
        rest = b"".join(self.held)
        if text := rest.strip(BLANKS):
            yield Line(self.number, self.start + rest.find(text[:1]), text, too_long=False)

    def _next(self, length: int) -> None:
        self.start += length + 1
        self.number += 1

    def _hold(self, last: bytes) -> Iterator[Line]:
        fits = self.size <= self.longest
        self.size += len(last)
        if self.size <= self.longest:
            self.held.append(last)
        elif fits:
            self.held = []
            yield Line(self.number, self.start, b"", too_long=True)


def slices(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """The file in slices that fit the processor's cache, with blanks in place of a byte order mark: offsets stay."""
    head: bytes | None = b""
    for chunk in chunks:
        for at in range(0, len(chunk), SLICE):
            part = chunk[at : at + SLICE]
            if head is not None:
                part = head + part
                if len(part) < len(BOM):
                    head = part
                    continue
                head = None
                if part.startswith(BOM):
                    part = b" " * len(BOM) + part[len(BOM) :]
            yield part
    if head:
        yield head
