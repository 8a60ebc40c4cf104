"""Checks an input file, line by line, and makes the index of its lines. Runs in a thread: it reads, decides, writes nothing.

Lines are judged by msgspec without building objects of their bodies: a line of 10 MiB that is nothing but brackets
would otherwise become a gigabyte of them, and hold the interpreter lock for a second.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import msgspec

from services.kit.lines import ENTRY
from services.metadata.domain import BatchError
from services.metadata.splitting import Line, split

MOST_ERRORS = 100
MOST_EMBEDDING_INPUTS = 50_000
# Longer ids are remembered by their hash, so that 50,000 of them stay small.
SHORT_ID = 64

# Endpoints that a batch may call: the name in messages, and the fields of a body that must be there.
ENDPOINTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "/v1/chat/completions": ("Chat Completions", ("model", "messages")),
    "/v1/completions": ("Completions", ("model", "prompt")),
    "/v1/embeddings": ("Embeddings", ("model", "input")),
    "/v1/responses": ("Responses", ("input",)),
    "/v1/moderations": ("Moderations", ("input",)),
    "/v1/rerank": ("Rerank", ("query", "documents")),
}
LONGEST_MODEL = 512
# A line has no use for more besides its body; it bounds the slow check for repeated keys.
LONGEST_ENVELOPE = 64 * 1024
# Numbers and texts in the input of one embeddings line: OpenAI takes 300,000 tokens.
MOST_ITEMS = 500_000
NULL = b"null"
ABSENT = msgspec.Raw(NULL)
# Length of what stands around the four fields if they are all there is, with the spaces that Python's json writes.
PLAIN = len('{"custom_id": , "method": , "url": , "body": }')
KINDS = {
    ord("{"): "an object",
    ord("["): "an array",
    ord('"'): "a string",
    ord("t"): "a boolean",
    ord("f"): "a boolean",
    ord("n"): "null",
}


class Envelope(msgspec.Struct):
    """A line; each field is its JSON text. Other fields are read over without making anything of them."""

    custom_id: msgspec.Raw = ABSENT
    method: msgspec.Raw = ABSENT
    url: msgspec.Raw = ABSENT
    body: msgspec.Raw = ABSENT


class Body(msgspec.Struct):
    """The fields of a body that some endpoint needs, likewise."""

    model: msgspec.Raw = ABSENT
    stream: msgspec.Raw = ABSENT
    messages: msgspec.Raw = ABSENT
    prompt: msgspec.Raw = ABSENT
    input: msgspec.Raw = ABSENT
    query: msgspec.Raw = ABSENT
    documents: msgspec.Raw = ABSENT


ENVELOPE: msgspec.json.Decoder[Envelope] = msgspec.json.Decoder(Envelope)
BODY: msgspec.json.Decoder[Body] = msgspec.json.Decoder(Body)
TEXT: msgspec.json.Decoder[str] = msgspec.json.Decoder(str)
ITEMS: msgspec.json.Decoder[list[msgspec.Raw]] = msgspec.json.Decoder(list[msgspec.Raw])


class Abandoned(Exception):
    """The caller no longer wants the answer."""


class Fault(Exception):
    """What is wrong with a line. `last`: reading on would say nothing new."""

    def __init__(self, code: str, message: str, param: str | None = None, *, last: bool = False) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.param = param
        self.last = last


@dataclass(frozen=True, kw_only=True)
class Limits:
    lines: int
    line_bytes: int


@dataclass
class Findings:
    """`errors` empty: the file is good, and `index` holds an entry for each of its `count` lines."""

    errors: list[BatchError] = field(default_factory=list)
    index: bytearray = field(default_factory=bytearray)
    count: int = 0
    model: str | None = None


def check(
    chunks: Iterable[bytes], endpoint: str, limits: Limits, keep_on: Callable[[], bool] = lambda: True
) -> Findings:
    """Read the whole file and say what it holds. Error: Abandoned, once `keep_on` says no."""
    checker = Checker(endpoint, limits)

    def wanted() -> Iterator[bytes]:
        for chunk in chunks:
            if not keep_on():
                raise Abandoned
            yield chunk

    for line in split(wanted(), limits.line_bytes):
        if not checker.add(line):
            break
    return checker.finish()


class Checker:
    """What must hold over all lines of a file."""

    def __init__(self, endpoint: str, limits: Limits) -> None:
        self.limits = limits
        self.endpoint = endpoint
        self.title, self.needed = ENDPOINTS[endpoint]
        self.url = json.dumps(endpoint).encode()
        self.findings = Findings()
        self.seen: set[str | bytes] = set()
        self.model_text: bytes | None = None
        self.inputs = 0
        self.unlisted = 0
        self.empty = True

    def add(self, line: Line) -> bool:
        """Check one line; whether to go on."""
        self.empty = False
        try:
            self._check(line)
        except Fault as fault:
            self._report(BatchError(code=fault.code, message=fault.message, param=fault.param, line=line.number))
            return not fault.last
        self.findings.index += ENTRY.pack(line.offset, len(line.text))
        return True

    def finish(self) -> Findings:
        found = self.findings
        if self.empty:
            message = "The input file is empty. Please ensure that the batch contains at least one request."
            found.errors.append(BatchError(code="empty_file", message=message))
        if self.unlisted:
            # The place of the last entry is taken by the count of those that do not fit.
            found.errors[MOST_ERRORS - 1 :] = [
                BatchError(code="invalid_request", message=f"{self.unlisted + 1} more lines have errors.")
            ]
        return found

    def _report(self, error: BatchError) -> None:
        if len(self.findings.errors) < MOST_ERRORS:
            self.findings.errors.append(error)
        else:
            self.unlisted += 1

    def _check(self, line: Line) -> None:
        self.findings.count += 1
        if self.findings.count > self.limits.lines:
            message = f"The input file holds more than {self.limits.lines} requests."
            raise Fault("too_many_tasks", message, last=True)
        if line.too_long:
            raise Fault("line_too_large", f"This line is longer than {self.limits.line_bytes} bytes.")
        envelope = parse(line.text)
        refuse_repeated(line.text, envelope)
        self._check_id(envelope)
        self._check_target(envelope)
        body = self._body(envelope)
        self._check_stream(body)
        for name in self.needed:
            if is_absent(getattr(body, name)):
                title = name.capitalize()
                raise Fault("invalid_request", f"{title} parameter is required.", f"body.{name}")
        self._check_model(body)
        if self.endpoint == "/v1/embeddings":
            self._count_inputs(body)

    def _check_id(self, envelope: Envelope) -> None:
        custom_id = text_of(envelope.custom_id, "custom_id")
        if not custom_id:
            raise Fault("invalid_value", "Invalid 'custom_id': it must not be empty.", "custom_id")
        mark = custom_id if len(custom_id) <= SHORT_ID else hashlib.sha256(custom_id.encode()).digest()
        if mark in self.seen:
            message = (
                f"The custom_id '{custom_id[:64]}' for this request is a duplicate of another request. "
                "The custom_id parameter must be unique for each request in a batch."
            )
            raise Fault("duplicate_custom_id", message, "custom_id")
        self.seen.add(mark)

    def _check_target(self, envelope: Envelope) -> None:
        method, url = envelope.method, envelope.url
        if bytes(method) != b'"POST"' and (said := text_of(method, "method")) != "POST":
            raise Fault("invalid_method", f"Invalid method: '{said[:16]}'. Only 'POST' is supported.", "method")
        if bytes(url) != self.url and text_of(url, "url") != self.endpoint:
            raise Fault("invalid_url", "The URL provided for this request does not match the batch endpoint.", "url")

    @staticmethod
    def _body(envelope: Envelope) -> Body:
        raw = present(envelope.body, "body")
        if kind_of(raw) != "an object":
            raise wrong_type("body", "an object", raw)
        return BODY.decode(raw)

    def _check_stream(self, body: Body) -> None:
        stream = bytes(body.stream)
        if stream == b"true":
            message = f"{self.title}: Streaming is not supported in the Batch API."
            raise Fault("streaming_unsupported", message, "body.stream")
        if stream not in (b"false", NULL):
            raise wrong_type("body.stream", "a boolean", stream)

    def _check_model(self, body: Body) -> None:
        text = bytes(body.model)
        if text in (self.model_text, NULL):
            return
        if kind_of(text) != "a string":
            raise wrong_type("body.model", "a string", text)
        model = TEXT.decode(text)
        if not model or "\0" in model or len(model) > LONGEST_MODEL:
            raise Fault("invalid_value", "Invalid 'body.model': it must be the name of a model.", "body.model")
        if self.findings.model is None:
            self.findings.model, self.model_text = model, text
        elif model != self.findings.model:
            message = (
                f"The model '{model[:64]}' for this request does not match the rest of the batch. "
                "Each batch must contain requests for a single model."
            )
            raise Fault("mismatched_model", message, "body.model")

    def _count_inputs(self, body: Body) -> None:
        raw = body.input
        is_list = kind_of(raw) == "an array"
        if is_list and bytes(raw).count(b",") > MOST_ITEMS:
            raise Fault("line_too_large", f"The input of this line holds more than {MOST_ITEMS} items.", "body.input")
        items = ITEMS.decode(raw) if is_list else []
        # A list of numbers is one input in tokens; a list of texts, or of such lists, is many.
        self.inputs += len(items) if items and kind_of(items[0]) in ("a string", "an array") else 1
        if self.inputs > MOST_EMBEDDING_INPUTS:
            message = f"The batch has more than {MOST_EMBEDDING_INPUTS} embedding inputs over all requests."
            raise Fault("too_many_tasks", message, "body.input", last=True)


def parse(text: bytes) -> Envelope:
    if not text.isascii():
        try:
            text.decode()
        except UnicodeDecodeError as error:
            raise Fault("invalid_encoding", "This line is not encoded in UTF-8.") from error
    try:
        return ENVELOPE.decode(text)
    except RecursionError as error:
        raise Fault("invalid_json_line", "This line is nested too deeply.") from error
    except msgspec.ValidationError as error:
        raise Fault("invalid_json_line", "This line is not a JSON object.") from error
    except msgspec.DecodeError as error:
        raise Fault("invalid_json_line", "This line is not parseable as valid JSON.") from error


def refuse_repeated(text: bytes, envelope: Envelope) -> None:
    """A key that stands twice in the envelope means one thing to us and perhaps another to the next reader.

    The text is only read again if it is longer than the four fields, each once, and the usual spaces between them.
    """
    custom_id, method, url, body = envelope.custom_id, envelope.method, envelope.url, envelope.body
    if len(text) - len(custom_id) - len(method) - len(url) - len(body) <= PLAIN:
        return
    short = text.replace(bytes(body), NULL, 1)
    if len(short) > LONGEST_ENVELOPE:
        raise Fault("invalid_json_line", f"This line holds more than {LONGEST_ENVELOPE} bytes besides its body.")
    pairs: list[tuple[str, Any]] = []

    def keep(found: list[tuple[str, Any]]) -> None:
        pairs[:] = found  # called last for the outermost object

    try:
        json.loads(short, object_pairs_hook=keep, parse_int=str, parse_float=str)
    except (ValueError, RecursionError) as error:
        raise Fault("invalid_json_line", "This line is not parseable as valid JSON.") from error
    repeated = next((name for name, count in Counter(name for name, _ in pairs).items() if count > 1), None)
    if repeated is not None:
        shown = repeated[:64]
        raise Fault("invalid_json_line", f"The key '{shown}' stands more than once in this line.", shown)


def is_absent(raw: msgspec.Raw) -> bool:
    return len(raw) == len(NULL) and bytes(raw) == NULL


def present(raw: msgspec.Raw, param: str) -> msgspec.Raw:
    if is_absent(raw):
        raise Fault("missing_required_parameter", f"Missing required parameter: '{param}'.", param)
    return raw


def text_of(raw: msgspec.Raw, param: str) -> str:
    if kind_of(present(raw, param)) != "a string":
        raise wrong_type(param, "a string", raw)
    return TEXT.decode(raw)


def kind_of(raw: bytes | msgspec.Raw) -> str:
    kind = KINDS.get(memoryview(raw)[0])
    if kind is not None:
        return kind
    return "a decimal" if any(mark in bytes(raw) for mark in b".eE") else "an integer"


def wrong_type(param: str, expected: str, raw: bytes | msgspec.Raw) -> Fault:
    return Fault(
        "invalid_type", f"Invalid type for '{param}': expected {expected}, but got {kind_of(raw)} instead.", param
    )
