"""Batches that name a template or a profile of the registry: what they get, and what they are told."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from brix.metadata.v1 import runners_pb2
from services.kit.errors import InvalidArgument
from tests.metadata.conftest import Metadata, eventually, serving_metadata

CHAT = "/v1/chat/completions"


def template(name: str, version: str, status: str = "active", **spec: Any) -> dict[str, Any]:
    whole = {
        "engine": {"type": "mock"},
        "model_source": {"type": "local", "uri": f"{name}-{version}"},
        "accelerator": {"type": "cpu", "count": 1},
        "supported_endpoints": [CHAT],
    }
    return {"name": name, "version": version, "status": status, "spec": whole | spec}


TEMPLATES = [
    template("m", "v1.9.0"),
    template("m", "v1.10.0", engine_args={"seed": 1}),
    template("m", "v2.0.0", "draft"),
    template("m", "v1.8.0", "deprecated"),
    template("old", "v1", "deprecated"),
    template("embedder", "v1", supported_endpoints=["/v1/embeddings"]),
    template("raw", "v1", engine={"type": "vllm", "serve_args": ["--middleware", "ours.Audit"]}),
    template("trt", "v1", engine={"type": "trtllm"}),
]
PROFILES = {
    "default": "usual",
    "items": [
        {"name": "usual", "spec": {"quota": {"max_requests_per_batch": 100_000}}},
        {"name": "nightly", "spec": {"scheduling": {"priority": "low", "max_concurrency": 9}}},
    ],
}


@pytest.fixture
async def metadata(make_settings: Any, tmp_path: Path) -> AsyncIterator[Metadata]:
    (tmp_path / "templates.yaml").write_text(json.dumps(TEMPLATES))
    (tmp_path / "profiles.yaml").write_text(json.dumps(PROFILES))
    settings = make_settings(
        default_endpoint="http://127.0.0.1:9",
        templates={"source": str(tmp_path / "templates.yaml"), "reload_s": 0.05},
        profiles={"source": str(tmp_path / "profiles.yaml")},
    )
    async with serving_metadata(settings) as served:
        yield served


def block(target: str = "Local", profile: Any = None, **reference: Any) -> str:
    given: dict[str, Any] = {"runtime": {"target": target}}
    if reference:
        given["model_template"] = reference
    if profile is not None:
        given["profile"] = profile
    return json.dumps(given)


async def resolved(metadata: Metadata, **reference: Any) -> dict[str, Any]:
    lease = await metadata.running(1, aibrix_json=block(**reference))
    held = await metadata.acquire(targets=["Local", "External"], batch_id=lease.id)
    assert held is not None
    kept: dict[str, Any] = json.loads(held.resolved_json)
    return kept


async def refused(metadata: Metadata, text: str, **fields: Any) -> tuple[str, str, str]:
    with pytest.raises(InvalidArgument) as error:
        await metadata.batch(input_file_id="f", aibrix_json=text, **fields)
    return error.value.context["param"], error.value.context["code"], error.value.message


@pytest.mark.parametrize(
    ("reference", "version"),
    [
        ({"name": "m"}, "v1.10.0"),
        ({"name": "m", "version": ""}, "v1.10.0"),
        ({"name": "m", "version": None}, "v1.10.0"),
        ({"name": "m", "spec": {}}, "v1.10.0"),
        ({"name": "m", "version": "v1.9.0"}, "v1.9.0"),
        ({"name": "m", "version": "v2.0.0"}, "v2.0.0"),
        ({"name": "old", "version": "v1"}, "v1"),
    ],
)
async def test_the_latest_active_unless_one_is_named(metadata, reference, version):
    kept = (await resolved(metadata, **reference))["template"]
    assert (kept["version"], kept["source"]) == (version, "registry")
    assert kept["spec"]["model_source"]["uri"] == f"{reference['name']}-{version}"


async def test_a_deprecated_one_warns(metadata):
    with structlog.testing.capture_logs() as logs:
        await metadata.batch(input_file_id="f", aibrix_json=block(name="old", version="v1"))
        await metadata.batch(input_file_id="f", aibrix_json=block(name="m"))
    warned = [entry for entry in logs if entry["log_level"] == "warning" and "deprecated" in entry["event"]]
    assert [entry["template"] for entry in warned] == ["old@v1"]


async def test_an_inline_spec_wins(metadata):
    mine = template("m", "x", engine_args={"seed": 5})["spec"]
    kept = (await resolved(metadata, name="m", version="v1.9.0", spec=mine))["template"]
    assert (kept["source"], kept["version"], kept["spec"]["engine_args"]) == ("inline", "v1.9.0", {"seed": 5})
    kept = (await resolved(metadata, name="nobody-knows-it", spec=mine))["template"]
    assert kept["version"] == "v1.0.0"


async def test_overrides_are_merged_and_kept(metadata):
    overrides = {"engine_args": {"latency_ms": 2.5, "seed": None}}
    kept = (await resolved(metadata, name="m", overrides=overrides))["template"]
    assert kept["spec"]["engine_args"] == {"latency_ms": 2.5}
    assert kept["overrides"] == overrides


@pytest.mark.parametrize(
    ("reference", "param", "words"),
    [
        ({"name": "nope"}, "name", ["'m'", "'old'", "'embedder'"]),
        ({"name": "m", "version": "v9"}, "version", ["v9", "'v2.0.0'", "'v1.10.0'"]),
        ({"name": "m", "version": "1.10.0"}, "version", ["'v1.10.0'"]),
        ({"name": "old"}, "version", ["active", "v1 (deprecated)"]),
        ({"name": "embedder"}, "spec.supported_endpoints", [CHAT, "/v1/embeddings"]),
        ({"name": "trt"}, "spec.engine.type", ["trtllm", "vllm", "sglang", "llamacpp", "mock"]),
        ({"name": "m", "overrides": {"engine_args": {"middleware": "x"}}}, "overrides.engine_args.middleware", []),
        ({"name": "raw", "overrides": {"engine_args": {"trust_remote_code": True}}},
         "overrides.engine_args.trust_remote_code", ["registry"]),
    ],
)  # fmt: skip
async def test_what_cannot_be_used_is_refused_with_what_there_is(metadata, reference, param, words):
    named, _, message = await refused(metadata, block(**reference))
    assert named == f"aibrix.model_template.{param}"
    assert all(word in message for word in words), message


async def test_an_operators_template_may_set_any_flag_and_an_external_target_takes_any_engine(metadata):
    await metadata.batch(input_file_id="f", aibrix_json=block(name="raw"))
    await metadata.batch(input_file_id="f", aibrix_json=block("External", name="trt"))


async def test_profiles_of_the_registry(metadata):
    def reference(**fields: Any) -> str:
        return block("External", profile=fields or None)

    lease = await metadata.leased(1, aibrix_json=reference(name="nightly"))
    assert lease.client.max_concurrency == 9
    lease = await metadata.leased(1, aibrix_json=reference())
    assert json.loads(lease.resolved_json)["profile"]["name"] == "usual"
    lease = await metadata.leased(1)
    assert json.loads(lease.resolved_json)["profile"]["spec"]["quota"]["max_requests_per_batch"] == 100_000
    named, _, message = await refused(metadata, reference(name="weekly"))
    assert named == "aibrix.profile.name"
    assert "'nightly', 'usual'" in message
    # A quota that a batch brings along stays under that of the default profile, which here is above the server's own.
    mine = {"quota": {"max_requests_per_batch": 10**6}}
    lease = await metadata.leased(1, aibrix_json=reference(name="mine", spec=mine))
    assert json.loads(lease.resolved_json)["profile"]["spec"]["quota"]["max_requests_per_batch"] == 100_000


async def test_a_batch_keeps_what_it_was_made_with(metadata, tmp_path):
    batch = await metadata.running(1, aibrix_json=block(name="m"))
    (tmp_path / "templates.yaml").write_text(json.dumps([template("m", "v3")]))

    async def newer() -> bool:
        made = await metadata.running(1, aibrix_json=block(name="m"))
        held = await metadata.acquire(targets=["Local"], batch_id=made.id)
        return held is not None and json.loads(held.resolved_json)["template"]["version"] == "v3"

    await eventually(newer)
    held = await metadata.acquire(targets=["Local"], batch_id=batch.id)
    assert json.loads(held.resolved_json)["template"]["version"] == "v1.10.0"


async def test_models_are_what_active_templates_serve_and_what_runners_report(metadata):
    info = runners_pb2.RunnerInfo(id="r", version="1", models=["theirs", "m-v1.10.0"])
    await metadata.runners.ReportRunner(runners_pb2.ReportRunnerRequest(runner=info))
    listed = (await metadata.runners.ListModels(runners_pb2.ListModelsRequest())).models
    assert [model.id for model in listed] == ["embedder-v1", "m-v1.10.0", "raw-v1", "theirs", "trt-v1"]
    assert all(model.create_time.seconds > 0 for model in listed)


async def test_without_a_registry_it_says_so(make_settings):
    settings = make_settings(default_endpoint="http://127.0.0.1:9")
    async with serving_metadata(settings) as metadata:
        named, code, message = await refused(metadata, block(name="m"))
        assert (named, code) == ("aibrix.model_template.spec", "missing_required_parameter")
        assert "no template registry" in message
        named, code, message = await refused(metadata, block("External", profile={"name": "nightly"}))
        assert (named, code) == ("aibrix.profile.spec", "missing_required_parameter")
        assert "no profile registry" in message
