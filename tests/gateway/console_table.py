"""What the console's paths take, and for each field and parameter all that is wrong in it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tests.console.conftest import SPEC
from tests.metadata.conftest import CHAT

OF_EACH_TYPE = {str: "1", int: 7, float: 1.5, bool: True, list: [], dict: {}}
# What Python writes of these is no JSON.
NO_JSON = (float("nan"), float("inf"), float("-inf"), "\ud800", {"a": float("nan")}, ["\udfff"])
TOO_LONG = "x" * 70_000


def others(*right: type) -> list[Any]:
    """A value of every other type."""
    return [value for kind, value in OF_EACH_TYPE.items() if kind not in right]


def a_text(*wrong: str, needed: bool = False) -> list[Any]:
    return [*others(str), "a\0b", TOO_LONG, *wrong, *(("", None) if needed else ())]


def a_line(*wrong: str, needed: bool = False) -> list[Any]:
    """A text that people see in one line."""
    return a_text("a\nb", " a", *wrong, needed=needed)


def an_integer(*wrong: Any) -> list[Any]:
    return [*others(int), -1, 2**63, 10**400, 1e30, *wrong]


def a_number(*wrong: Any) -> list[Any]:
    return [*others(int, float), -1, -0.5, 10**400, 1e300, *wrong]


def an_object(*wrong: Any) -> list[Any]:
    return [*others(dict), {"x" * 200: 1}, *wrong]


def a_spec(**changes: Any) -> dict[str, Any]:
    return SPEC | changes


SPECS = an_object(
    {},
    *({name: value for name, value in SPEC.items() if name != left_out} for left_out in SPEC),
    a_spec(engine={"type": "nonsense"}),
    a_spec(engine={}),
    a_spec(engine_args={"max_num_seqs": 0}),
    a_spec(engine_args={"gpu_memory_utilization": 2}),
    a_spec(accelerator={"type": "A10", "count": 0}),
    a_spec(accelerator={"type": "A10", "count": 2}),
    a_spec(supported_endpoints=[]),
    a_spec(supported_endpoints=["/v1/nothing"]),
    a_spec(model_source={"type": "huggingface", "uri": "-flag"}),
    a_spec(colour="red"),
)


@dataclass(frozen=True)
class Body:
    """What a path takes: a right body, and for each field what is wrong in it."""

    right: dict[str, Any]
    fields: dict[str, list[Any]]


NEW_TEMPLATE = Body(
    {"name": "other", "version": "v2", "status": "draft", "spec": SPEC},
    {
        "name": a_line("-a", "é", "x" * 129, needed=True),
        "version": a_line("a b", "-a", "x" * 129),
        "status": a_text("Active", "gone"),
        "spec": [*SPECS, None],
    },
)
CHANGED_TEMPLATE = Body(
    {"status": "draft", "spec": SPEC, "revision": 1},
    {"status": a_text("", "gone"), "spec": SPECS, "revision": [*an_integer(0), None]},
)
BODIES: dict[tuple[str, str], Body] = {
    ("POST", "models"): Body(
        {"id": "m", "name": "New", "serving_name": "s", "description": "d", "category": "c"},
        {
            "id": a_text("a b", "é", "-a", "x" * 65),
            "name": a_line("x" * 256, needed=True),
            "serving_name": a_line("-s", "x" * 513),
            "description": a_text("x" * 4097),
            "category": a_line("x" * 129),
        },
    ),
    ("PATCH", "models/{model}"): Body(
        {"serving_name": "s", "description": "d", "category": "c", "revision": 1},
        {
            "serving_name": a_line("-s"),
            "description": a_text(),
            "category": a_line(),
            "revision": [*an_integer(0), None],
        },
    ),
    ("POST", "models/{model}/deployment-templates"): NEW_TEMPLATE,
    ("PUT", "models/{model}/deployment-templates/{template}"): CHANGED_TEMPLATE,
    ("PATCH", "models/{model}/deployment-templates/{template}"): CHANGED_TEMPLATE,
    ("POST", "jobs"): Body(
        {
            "name": "nightly",
            "input_dataset": "file-1",
            "endpoint": CHAT,
            "completion_window": "24h",
            "model_id": "{model}",
            "model_template_name": "base",
            "model_template_version": "v1.0.0",
            "client": {"max_concurrency": 8},
            "resource_request": {"replicas": 1},
            "metadata": {"team": "a"},
            "priority": "high",
            "budget_usd": 2.5,
        },
        {
            "name": a_line("x" * 256),
            "input_dataset": a_line("x" * 256, needed=True),
            "endpoint": a_text("/v1/nothing", "/v1/embeddings", needed=True),
            "completion_window": a_text("soon", "0h", "-1h", "1h1h", "99999999999h", "9" * 400 + "h"),
            "model_id": others(str),
            "model_template_name": [*others(str), ""],
            "model_template_version": others(str),
            "client": an_object(
                {"max_concurrency": 0},
                {"max_concurrency": "8"},
                {"adaptive_max_factor": 0},
                {"retry_policy": {"max_retries": -1}},
                {"retry_policy": []},
            ),
            "resource_request": an_object(
                {"replicas": 0},
                {"replicas": "1"},
                {"spot": True},
                {"providers": ["nowhere"]},
                {"providers": "static"},
                {"providers": ["static", "static"]},
                {"regions": [""]},
                {"max_hourly_price_usd": -1},
                {"labels": {"a": 1}},
            ),
            "metadata": [
                *others(dict),
                {"a": 1},
                {"a": None},
                {"a": {}},
                {"a": "x" * 513},
                {"x" * 65: "a"},
                {"a": "\0"},
                {str(number): "a" for number in range(17)},
            ],
            "priority": a_text("urgent", "High"),
            "budget_usd": a_number(0, 1e10),
        },
    ),
    ("POST", "apikeys"): Body(
        {"name": "laptop", "expires_after_s": 3600},
        {"name": a_line("x" * 256, needed=True), "expires_after_s": an_integer(0, 59, 10**10)},
    ),
    ("POST", "secrets"): Body(
        {"name": "TOKEN", "value": "v"},
        {"name": a_line("a b", "-a", "x" * 129, needed=True), "value": a_text(needed=True)},
    ),
    ("PUT", "quotas"): Body(
        {"max_live_jobs": 5, "max_gpus": 8, "max_monthly_cost_usd": 10.5, "revision": 0},
        {
            "max_live_jobs": an_integer(2**31),
            "max_gpus": an_integer(2**31),
            "max_monthly_cost_usd": a_number(1e10),
            "revision": an_integer(),
        },
    ),
}
# What the gateway itself says of a call, and no caller.
FILLED = ("project_id", "created_by", "idempotency_key", "call_id", "request_hash", "key_hash", "colour", "", "name ")
NO_BODIES: dict[str, bytes] = {
    "empty": b"",
    "half": b'{"name":',
    "text": b'"a"',
    "number": b"1",
    "null": b"null",
    "list": b"[]",
    "two": b"{} {}",
    "no-unicode": b'{"name": "\xff"}',
    "twice": b'{"name": "a", "name": "b"}',
    "deep": b'{"name": ' + b"[" * 10_000 + b"]" * 10_000 + b"}",
    "comment": b"{/* */}",
}
LIMITS = ["x", "-1", "101", "1.5", "1e1", "99999999999999999999", "true", " 1", "٣"]
PAGES = {"limit": LIMITS, "after": ["a\0b"]}
QUERIES: dict[str, dict[str, list[str]]] = {
    "models": PAGES | {"search": ["a\0b", "x" * 256], "category": ["a\0b"]},
    "models/{model}/deployment-templates": PAGES | {"status": ["gone", "Active", "a\0b"], "name": ["a\0b"]},
    "models/{model}/deployment-templates/by-name/base": {"version": ["a\0b"]},
    "jobs": PAGES | {"status": ["gone", "QUEUED", "a\0b"], "model_id": ["a\0b"], "model_template_name": ["a\0b"]},
    "apikeys": PAGES,
    "secrets": PAGES,
    "quotas": {},
    # As OpenAI's: what is unknown is not looked at, and a page may be larger.
    "files": {"limit": ["x", "-1", "10001", "1.5", "9" * 20], "order": ["up", "a\0b"]},
    "models/{model}": {},
    "models/{model}/deployment-templates/{template}": {},
    "jobs/{job}": {},
}
