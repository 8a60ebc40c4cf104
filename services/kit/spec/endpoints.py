"""The OpenAI paths that a batch may call."""

from __future__ import annotations

from typing import Literal, get_args

EndpointPath = Literal[
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/responses",
    "/v1/moderations",
    "/v1/rerank",
]
ENDPOINT_PATHS: tuple[str, ...] = get_args(EndpointPath)
