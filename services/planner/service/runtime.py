"""The aibrix block of a job's batch, from the job and the compute that was made for it. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from services.kit.engines import table as engines
from services.kit.settings import Settings
from services.kit.spec.ssh import SSH_TARGETS
from services.kit.spec.template import TemplateSpec
from services.planner.domain import AcceleratorPreference, Group, Job, Machine, Provision, ProvisionSpec
from services.planner.service.documents import ResourceRequest, read_request, read_spec

# Runtimes that find everything by themselves.
PLAIN = ("local", "kubernetes")
STATIC = "static"
# Stands for an endpoint that is not known yet, in the block that is only checked.
NOWHERE = "http://endpoint.invalid"
FIELDS = ("host", "ssh_port", "ssh_user", "http_base_url", "host_key")


@dataclass(frozen=True)
class Runtimes:
    """What the construction needs besides the job and its provision."""

    targets: Mapping[str, str]
    """Provider to the value of `aibrix.runtime.target`, of those that are configured, the first one first."""
    render_engine_args: bool = False
    """Whether cloud machines get the template's engine_args, rendered, before its serve_args."""
    api_keys: Mapping[str, str] = field(default_factory=dict)
    """Name of an endpoint of the provider `static` to the variable that holds its key."""
    keep_engine_s: int = 0
    """How long an engine stays up for the next job on the same compute."""

    @staticmethod
    def of(settings: Settings, targets: Mapping[str, str], *, shares: bool = False) -> Runtimes:
        """`shares`: whether the policy puts several jobs onto one machine."""
        keys = {
            str(one["name"]): str(one["api_key_env"]) for one in settings.static.endpoints if one.get("api_key_env")
        }
        keep_s = settings.planner.keep_engine_s if shares else 0
        return Runtimes(targets, settings.cloud_render_engine_args, keys, keep_s)


def compute_for(job: Job) -> ProvisionSpec:
    """What is asked of the resource manager: one machine with the template's accelerators."""
    return compute_spec(read_spec(job.model_template_spec_json or ""), read_request(job.resource_request_json))


def compute_spec(spec: TemplateSpec, request: ResourceRequest) -> ProvisionSpec:
    wanted = spec.accelerator
    group = Group(replicas=request.replicas)
    if spec.needs_gpu():
        preference = AcceleratorPreference(preferred_types=[wanted.type], min_memory_gb=wanted.vram_gb or 0)
        group = Group(replicas=request.replicas, gpus_per_replica=wanted.count, accelerator_preference=preference)
    return ProvisionSpec(
        groups=[group],
        providers=list(request.providers),
        regions=list(request.regions),
        max_hourly_price_usd=request.max_hourly_price_usd,
        labels=dict(request.labels),
        image=spec.engine.image or "",
    )


def block_for(job: Job, provision: Provision, runtimes: Runtimes, attempt: int) -> str:
    """What is submitted, as JSON. `attempt`: which try for compute it is; metadata takes none that is older than the one
    it has. Error: InvalidArgument, if engine_args cannot be rendered."""
    details = {
        "provider": provision.provider,
        "region": provision.region,
        "instance_type": provision.instance_type,
        "accelerator": provision.accelerator,
        "gpus_per_replica": provision.gpus_per_replica,
        "replicas": provision.replicas,
    }
    machine = provision.machines[0] if provision.machines else Machine()
    said = {name: value for name, value in details.items() if value}
    allocation: dict[str, Any] = {"provision_id": provision.id, "attempt": attempt, "resource_details": [said]}
    if runtimes.keep_engine_s and provision.provider != STATIC:
        allocation["keep_engine_seconds"] = runtimes.keep_engine_s
    return _block(job, _runtime(job, provision.provider, machine, runtimes), allocation)


def draft_block(job: Job, runtimes: Runtimes) -> str:
    """What will be submitted, as far as it is known before there is compute: for the check of the input."""
    wanted = read_request(job.resource_request_json).providers
    provider = next(iter([*wanted, *runtimes.targets]), STATIC)
    machine = Machine(http_base_url=NOWHERE if provider == STATIC else "")
    return _block(job, _runtime(job, provider, machine, runtimes), None)


def _block(job: Job, runtime: Mapping[str, Any], allocation: Mapping[str, Any] | None) -> str:
    block: dict[str, Any] = {"job_id": job.id, "model": job.model, "runtime": runtime}
    if allocation is not None:
        block["resource_allocation"] = allocation
    template: dict[str, Any] = {"name": job.model_template_name}
    if job.model_template_version:
        template["version"] = job.model_template_version
    block["model_template"] = {**template, "spec": json.loads(job.model_template_spec_json or "{}")}
    if job.client_json is not None:
        block["client"] = json.loads(job.client_json)
    return json.dumps(block, ensure_ascii=False, separators=(",", ":"))


def _runtime(job: Job, provider: str, machine: Machine, runtimes: Runtimes) -> dict[str, Any]:
    target = runtimes.targets.get(provider, provider)
    if provider in PLAIN:
        return {"target": target}
    if provider == STATIC:
        options: dict[str, Any] = {"base_url": machine.http_base_url, "api_key_env": runtimes.api_keys.get(machine.id)}
    else:
        options = {name: getattr(machine, name) for name in FIELDS} | {"model": job.model}
    if target in SSH_TARGETS:
        del options["http_base_url"]  # the engine listens on the machine's loopback, and is reached through SSH
        spec = read_spec(job.model_template_spec_json or "")
        options |= {"vllm_args": _arguments(spec, runtimes), "image": spec.engine.image}
    return {"target": target, "options": {name: value for name, value in options.items() if value}}


def _arguments(spec: TemplateSpec, runtimes: Runtimes) -> Sequence[str]:
    rendered = engines.flags(spec) if runtimes.render_engine_args else ()
    return [*rendered, *spec.engine.serve_args]
