"""Options of the targets Kubernetes and KubernetesJob, and the checks of a create."""

from __future__ import annotations

import json
from typing import Any

import pytest

from services.kit.errors import InvalidArgument
from services.kit.settings import Templates
from services.kit.spec.block import parse_block
from services.kit.spec.catalog import Catalog
from services.kit.spec.kubernetes import KUBERNETES, KUBERNETES_JOB, KUBERNETES_TARGETS, parse_kubernetes
from services.kit.spec.profile import Quota
from services.kit.spec.resolved import resolve
from services.metadata.service.requests import check_engine, read_block
from tests.runtimes.kubernetes.support import template

OPTIONS = "aibrix.runtime.options"
SPEC = "aibrix.model_template.spec"


def test_everything_at_once() -> None:
    given = {
        "namespace": "team-a",
        "service_account": "engine.v1",
        "node_selector": {"example.com/gpu": "h100", "disk": ""},
        "tolerations": [
            {"key": "gpu", "operator": "Exists", "effect": "NoSchedule"},
            {"key": "team", "value": "a", "effect": "NoExecute", "tolerationSeconds": 30},
        ],
        "queue_name": "gpus",
        "image_pull_secrets": ["registry"],
        "labels": {"team": "a", "example.com/cost": "17"},
    }
    parsed = parse_kubernetes(KUBERNETES_JOB, given)
    made = parsed.model_dump(by_alias=True, exclude_none=True, exclude_defaults=True)
    assert made == given


@pytest.mark.parametrize("target", KUBERNETES_TARGETS)
def test_nothing_is_fine(target: str) -> None:
    assert parse_kubernetes(target, {}).namespace is None


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"namespace": "Team"}, "namespace"),
        ({"namespace": "a.b"}, "namespace"),
        ({"namespace": "-a"}, "namespace"),
        ({"namespace": "a" * 64}, "namespace"),
        ({"namespace": "a\n"}, "namespace"),
        ({"namespace": 7}, "namespace"),
        ({"service_account": "a_b"}, "service_account"),
        ({"service_account": "a..b"}, "service_account"),
        ({"service_account": "a." * 127 + "a"}, "service_account"),
        ({"node_selector": {"a b": "c"}}, "node_selector"),
        ({"node_selector": {"a/b/c": "c"}}, "node_selector"),
        ({"node_selector": {"A.com/b": "c"}}, "node_selector"),
        ({"node_selector": {"/b": "c"}}, "node_selector"),
        ({"node_selector": {"a": "b c"}}, "node_selector"),
        ({"node_selector": {"a": "b" * 64}}, "node_selector"),
        ({"node_selector": {f"k{n}": "" for n in range(33)}}, "node_selector"),
        ({"tolerations": [{"operator": "Exists"}]}, "tolerations.0.key"),
        ({"tolerations": [{"key": ""}]}, "tolerations.0.key"),
        ({"tolerations": [{"key": "a", "operator": "Gt"}]}, "tolerations.0.operator"),
        ({"tolerations": [{"key": "a", "operator": "Exists", "value": "b"}]}, "tolerations.0"),
        ({"tolerations": [{"key": "a", "effect": "No"}]}, "tolerations.0.effect"),
        ({"tolerations": [{"key": "a", "effect": "NoSchedule", "tolerationSeconds": 1}]}, "tolerations.0"),
        ({"tolerations": [{"key": "a", "effect": "NoExecute", "tolerationSeconds": -1}]}, "tolerations.0.tolerationSeconds"),
        ({"tolerations": [{"key": "node-role.kubernetes.io/control-plane"}]}, "tolerations.0.key"),
        ({"tolerations": [{"key": "node.kubernetes.io/unschedulable"}]}, "tolerations.0.key"),
        ({"tolerations": [{"key": "a"}] * 33}, "tolerations"),
        ({"queue_name": "A"}, "queue_name"),
        ({"image_pull_secrets": ["a_b"]}, "image_pull_secrets.0"),
        ({"image_pull_secrets": ["a"] * 9}, "image_pull_secrets"),
        ({"image_pull_secrets": "a"}, "image_pull_secrets"),
        ({"labels": {"kueue.x-k8s.io/queue-name": "a"}}, "labels"),
        ({"labels": {"app.kubernetes.io/name": "a"}}, "labels"),
        ({"labels": {"kubernetes.io/x": "a"}}, "labels"),
        ({"labels": {"pod-security.k8s.io/x": "a"}}, "labels"),
        ({"labels": {"sidecar.istio.io/inject": "true"}}, "labels"),
        ({"labels": {"azure.workload.identity/use": "true"}}, "labels"),
        ({"labels": {"aibrix-batch/batch": "a"}}, "labels"),
        ({"labels": {"app": "gateway"}}, "labels"),
        ({"labels": {"team": "a b"}}, "labels"),
    ],
)  # fmt: skip
def test_what_is_refused(options: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidArgument) as raised:
        parse_kubernetes(KUBERNETES_JOB, options)
    assert str(raised.value.context["param"]).startswith(f"{OPTIONS}.{param}")


@pytest.mark.parametrize("name", ["hostNetwork", "image", "command", "priority_class", "volumes", "toleration_seconds"])
def test_there_are_no_other_options(name: str) -> None:
    with pytest.raises(InvalidArgument) as raised:
        parse_kubernetes(KUBERNETES, {name: "x"})
    assert raised.value.context == {"param": f"{OPTIONS}.{name}", "code": "unknown_parameter"}


def test_only_a_job_waits_in_a_queue() -> None:
    with pytest.raises(InvalidArgument, match="only the target KubernetesJob") as raised:
        parse_kubernetes(KUBERNETES, {"queue_name": "gpus"})
    assert raised.value.context["param"] == f"{OPTIONS}.queue_name"


def create(target: str, spec: dict[str, Any] | None, options: dict[str, Any] | None = None) -> None:
    """The checks of a create, up to the database."""
    document: dict[str, Any] = {"runtime": {"target": target, "options": options or {}}}
    if spec is not None:
        document["model_template"] = {"name": "t", "spec": spec}
    block = read_block(json.dumps(document), has_default=False)
    resolved = resolve(block, Catalog(), Quota())
    assert resolved.template is not None
    check_engine(block, resolved.template, Templates())


@pytest.mark.parametrize("target", KUBERNETES_TARGETS)
@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"deployment_mode": "shared"}, f"{SPEC}.deployment_mode"),
        ({"deployment_mode": "external"}, f"{SPEC}.deployment_mode"),
        ({"engine.type": "lmdeploy"}, f"{SPEC}.engine.type"),
        ({"engine.type": "sglang", "accelerator.type": "MI300X"}, f"{SPEC}.engine.image"),
        ({"accelerator.type": "cpu"}, f"{SPEC}.engine.image"),
        ({"accelerator.type": "TPU v5"}, f"{SPEC}.accelerator.type"),
        ({"model_source.type": "hdfs"}, f"{SPEC}.model_source.type"),
        ({"model_source.type": "s3"}, f"{SPEC}.model_source.uri"),
        ({"model_source.uri": "gs://x/y"}, f"{SPEC}.model_source.uri"),
        ({"engine.serve_args": ["--trust-remote-code"]}, f"{SPEC}.engine.serve_args"),
        ({"engine_args": {"max_num_seqs": 4, "plugin": "x"}}, f"{SPEC}.engine_args.plugin"),
        ({"engine.type": "llamacpp", "model_source.revision": "main"}, f"{SPEC}.model_source.revision"),
    ],
)
def test_a_create_names_the_field(target: str, changes: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidArgument) as raised:
        create(target, template(**changes))
    assert raised.value.context["param"] == param
    assert param in raised.value.message


@pytest.mark.parametrize("target", KUBERNETES_TARGETS)
def test_a_create_without_a_template(target: str) -> None:
    with pytest.raises(InvalidArgument, match=f"Target '{target}' starts the engine of a template.$") as raised:
        create(target, None)
    assert raised.value.context == {"param": "aibrix.model_template", "code": "missing_required_parameter"}


@pytest.mark.parametrize("target", KUBERNETES_TARGETS)
def test_a_create_with_wrong_options(target: str) -> None:
    with pytest.raises(InvalidArgument) as raised:
        create(target, template(), {"hostPID": True})
    assert raised.value.context["param"] == f"{OPTIONS}.hostPID"


@pytest.mark.parametrize("target", KUBERNETES_TARGETS)
@pytest.mark.parametrize("engine", ["vllm", "sglang", "llamacpp", "mock"])
def test_creates_that_are_fine(target: str, engine: str) -> None:
    create(target, template(engine), {"labels": {"team": "a"}})


def test_an_external_batch_is_not_asked_for_any_of_it() -> None:
    spec = template(**{"deployment_mode": "external", "engine.type": "lmdeploy"})
    create("External", spec, {"base_url": "https://engines.example.com"})


def test_options_are_read_from_a_block() -> None:
    block = parse_block(json.dumps({"runtime": {"target": KUBERNETES, "options": {"namespace": "a"}}}))
    assert parse_kubernetes(block.target(), block.options()).namespace == "a"
