"""`aibrix.client`: how requests of a batch are sent, and what holds where it is silent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, Field

from services.kit.settings import Settings

MAX_CONCURRENCY = 256


class Strict(BaseModel):
    """Base of every document: unknown fields are refused, numbers are not made of strings."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class RetryPolicy(Strict):
    max_retries: int | None = Field(default=None, ge=0, le=1000)
    base_delay_seconds: float | None = Field(default=None, ge=0, le=3600)
    max_delay_seconds: float | None = Field(default=None, ge=0, le=3600)
    no_endpoint_max_retries: int | None = Field(default=None, ge=0, le=1_000_000)


class Client(Strict):
    """The block as it was given: an absent field falls back to the environment of metadata, then to the built-in value."""

    max_concurrency: int | None = Field(default=None, ge=1, le=MAX_CONCURRENCY)
    adaptive_concurrency: bool | None = None
    adaptive_max_factor: float | None = Field(default=None, ge=1, le=1_000_000)
    retry_policy: RetryPolicy | None = None


@dataclass(frozen=True, kw_only=True)
class ClientPolicy:
    """Every field resolved. The proto brix.type.v1.ClientPolicy has the same fields."""

    max_concurrency: int = 256
    """Requests in flight over all endpoints of the batch, never more."""
    adaptive_concurrency: bool = True
    """False: max_concurrency is the fixed concurrency."""
    adaptive_max_factor: float = 8.0
    """How far the adaptive limit may grow above its start."""
    max_retries: int = 5
    """Attempts after the first."""
    base_delay_seconds: float = 0.5
    max_delay_seconds: float = 5.0
    no_endpoint_max_retries: int = 120
    """How often a request may find no healthy endpoint, waiting in between, before it fails."""
    request_timeout_seconds: float | None = None
    """Longest time for one attempt. None: the runner's own setting."""


T = TypeVar("T")


def _either(field: T | None, fallback: T) -> T:
    return fallback if field is None else field


def effective(
    client: Client | None,
    settings: Settings,
    *,
    max_concurrency: int | None = None,
    request_timeout_seconds: float | None = None,
) -> ClientPolicy:
    """The field wins over the environment, the environment over the built-in value, each field by itself.

    What the profile of the batch says, the last two, stands between the field and the environment.
    """
    client = client or Client()
    retry = client.retry_policy or RetryPolicy()
    concurrency = _either(max_concurrency, settings.batch_max_concurrency)

    return ClientPolicy(
        max_concurrency=_either(client.max_concurrency, concurrency),
        adaptive_concurrency=_either(client.adaptive_concurrency, settings.batch_adaptive_concurrency),
        adaptive_max_factor=_either(client.adaptive_max_factor, settings.batch_adaptive_max_factor),
        max_retries=_either(retry.max_retries, settings.batch_inference_max_retries),
        base_delay_seconds=_either(retry.base_delay_seconds, settings.batch_retry_base_delay_seconds),
        max_delay_seconds=_either(retry.max_delay_seconds, settings.batch_retry_max_delay_seconds),
        no_endpoint_max_retries=_either(retry.no_endpoint_max_retries, settings.batch_no_endpoint_max_retries),
        request_timeout_seconds=request_timeout_seconds,
    )
