"""What a request for compute must be like, when it comes from a client, and when it comes from a job's template."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from services.kit.errors import InvalidArgument
from services.kit.settings import Settings
from services.planner.domain import Group, ProvisionSpec
from services.planner.service.new_jobs import NewJob, check
from services.planner.states import ProvisionState
from tests.planner.resources import Fake, World, gpus, world

S = ProvisionState


@pytest.fixture
async def lite(make_settings: Callable[..., Settings], sqlite_url: str) -> AsyncIterator[World]:
    """As `here`, on SQLite only: for what is decided without the database."""
    async with world(sqlite_url, make_settings()) as made:
        yield made


@pytest.mark.parametrize(
    ("spec", "param", "code"),
    [
        (gpus("H100", spot=True), "resource_request.spot", "invalid_value"),
        (gpus(), "resource_request.groups.0.accelerator_preference.preferred_types", "missing_required_parameter"),
        (gpus("H100", providers=["runpod"]), "resource_request.providers", "invalid_value"),
        (gpus("H100", providers=["fake", "fake"]), "resource_request.providers", "invalid_value"),
        (gpus("H100", providers=[""]), "resource_request.providers.0", "invalid_value"),
        (gpus("H100", regions=["x"] * 33), "resource_request.regions", "invalid_value"),
        (gpus("H100", regions=["a\0b"]), "resource_request.regions.0", "invalid_value"),
        (gpus("H100", max_hourly_price_usd=-1.0), "resource_request.max_hourly_price_usd", "invalid_value"),
        (gpus("H100", max_hourly_price_usd=float("nan")), "resource_request.max_hourly_price_usd", "invalid_value"),
        (gpus("H100", labels={"a": "x" * 129}), "resource_request.labels.a", "invalid_value"),
        (gpus("H100", labels={"\n": "x"}), "resource_request.labels", "invalid_value"),
        (gpus("H100", image="x" * 513), "resource_request.image", "invalid_value"),
        (gpus("H100", count=65), "resource_request.groups.0.gpus_per_replica", "invalid_value"),
        (gpus("H100", count=-1), "resource_request.groups.0.gpus_per_replica", "invalid_value"),
        (gpus("H100", count=0), "resource_request.groups.0.gpus_per_replica", "invalid_value"),
        (gpus("H100", memory=-1), "resource_request.groups.0.accelerator_preference.min_memory_gb", "invalid_value"),
        (gpus("H100", " "), "resource_request.groups.0.accelerator_preference.preferred_types.1", "invalid_value"),
        (ProvisionSpec(groups=[Group(replicas=2)]), "resource_request.groups.0.replicas", "invalid_value"),
        (ProvisionSpec(groups=[Group(), Group()]), "resource_request.groups", "invalid_value"),
    ],
)
async def test_what_is_refused(lite: World, spec: ProvisionSpec, param: str, code: str) -> None:
    manager = lite.manager()
    with pytest.raises(InvalidArgument) as refused:
        await manager.provision("job/1", "p", spec)
    assert refused.value.context == {"param": param, "code": code}
    assert await manager.list() == ([], False)


NAMES = "resource_request.groups.0.accelerator_preference.preferred_types"


@pytest.mark.parametrize(
    ("spec", "number", "choices"),
    [
        (gpus("A100"), 0, "A100-40GB, A100-80GB"),
        (gpus("H100", "nvidia a100 SXM4"), 1, "A100-SXM-40GB, A100-SXM-80GB"),
        (gpus("V100", providers=["fake"]), 0, "V100-16GB, V100-32GB"),
    ],
)
async def test_a_gpu_that_comes_with_different_memory_is_asked_about(
    lite: World, spec: ProvisionSpec, number: int, choices: str
) -> None:
    manager = lite.manager()
    with pytest.raises(InvalidArgument, match=f"say {' or '.join(choices.split(', '))}") as refused:
        await manager.provision("job/1", "p", spec)
    assert refused.value.context == {"param": f"{NAMES}.{number}", "code": "invalid_value", "choices": choices}
    assert await manager.list() == ([], False)
    assert lite.cloud.counts == {}


@pytest.mark.parametrize("spec", [gpus("A100-80GB"), gpus("A100", memory=40), gpus("A card of tomorrow")])
async def test_a_gpu_that_is_clear_is_not_asked_about(lite: World, spec: ProvisionSpec) -> None:
    assert (await lite.manager().provision("job/1", "p", spec)).id


def a_new_job(accelerator: dict[str, Any], **fields: Any) -> NewJob:
    spec = {
        "engine": {"type": "vllm", "image": "vllm/vllm-openai:v1"},
        "model_source": {"type": "huggingface", "uri": "org/model"},
        "accelerator": accelerator,
        "parallelism": {"tp": accelerator["count"]},
        "supported_endpoints": ["/v1/chat/completions"],
    }
    return NewJob(
        project_id="p",
        input_dataset="file-1",
        endpoint="/v1/chat/completions",
        completion_window="24h",
        model_template_name="t",
        model_template_spec_json=json.dumps(spec),
        **fields,
    )


@pytest.mark.parametrize(
    ("accelerator", "field", "said"),
    [
        ({"type": "A100", "count": 1}, "type", "say A100-40GB or A100-80GB"),
        ({"type": "V100-SXM2", "count": 8}, "type", "say V100-SXM-16GB or V100-SXM-32GB"),
        ({"type": "H100", "count": 65}, "count", "it must be from 0 (a CPU) to 64"),
        ({"type": "H100", "count": 1, "vram_gb": 10_001}, "vram_gb", "it must be from 0 to 10000"),
    ],
)
def test_a_job_is_refused_for_what_its_template_asks_for(accelerator: dict[str, Any], field: str, said: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        check("job-1", a_new_job(accelerator), None, "", ["runpod"])
    param = f"model_template_spec.accelerator.{field}"
    assert refused.value.context["param"] == param
    assert refused.value.message.startswith(f"Invalid value for '{param}': ")
    assert said in refused.value.message


def test_a_job_whose_own_request_is_wrong_hears_of_that() -> None:
    job = a_new_job({"type": "H100", "count": 1}, resource_request_json='{"providers": ["lambda"]}')
    with pytest.raises(InvalidArgument, match="'lambda' is not configured here") as refused:
        check("job-1", job, None, "", ["runpod"])
    assert refused.value.context["param"] == "resource_request.providers"


@pytest.mark.parametrize(
    "accelerator",
    [
        {"type": "A100", "count": 1, "vram_gb": 80},
        {"type": "A100-80GB", "count": 1},
        {"type": "CPU", "count": 1},
        {"type": "H100", "count": 64},
    ],
)
def test_a_job_whose_template_is_clear_is_taken(accelerator: dict[str, Any]) -> None:
    assert check("job-1", a_new_job(accelerator), None, "", ["runpod"]).id == "job-1"


async def test_the_refusal_of_a_provider_lists_the_configured_ones(lite: World) -> None:
    manager = lite.manager(one=Fake(lite.cloud, name="one"), two=Fake(lite.cloud, name="two"))
    with pytest.raises(InvalidArgument, match=r"'RunPod' is not configured here\. Configured are: one, two\."):
        await manager.provision("job/1", "p", gpus("H100", providers=["RunPod"]))


@pytest.mark.parametrize(("key", "project", "param"), [("", "p", "idempotency_key"), ("k", "", "project_id")])
async def test_what_must_be_there(lite: World, key: str, project: str, param: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        await lite.manager().provision(key, project, gpus("H100"))
    assert refused.value.context == {"param": param, "code": "missing_required_parameter"}
