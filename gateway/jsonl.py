"""A look at an input file while it passes: is it UTF-8, and does it start with a JSON object?

Everything else about its lines is found by validation, and ends the batch in `failed` as OpenAI does.
"""

from __future__ import annotations

import codecs

import msgspec

from services.kit.errors import InvalidArgument

BLANK = b" \t\r\n"


class JsonlCheck:
    """Feed it the bytes in order. It keeps at most the first line, up to `max_line_bytes`."""

    def __init__(self, max_line_bytes: int) -> None:
        self._max_line_bytes = max_line_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._clean = True  # the decoder holds no half character
        self._started = False
        self._decided = False
        self._line = b""
        self.problem: InvalidArgument | None = None

    def feed(self, chunk: bytes) -> None:
        if self.problem is not None:
            return
        if not (self._clean and chunk.isascii()):
            self._decode(chunk, final=False)
        if not self._decided:
            self._look(chunk)

    def finish(self) -> None:
        if self.problem is None:
            self._decode(b"", final=True)
        if self.problem is None and not self._decided:
            if not self._started:
                self._line = self._line.removeprefix(codecs.BOM_UTF8).lstrip(BLANK)
            self._judge()

    def _decode(self, chunk: bytes, *, final: bool) -> None:
        try:
            self._decoder.decode(chunk, final)
        except UnicodeDecodeError:
            self.problem = _invalid("Invalid file for Batch API. Must be utf-8 encoded", "invalid_encoding")
        self._clean = not self._decoder.getstate()[0]

    def _look(self, chunk: bytes) -> None:
        self._line += chunk
        if not self._started:
            if len(self._line) < len(codecs.BOM_UTF8):
                return
            self._line = self._line.removeprefix(codecs.BOM_UTF8)
            self._started = True
        self._line = self._line.lstrip(BLANK)
        end = self._line.find(b"\n", 0, self._max_line_bytes)
        if end >= 0:
            self._line = self._line[:end]
            self._judge()
        elif len(self._line) > self._max_line_bytes:
            # Too long for a line of a batch: validation says so, with its number.
            self._decided = True
            self._line = b""

    def _judge(self) -> None:
        self._decided = True
        if not self._line:
            self.problem = _invalid(
                "Invalid file format for Batch API. Must be .jsonl: the file is empty.", "empty_file"
            )
            return
        try:
            msgspec.json.decode(self._line, type=dict[str, msgspec.Raw])
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            self.problem = _invalid(
                "Invalid file format for Batch API. Must be .jsonl: the first line is not a JSON object.",
                "invalid_json_line",
            )
        self._line = b""


def _invalid(message: str, code: str) -> InvalidArgument:
    return InvalidArgument(message, param="file", code=code)
