"""The block of a job's batch, for each provider: what the seed says about runtime construction. And what metadata makes of it."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from services.kit.settings import Planner, Settings, Static
from services.kit.spec.block import parse_block
from services.kit.spec.ssh import parse_ssh
from services.planner.domain import Job, Machine, Provision
from services.planner.service.runtime import Runtimes, block_for, compute_for, draft_block
from services.planner.states import JobState, ProvisionState
from tests.planner.conftest import GPU, a_job, a_template

NOW = datetime(2026, 1, 1, tzinfo=UTC)
TARGETS = {
    "local": "Local",
    "kubernetes": "Kubernetes",
    "static": "External",
    "runpod": "RunPod",
    "lambdaCloud": "LambdaCloud",
}
ENGINE = {"type": "vllm", "image": "acme/vllm:1", "serve_args": ["--max-num-seqs", "64"]}
MACHINE = Machine(
    id="m-1", name="aibrix-prov-1-1", host="192.0.2.7", ssh_port=2222, ssh_user="root", host_key="ssh-ed25519 AAAA"
)


def job(**fields: Any) -> Job:
    asked = {name: value for name, value in a_job(**fields).items() if name in Job.__dataclass_fields__}
    rest = {"input_dataset": "file-1", "create_time": NOW, "expires_time": NOW + timedelta(days=1)}
    return Job(id="job_1", status=JobState.SUBMITTING, **asked, **rest)


def provision(provider: str, machine: Machine = MACHINE, **fields: Any) -> Provision:
    said = {"idempotency_key": "job_1/1", "project_id": "default", "status": ProvisionState.RUNNING, "create_time": NOW}
    return Provision(id="prov-1", provider=provider, machines=[machine], **said, **fields)


def made(provider: str, one: Job, runtimes: Runtimes | None = None, **fields: Any) -> dict[str, Any]:
    text = block_for(one, provision(provider, **fields), runtimes or Runtimes(TARGETS), 2)
    parse_block(text)  # what metadata reads
    block: dict[str, Any] = json.loads(text)
    return block


@pytest.mark.parametrize("provider", ["runpod", "lambdaCloud"])
def test_a_cloud_gets_its_machine_the_model_and_the_words_for_vllm(provider: str) -> None:
    spec = a_template(**GPU, engine=ENGINE, engine_args={"max_model_len": 4096})
    block = made(provider, job(model_template_spec_json=json.dumps(spec)), region="EU-1", instance_type="H100")
    assert block["runtime"] == {
        "target": TARGETS[provider],
        "options": {
            "host": "192.0.2.7",
            "ssh_port": 2222,
            "ssh_user": "root",
            "host_key": "ssh-ed25519 AAAA",
            "model": "m",
            "vllm_args": ["--max-num-seqs", "64"],  # engine_args do not reach a cloud machine
            "image": "acme/vllm:1",
        },
    }
    assert (block["job_id"], block["model"]) == ("job_1", "m")
    assert block["resource_allocation"]["provision_id"] == "prov-1"
    assert block["resource_allocation"]["attempt"] == 2
    assert block["resource_allocation"]["resource_details"][0]["region"] == "EU-1"
    assert block["model_template"] == {"name": "small", "version": "v1", "spec": spec}
    assert "client" not in block


@pytest.mark.parametrize("provider", ["runpod", "lambdaCloud"])
def test_engine_args_are_rendered_before_serve_args_where_the_operator_says_so(provider: str) -> None:
    spec = a_template(**GPU, engine=ENGINE, engine_args={"max_model_len": 4096})
    runtimes = Runtimes(TARGETS, render_engine_args=True)
    options = made(provider, job(model_template_spec_json=json.dumps(spec)), runtimes)["runtime"]["options"]
    assert options["vllm_args"] == ["--max-model-len", "4096", "--max-num-seqs", "64"]
    parse_ssh(TARGETS[provider], {**options, "host_key": None})


@pytest.mark.parametrize("provider", ["local", "kubernetes"])
def test_what_finds_everything_by_itself_gets_no_options(provider: str) -> None:
    assert made(provider, job())["runtime"] == {"target": TARGETS[provider]}


def test_a_static_endpoint_is_named_with_the_variable_of_its_key() -> None:
    endpoint = {"name": "one", "base_url": "http://engine.internal:8000", "api_key_env": "AIBRIX_ENDPOINT_KEY_ONE"}
    settings = Settings(static=Static(endpoints=[endpoint]))
    machine = Machine(id="one", name="aibrix-prov-1-1", http_base_url="http://engine.internal:8000")
    block = made("static", job(), Runtimes.of(settings, TARGETS, shares=True), machine=machine)
    options = {"base_url": "http://engine.internal:8000", "api_key_env": "AIBRIX_ENDPOINT_KEY_ONE"}
    assert block["runtime"] == {"target": "External", "options": options}
    assert "keep_engine_seconds" not in block["resource_allocation"]


def test_the_client_of_a_job_goes_along() -> None:
    client = {"max_concurrency": 8, "retry_policy": {"max_retries": 2}}
    assert made("local", job(client_json=json.dumps(client)))["client"] == client


@pytest.mark.parametrize("shares", [True, False])
def test_an_engine_is_kept_where_the_policy_shares_machines(shares: bool) -> None:
    runtimes = Runtimes.of(Settings(planner=Planner(keep_engine_s=45)), TARGETS, shares=shares)
    allocation = made("runpod", job(), runtimes)["resource_allocation"]
    assert allocation.get("keep_engine_seconds") == (45 if shares else None)


def test_a_package_s_provider_for_a_machine_over_ssh_gets_what_the_clouds_get() -> None:
    block = made("acme", job(), Runtimes({"acme": "RunPod"}))
    assert block["runtime"]["target"] == "RunPod"
    assert block["runtime"]["options"]["vllm_args"] == ["--max-num-seqs", "64"]


@pytest.mark.parametrize("provider", list(TARGETS))
def test_the_draft_is_as_good_as_the_block(provider: str) -> None:
    """The input is checked with it, before there is compute."""
    wanted = json.dumps({"providers": [provider]})
    block = json.loads(draft_block(job(resource_request_json=wanted), Runtimes(TARGETS)))
    assert block["runtime"]["target"] == TARGETS[provider]
    assert "resource_allocation" not in block


def test_compute_is_asked_for_as_the_template_says() -> None:
    spec = a_template(accelerator={"type": "H100-SXM-80GB", "count": 4, "vram_gb": 80}, parallelism={"tp": 4})
    request = {"providers": ["runpod", "lambdaCloud"], "regions": ["EU-1"], "max_hourly_price_usd": 12}
    asked = compute_for(job(model_template_spec_json=json.dumps(spec), resource_request_json=json.dumps(request)))
    (group,) = asked.groups
    assert (group.gpus_per_replica, group.replicas) == (4, 1)
    assert group.accelerator_preference is not None
    assert group.accelerator_preference.preferred_types == ["H100-SXM-80GB"]
    assert group.accelerator_preference.min_memory_gb == 80
    assert (asked.providers, asked.regions, asked.max_hourly_price_usd) == (["runpod", "lambdaCloud"], ["EU-1"], 12)
