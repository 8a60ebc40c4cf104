"""What the mock engine answers, as pure functions of the request's body: a test or a demo checks outputs with them.

Derivation, the same in every version:
- a token is a word, split at white space; usage counts words of the request's text and of the reply;
- a reply is a digest of model, choice and text (16 hex characters), then the text's first words; the text is the last
  message's, the prompt's or the input's; the reply is cut to the most tokens that the request allows, else to 32 words;
- an embedding's numbers are bytes of a digest of its text, scaled to unit length;
- a document's score is the share of the query's words that stand in it;
- text is flagged by a moderation for each category whose name stands in it;
- ids are digests of path and body, and times are constant, so that the same request gets the same bytes.
"""

from __future__ import annotations

import base64
import hashlib
import math
import struct
from collections.abc import Callable
from typing import Any

import orjson

from services.kit.errors import InvalidArgument

Body = dict[str, Any]

CREATED = 1_700_000_000
REPLY_WORDS = 32
DIMENSIONS = 16
MAX_CHOICES = 128
MODERATIONS = (
    "harassment",
    "harassment/threatening",
    "hate",
    "hate/threatening",
    "illicit",
    "illicit/violent",
    "self-harm",
    "self-harm/instructions",
    "self-harm/intent",
    "sexual",
    "sexual/minors",
    "violence",
    "violence/graphic",
)


def digest(*parts: str | bytes) -> str:
    """16 hex characters of all parts."""
    state = hashlib.blake2b(digest_size=8)
    for part in parts:
        state.update(part.encode(errors="surrogatepass") if isinstance(part, str) else part)
        state.update(b"\0")
    return state.hexdigest()


def request_digest(path: str, body: Body) -> str:
    """Names a request by its content."""
    return digest(path, orjson.dumps(body, option=orjson.OPT_SORT_KEYS))


def expected_chat(body: Body) -> Body:
    messages = _list(body, "messages")
    texts = [_text(message.get("content"), "messages") for message in messages if isinstance(message, dict)]
    if len(texts) != len(messages):
        raise _invalid("messages", "each message must be an object")
    limit = _limit(body, "max_completion_tokens", "max_tokens")
    choices = []
    for index in range(_integer(body, "n", 1, MAX_CHOICES)):
        reply, _, finish = _reply(_model(body), index, texts[-1], limit)
        message = {"role": "assistant", "content": reply, "refusal": None}
        choices.append({"index": index, "message": message, "logprobs": None, "finish_reason": finish})

    return {
        "id": "chatcmpl-" + request_digest("/v1/chat/completions", body),
        "object": "chat.completion",
        "created": CREATED,
        "model": _model(body),
        "choices": choices,
        "usage": _usage(texts, choices, lambda choice: choice["message"]["content"]),
    }


def expected_completion(body: Body) -> Body:
    prompts = _inputs(body, "prompt")
    limit = _limit(body, "max_tokens")
    choices: list[Body] = []
    for prompt in prompts:
        for index in range(_integer(body, "n", 1, MAX_CHOICES)):
            reply, _, finish = _reply(_model(body), index, prompt, limit)
            choices.append({"index": len(choices), "text": reply, "logprobs": None, "finish_reason": finish})

    return {
        "id": "cmpl-" + request_digest("/v1/completions", body),
        "object": "text_completion",
        "created": CREATED,
        "model": _model(body),
        "choices": choices,
        "usage": _usage(prompts, choices, lambda choice: choice["text"]),
    }


def expected_embeddings(body: Body) -> Body:
    texts = _inputs(body, "input")
    size = _integer(body, "dimensions", DIMENSIONS, 4096)
    packed = body.get("encoding_format", "float") == "base64"
    data = []
    for index, text in enumerate(texts):
        vector = embedding(_model(body), text, size)
        shown = base64.b64encode(struct.pack(f"<{size}f", *vector)).decode() if packed else vector
        data.append({"object": "embedding", "index": index, "embedding": shown})
    count = sum(_count(text) for text in texts)

    return {
        "id": "embd-" + request_digest("/v1/embeddings", body),
        "object": "list",
        "created": CREATED,
        "model": _model(body),
        "data": data,
        "usage": {"prompt_tokens": count, "total_tokens": count},
    }


def embedding(model: str, text: str, size: int) -> list[float]:
    """`size` numbers of length one."""
    stream = hashlib.shake_128(f"{model}\0{text}".encode(errors="surrogatepass")).digest(size)
    numbers = [byte - 127.5 for byte in stream]
    length = math.sqrt(sum(number * number for number in numbers))
    return [number / length for number in numbers]


def expected_rerank(body: Body) -> Body:
    query = _text(body.get("query"), "query")
    documents = [_text(document, "documents") for document in _list(body, "documents")]
    top = _integer(body, "top_n", 0, len(documents), least=0) or len(documents)
    wanted = set(query.lower().split())
    scores = [len(wanted & set(text.lower().split())) / max(1, len(wanted)) for text in documents]
    order = sorted(range(len(documents)), key=lambda index: (-scores[index], index))[:top]

    return {
        "id": "rerank-" + request_digest("/rerank", body),
        "model": _model(body),
        "usage": {"total_tokens": _count(query) + sum(_count(text) for text in documents)},
        "results": [
            {"index": index, "document": {"text": documents[index]}, "relevance_score": scores[index]}
            for index in order
        ],
    }


def expected_response(body: Body) -> Body:
    text = _response_input(body.get("input"))
    reply, words, finish = _reply(_model(body), 0, text, _limit(body, "max_output_tokens"))
    key = request_digest("/v1/responses", body)
    content = {"type": "output_text", "text": reply, "annotations": [], "logprobs": []}
    message = {"type": "message", "id": f"msg_{key}", "role": "assistant", "status": "completed", "content": [content]}
    count = _count(text)

    return {
        "id": f"resp_{key}",
        "object": "response",
        "created_at": CREATED,
        "status": "completed" if finish == "stop" else "incomplete",
        "error": None,
        "incomplete_details": None if finish == "stop" else {"reason": "max_output_tokens"},
        "instructions": body.get("instructions"),
        "metadata": body.get("metadata") or {},
        "model": _model(body),
        "output": [message],
        "parallel_tool_calls": True,
        "temperature": 1.0,
        "top_p": 1.0,
        "tool_choice": "auto",
        "tools": [],
        "usage": {
            "input_tokens": count,
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens": words,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": count + words,
        },
    }


def expected_moderation(body: Body) -> Body:
    results = []
    for text in _inputs(body, "input"):
        flags = {name: name in text.lower() for name in MODERATIONS}
        results.append(
            {
                "flagged": any(flags.values()),
                "categories": flags,
                "category_scores": {name: float(flag) for name, flag in flags.items()},
                "category_applied_input_types": {name: ["text"] for name in MODERATIONS},
            }
        )
    return {
        "id": "modr-" + request_digest("/v1/moderations", body),
        "model": body.get("model") or "mock-moderation",
        "results": results,
    }


ANSWERS: dict[str, Callable[[Body], Body]] = {
    "/v1/chat/completions": expected_chat,
    "/v1/completions": expected_completion,
    "/v1/embeddings": expected_embeddings,
    "/v1/responses": expected_response,
    "/v1/moderations": expected_moderation,
    "/rerank": expected_rerank,
    "/v1/rerank": expected_rerank,
    "/v2/rerank": expected_rerank,
}


def _reply(model: str, index: int, text: str, limit: int | None) -> tuple[str, int, str]:
    """Reply, its tokens, and why it ends there."""
    words = [digest(model, str(index), text), *text.split(None, REPLY_WORDS)[: REPLY_WORDS - 1]]
    if limit is not None and limit < len(words):
        return " ".join(words[:limit]), limit, "length"
    return " ".join(words), len(words), "stop"


def _usage(texts: list[str], choices: list[Body], reply: Callable[[Body], str]) -> Body:
    prompt = sum(_count(text) for text in texts)
    completion = sum(_count(reply(choice)) for choice in choices)
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def _count(text: str) -> int:
    return len(text.split())


def _model(body: Body) -> str:
    model = body.get("model")
    if not isinstance(model, str) or not model:
        raise _invalid("model", "it must be the name of a model")
    return model


def _list(body: Body, name: str) -> list[Any]:
    value = body.get(name)
    if not isinstance(value, list) or not value:
        raise _invalid(name, "it must be an array with at least one member")
    return value


def _limit(body: Body, *names: str) -> int | None:
    for name in names:
        if body.get(name) is not None:
            return _integer(body, name, 0, 10_000_000)
    return None


def _integer(body: Body, name: str, absent: int, most: int, least: int = 1) -> int:
    value = body.get(name)
    if value is None:
        return absent
    if type(value) is not int or not least <= value <= most:
        raise _invalid(name, f"it must be an integer from {least} to {most}")
    return value


def _inputs(body: Body, name: str) -> list[str]:
    """A string, an array of strings, of tokens, or of arrays of tokens; a token's text is its number."""
    value = body.get(name)
    if isinstance(value, str):
        return [value]
    members = _list(body, name)
    if all(type(member) is int for member in members):
        return [" ".join(map(str, members))]
    return [" ".join(map(str, member)) if _tokens(member) else _text(member, name) for member in members]


def _tokens(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(member) is int for member in value)


def _text(value: Any, name: str) -> str:
    """A string, a part with a `text`, or an array of parts; parts that are not text count for nothing."""
    if isinstance(value, str):
        return value
    if value is None and name == "messages":
        return ""
    if isinstance(value, dict):
        text = value.get("text", "")
        return text if isinstance(text, str) else ""
    if isinstance(value, list) and value:
        return " ".join(filter(None, (_text(part, name) for part in value)))
    raise _invalid(name, "it must be text")


def _response_input(value: Any) -> str:
    if isinstance(value, list):
        value = [item.get("content") if isinstance(item, dict) and "content" in item else item for item in value]
    return _text(value, "input")


def _invalid(name: str, why: str) -> InvalidArgument:
    return InvalidArgument(f"Invalid value for '{name}': {why}.", param=name, code="invalid_value")
