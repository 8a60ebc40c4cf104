"""multipart/form-data, read as it arrives: parts in any order, of any size, in constant memory."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from urllib.parse import unquote

from gateway.errors import Refused
from gateway.shape import checked_text, printable
from services.kit.errors import InvalidArgument

Read = Callable[[], Awaitable[bytes]]

MAX_HEADER_BYTES = 16 * 1024
MAX_FIELD_BYTES = 64 * 1024
MAX_PARTS = 100
MAX_OUTSIDE_BYTES = 64 * 1024  # before the first boundary and after the last
BOUNDARY = re.compile(r';\s*boundary\s*=\s*(?:"([^"\r\n]{1,70})"|([^\s;,"]{1,70})(?=[\s;,]|$))', re.IGNORECASE)
PARAMETER = re.compile(r';\s*([\w*-]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s;"]*))\s*', re.DOTALL)
ESCAPE = re.compile(r'\\(["\\])')
# Encodings of a part that leave its bytes as they are.
PLAIN = {"content-encoding": {"", "identity"}, "content-transfer-encoding": {"", "7bit", "8bit", "binary"}}
TRUNCATED = "the body ends before its last boundary"


class Part:
    """One part; its bytes are gone once the next part is asked for."""

    def __init__(self, name: str, filename: str | None, read: Read) -> None:
        self.name = name
        self.filename = filename
        self.read = read
        """Some of its bytes; none at its end."""

    async def text(self) -> str:
        """Its bytes as the text of a field. Error: InvalidArgument."""
        data = b""
        while chunk := await self.read():
            data += chunk
            if len(data) > MAX_FIELD_BYTES:
                raise InvalidArgument(
                    f"Invalid '{printable(self.name)}': too long. Expected at most {MAX_FIELD_BYTES} bytes.",
                    param=printable(self.name),
                    code="string_above_max_length",
                )
        try:
            return checked_text(printable(self.name), data.decode())
        except UnicodeDecodeError as error:
            raise malformed("a field is not UTF-8") from error


def boundary_of(content_type: str) -> bytes:
    """Errors: Refused 415 (another type), InvalidArgument (no boundary)."""
    if content_type.split(";")[0].strip().lower() != "multipart/form-data":
        raise Refused(
            415, "Unsupported content type. This endpoint expects 'multipart/form-data'.", code="unsupported_media_type"
        )
    match = BOUNDARY.search(content_type)
    if match is None:
        raise malformed("the Content-Type names no boundary")
    boundary: str = match[1] or match[2]
    return boundary.encode("utf-8", "surrogateescape")


class Multipart:
    """The parts of one body, in the order in which they arrive."""

    def __init__(self, read: Read, boundary: bytes) -> None:
        self._read = read
        self._delimiter = b"\r\n--" + boundary
        self._buffer = b"\r\n"  # the first boundary may stand at the very start
        self._inside = True  # of a part, or of the text before the first
        self._count = 0

    async def next_part(self) -> Part | None:
        """The next part, or None after the last. Error: InvalidArgument for what is no multipart body, or a cut one."""
        await self._skip(None if self._count else MAX_OUTSIDE_BYTES)
        if await self._is_last():
            await self._drain()
            return None
        self._count += 1
        if self._count > MAX_PARTS:
            raise malformed(f"more than {MAX_PARTS} parts")
        headers = await self._headers()
        self._inside = True
        return _part(headers, self._content)

    async def _content(self) -> bytes:
        """Some bytes of this part; none once its closing delimiter is taken off the buffer."""
        while self._inside:
            # Text without carriage returns, as JSONL is, is passed over at the speed of memchr.
            start = self._buffer.find(b"\r")
            cut = self._buffer.find(self._delimiter, start) if start >= 0 else -1
            if cut >= 0:
                self._inside = False
                head, self._buffer = self._buffer[:cut], self._buffer[cut + len(self._delimiter) :]
            else:
                # A delimiter may be cut in two: keep back what could be the start of one.
                cut = self._buffer.find(b"\r", max(0, len(self._buffer) - len(self._delimiter) + 1))
                cut = len(self._buffer) if cut < 0 else cut
                head, self._buffer = self._buffer[:cut], self._buffer[cut:]
            if head:
                return head
            if self._inside:
                await self._more()
        return b""

    async def _skip(self, limit: int | None) -> None:
        size = 0
        while chunk := await self._content():
            size += len(chunk)
            if limit is not None and size > limit:
                raise malformed("no boundary at its start")

    async def _is_last(self) -> bool:
        """Whether the delimiter just passed closes the body; otherwise the rest of its line is taken off."""
        while len(self._buffer) < 2:
            await self._more()
        if self._buffer.startswith(b"--"):
            return True
        while (at := self._buffer.find(b"\r\n")) < 0 and len(self._buffer) <= MAX_HEADER_BYTES:
            await self._more()
        if at < 0 or self._buffer[:at].strip(b" \t"):
            raise malformed("a boundary is followed by other text")
        self._buffer = self._buffer[at:]
        return False

    async def _headers(self) -> dict[str, str]:
        while (end := self._buffer.find(b"\r\n\r\n")) < 0:
            if len(self._buffer) > MAX_HEADER_BYTES:
                raise malformed("the headers of a part are too long")
            await self._more()
        lines, self._buffer = self._buffer[2 : max(2, end)], self._buffer[end + 4 :]
        headers: dict[str, str] = {}
        for line in lines.split(b"\r\n") if lines else ():
            name, colon, value = _decoded(line).partition(":")
            if not colon or name.lower() in headers:
                raise malformed("a part has a header that is wrong or given twice")
            headers[name.lower()] = value.strip(" \t")
        return headers

    async def _drain(self) -> None:
        size = 0
        while chunk := await self._read():
            size += len(chunk)
            if size > MAX_OUTSIDE_BYTES:
                raise malformed("text after the last boundary")

    async def _more(self) -> None:
        data = await self._read()
        if not data:
            raise malformed(TRUNCATED)
        self._buffer += data


def malformed(why: str) -> InvalidArgument:
    return InvalidArgument(f"Could not parse the multipart form: {why}.", code="invalid_multipart")


def _decoded(line: bytes) -> str:
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        raise malformed("a header is not UTF-8") from error


def _part(headers: dict[str, str], read: Read) -> Part:
    for header, plain in PLAIN.items():
        if headers.get(header, "").lower() not in plain:
            raise Refused(
                415, f"Unsupported {header} of a part. Send its bytes as they are.", code="unsupported_encoding"
            )
    kind, semicolon, rest = headers.get("content-disposition", "").partition(";")
    parameters = _parameters(semicolon + rest)
    if kind.strip().lower() != "form-data" or "name" not in parameters:
        raise malformed("a part has no name")
    extended = parameters.get("filename*")
    filename = parameters.get("filename") if extended is None else _extended(extended)
    return Part(parameters["name"], filename, read)


def _parameters(text: str) -> dict[str, str]:
    found: dict[str, str] = {}
    at = 0
    while at < len(text):
        match = PARAMETER.match(text, at)
        if match is None or match[1].lower() in found:
            raise malformed("a Content-Disposition is wrong")
        value = match[3] if match[2] is None else ESCAPE.sub(r"\1", match[2])
        # Browsers and the SDK escape these three and nothing else.
        found[match[1].lower()] = value.replace("%22", '"').replace("%0D", "\r").replace("%0A", "\n")
        at = match.end()
    return found


def _extended(value: str) -> str:
    """RFC 5987: `UTF-8''percent-encoded`."""
    charset, quote, rest = value.partition("'")
    _, second, encoded = rest.partition("'")
    if charset.lower() != "utf-8" or not (quote and second):
        raise malformed("a filename* is not UTF-8")
    try:
        return unquote(encoded, errors="strict")
    except UnicodeDecodeError as error:
        raise malformed("a filename* is not UTF-8") from error
