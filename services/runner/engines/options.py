"""How the mock engine behaves. The fields of `Behaviour` are also its flags, for templates and for the command line."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class Behaviour(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)

    latency_ms: float = Field(default=0.0, ge=0, le=3_600_000)
    """How long an answer takes."""
    capacity: int | None = Field(default=None, ge=1)
    """Requests in flight above this many get a 429. None: no limit."""
    retry_after_s: int = Field(default=1, ge=0, le=3600)
    """The Retry-After of a 429."""
    error_rate: float = Field(default=0.0, ge=0, le=1)
    """Share of requests that get a 500, decided by seed, content and how often this content came."""
    seed: int = 0


class MockOptions(Behaviour):
    host: str = "127.0.0.1"
    port: int = Field(default=0, ge=0, le=65_535)
    """0: a free one."""
    port_file: str = ""
    """Written, with the port, when the engine answers."""
    models: tuple[str, ...] = ()
    """Models that there are; others get a 404. Empty: any."""
    record: bool = False
    """Keep every request, for tests."""
