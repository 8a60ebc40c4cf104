"""`template schema`: what it prints is published, and says of good and bad documents what the models say."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest
from pydantic import ValidationError

from cli.template import schema
from services.kit.spec.profile import ProfileList
from services.kit.spec.template import Template
from tests.cli.support import cli
from tests.cli.templates import FULL, PROFILES, ROOT, TEMPLATE, changed


def checker(*, profile: bool = False) -> jsonschema.Draft202012Validator:
    made = json.loads(schema(profile=profile))
    jsonschema.Draft202012Validator.check_schema(made)
    return jsonschema.Draft202012Validator(made)


@pytest.mark.parametrize("profile", [False, True], ids=["template", "profile"])
def test_the_published_schema_is_what_the_command_prints(profile: bool) -> None:
    page = ROOT / "docs" / f"{'profile' if profile else 'template'}.schema.json"
    done = cli("template", "schema", *(["--profile"] if profile else []))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == schema(profile=profile) == page.read_text(), "run: make docs"
    assert json.loads(done.stdout)["$schema"] == "https://json-schema.org/draft/2020-12/schema"


@pytest.mark.parametrize("profile", [False, True], ids=["template", "profile"])
def test_every_field_is_described(profile: bool) -> None:
    made = json.loads(schema(profile=profile))
    types = {"": made, **made["$defs"]}
    nameless = [name for name, one in types.items() if not one.get("description")]
    # A field that is an object has its description there.
    silent = [
        f"{name}.{field}"
        for name, one in types.items()
        for field, rule in one.get("properties", {}).items()
        if not rule.get("description") and "$ref" not in json.dumps(rule)
    ]
    assert (nameless, silent) == ([], [])


@pytest.mark.parametrize(
    "templates",
    [
        [],
        [TEMPLATE],
        [FULL],
        [TEMPLATE, FULL],
        [changed("version", ...)],
        [changed("status", ...)],
        [changed("spec.engine.image", None)],
        [changed("spec.engine_args.any-flag", {"a": [1]})],
        [changed("spec.engine_args", {})],
        [changed("spec.parallelism", ..., changed("spec.accelerator.count", 1))],
    ],
)
def test_good_templates_pass(templates: list[Any]) -> None:
    assert list(checker().iter_errors(templates)) == []
    for one in templates:
        Template.model_validate(one)


WRONG: list[tuple[str, Any]] = [
    ("name", ...),
    ("name", ""),
    ("name", "-a"),
    ("name", "a" * 129),
    ("name", 1),
    ("version", 1.0),
    ("version", ""),
    ("version", "v 1"),
    ("version", None),
    ("status", "retired"),
    ("status", None),
    ("provider_config", {}),
    ("spec", ...),
    ("spec", None),
    ("spec", []),
    ("spec.provider_config", {}),
    ("spec.engine", ...),
    ("spec.engine", "vllm"),
    ("spec.engine.type", ...),
    ("spec.engine.type", "VLLM"),
    ("spec.engine.type", None),
    ("spec.engine.version", 0.33),
    ("spec.engine.image", "-x"),
    ("spec.engine.image", "a b"),
    ("spec.engine.invocation", "grpc"),
    ("spec.engine.serve_args", "--x"),
    ("spec.engine.serve_args", [1]),
    ("spec.engine.serve_args", ["x"] * 513),
    ("spec.engine.health_endpoint", "health"),
    ("spec.engine.health_endpoint", None),
    ("spec.engine.metrics_endpoint", "metrics"),
    ("spec.engine.ready_timeout_seconds", 9),
    ("spec.engine.ready_timeout_seconds", 604_801),
    ("spec.engine.ready_timeout_seconds", "600"),
    ("spec.engine.command", ["sh"]),
    ("spec.model_source", ...),
    ("spec.model_source.type", ...),
    ("spec.model_source.type", "ftp"),
    ("spec.model_source.uri", ...),
    ("spec.model_source.uri", ""),
    ("spec.model_source.uri", "u" * 2049),
    ("spec.model_source.path", "x"),
    ("spec.model_source.auth_secret_ref", "Not_A_Name"),
    ("spec.accelerator", ...),
    ("spec.accelerator.type", ...),
    ("spec.accelerator.type", ""),
    ("spec.accelerator.count", ...),
    ("spec.accelerator.count", 0),
    ("spec.accelerator.count", True),
    ("spec.accelerator.count", 1.5),
    ("spec.accelerator.count", 65_537),
    ("spec.accelerator.interconnect", "infiniband"),
    ("spec.accelerator.vram_gb", 0),
    ("spec.accelerator.gpus", 1),
    ("spec.parallelism.tp", 0),
    ("spec.parallelism.tp", "2"),
    ("spec.parallelism.xp", 1),
    ("spec.parallelism", None),
    ("spec.engine_args", []),
    ("spec.engine_args.max_num_seqs", 0),
    ("spec.engine_args.max_model_len", "8k"),
    ("spec.engine_args.gpu_memory_utilization", 0),
    ("spec.engine_args.gpu_memory_utilization", 90),
    ("spec.engine_args.enable_prefix_caching", "yes"),
    ("spec.engine_args.speculative_method", "a b"),
    ("spec.engine_args.num_speculative_tokens", 1001),
    ("spec.quantization.weight", "int4"),
    ("spec.quantization.kv_cache", "FP8"),
    ("spec.quantization.bits", 4),
    ("spec.supported_endpoints", ...),
    ("spec.supported_endpoints", []),
    ("spec.supported_endpoints", "/v1/completions"),
    ("spec.supported_endpoints", ["/v1/nope"]),
    ("spec.service_id", ".a"),
    ("spec.service_id", "a" * 64),
    ("spec.deployment_mode", "serverless"),
    ("spec.deployment_mode", None),
]


@pytest.mark.parametrize(("path", "value"), WRONG, ids=str)
def test_wrong_templates_fail_by_schema_and_by_model(path: str, value: Any) -> None:
    wrong = changed(path, value)
    assert list(checker().iter_errors([wrong])) != []
    with pytest.raises(ValidationError):
        Template.model_validate(wrong)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("spec.parallelism.tp", 1),
        ("spec.parallelism", ...),
        ("spec.supported_endpoints", ["/v1/completions", "/v1/completions"]),
        ("spec.model_source.uri", "--model"),
        ("spec.engine.serve_args", ["a\nb"]),
        ("spec.engine_args.max-num-seqs", 4),
        ("spec.engine_args.", 4),
        ("spec.engine_args.x", [None]),
        ("spec.accelerator.count", 2.0),
    ],
    ids=str,
)
def test_what_the_schema_does_not_say_the_model_does(path: str, value: Any) -> None:
    """docs/templates.md has the list."""
    wrong = changed(path, value)
    assert list(checker().iter_errors([wrong])) == []
    with pytest.raises(ValidationError):
        Template.model_validate(wrong)


def test_a_document_is_a_list() -> None:
    for wrong in (TEMPLATE, {"items": [TEMPLATE]}, None, "x", [None]):
        assert list(checker().iter_errors(wrong)) != []


def test_profiles() -> None:
    check = checker(profile=True)
    for good in (PROFILES, {}, {"items": []}, {"default": None}):
        assert list(check.iter_errors(good)) == []
        ProfileList.model_validate(good)
    scheduling = "items.0.spec.scheduling"
    for path, value in [
        ("defaults", "x"),
        ("default", ""),
        ("items", None),
        ("items.0.name", ...),
        ("items.0.version", "v1"),
        ("items.0.spec.limits", {}),
        (f"{scheduling}.max_concurrency", 257),
        (f"{scheduling}.priority", "urgent"),
        (f"{scheduling}.request_timeout_seconds", 0),
        (f"{scheduling}.retries", 1),
        ("items.0.spec.quota.max_requests_per_batch", 0),
        ("items.0.spec.quota.max_input_size_mb", "1"),
        ("items.0.spec.quota.max_output_size_gb", None),
    ]:
        wrong = changed(path, value, PROFILES)
        assert list(check.iter_errors(wrong)) != [], path
        with pytest.raises(ValidationError):
            ProfileList.model_validate(wrong)
