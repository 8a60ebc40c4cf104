"""Lines of the result files, as bytes. Pure.

An engine's answer goes into its line as it came: it was parsed once to see that it is JSON and what it used, and is
written anew only if it has line breaks of its own.
"""

from __future__ import annotations

import secrets
from typing import Any

import orjson

from services.runner.domain import Usage
from services.runner.inference.outcome import Kind, Outcome

CODES = {
    Kind.TIMEOUT: "request_timeout",
    Kind.REFUSED: "connection_error",
    Kind.DISCONNECTED: "connection_error",
    Kind.NO_ENDPOINT: "no_endpoint",
    Kind.INVALID: "invalid_response",
    Kind.REDIRECT: "invalid_response",
}
# How much of an answer that is not JSON is repeated in the error line.
EXCERPT_CHARS = 500


def output_line(custom_id: bytes, outcome: Outcome) -> bytes:
    """A request that went well."""
    return _response_line(custom_id, outcome, outcome.body, outcome.answer)


def error_line(custom_id: bytes, outcome: Outcome) -> bytes:
    """A request that did not: with the engine's answer, if there was one."""
    if outcome.kind is not Kind.HTTP_ERROR:
        return failure_line(custom_id, CODES[outcome.kind], outcome.detail)
    try:
        answer = orjson.loads(outcome.body)
    except orjson.JSONDecodeError:
        answer = None
    if isinstance(answer, dict):
        return _response_line(custom_id, outcome, outcome.body, answer)
    text = outcome.body[: 4 * EXCERPT_CHARS].decode(errors="replace")[:EXCERPT_CHARS]
    wrapped = {"error": {"message": text, "type": "engine_error", "param": None, "code": None}}
    return _response_line(custom_id, outcome, orjson.dumps(wrapped), wrapped)


def failure_line(custom_id: bytes, code: str, message: str) -> bytes:
    """A request without an answer."""
    error = orjson.dumps({"code": code, "message": message})
    return b'{"id":"batch_req_%b","custom_id":%b,"response":null,"error":%b}\n' % (_random(), custom_id, error)


def _response_line(custom_id: bytes, outcome: Outcome, body: bytes, answer: Any) -> bytes:
    if b"\n" in body or b"\r" in body:
        body = orjson.dumps(answer)
    return (
        b'{"id":"batch_req_%b","custom_id":%b,"response":{"status_code":%d,"request_id":%b,"body":%b},"error":null}\n'
        % (_random(), custom_id, outcome.status, _request_id(outcome, answer), body)
    )


def _request_id(outcome: Outcome, answer: Any) -> bytes:
    """The engine's own name for the request, to find it in its log."""
    found = outcome.request_id or answer.get("id")
    # A header's bytes may be anything: what is not UTF-8 arrives as surrogates, which JSON cannot hold.
    return orjson.dumps(found.encode(errors="replace").decode() if isinstance(found, str) else "")


def _random() -> bytes:
    return secrets.token_hex(16).encode()


class UsageSum:
    """Token counts of many answers. It takes what engines send: names of chat and of responses, or nothing."""

    __slots__ = ("cached", "input", "output", "reasoning", "total")

    def __init__(self) -> None:
        self.input = self.cached = self.output = self.reasoning = self.total = 0

    def add(self, answer: dict[str, Any]) -> None:
        usage = answer.get("usage")
        if not isinstance(usage, dict):
            return
        read = _count(usage, "prompt_tokens", "input_tokens")
        written = _count(usage, "completion_tokens", "output_tokens")
        self.input += read
        self.output += written
        self.total += _count(usage, "total_tokens") or read + written
        self.cached += _detail(usage, "cached_tokens", "prompt_tokens_details", "input_tokens_details")
        self.reasoning += _detail(usage, "reasoning_tokens", "completion_tokens_details", "output_tokens_details")

    def sum(self) -> Usage:
        return Usage(
            input_tokens=self.input,
            cached_tokens=self.cached,
            output_tokens=self.output,
            reasoning_tokens=self.reasoning,
            total_tokens=self.total,
        )


# An engine that reports more tokens than this in one answer is broken; sums must fit into 64 bits.
MOST_TOKENS = 1 << 40


def _count(usage: dict[str, Any], *names: str) -> int:
    for name in names:
        value = usage.get(name)
        if type(value) is int and 0 < value <= MOST_TOKENS:
            return value
    return 0


def _detail(usage: dict[str, Any], count: str, *names: str) -> int:
    for name in names:
        details = usage.get(name)
        if isinstance(details, dict):
            return _count(details, count)
    return 0
