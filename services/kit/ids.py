"""The one source of random names."""

from __future__ import annotations

import secrets


def new_id(prefix: str) -> str:
    """`prefix` (such as `batch_` or `file-`) and 32 random hex characters, as OpenAI's own ids have."""
    return prefix + secrets.token_hex(16)
