"""Whole manifests: a template in, what is created out, by every judge that there is."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from kubernetes.aio import client
from pydantic import ValidationError

from services.kit.settings import environment_names
from services.runner.runtimes.kubernetes.plan import PORT
from tests.kubernetes.rules import check, containers, pod_template, problems
from tests.runtimes.kubernetes.support import GOLDEN, golden, rendered

FILES = sorted(GOLDEN.glob("*.yaml"))
MODELS = {"Deployment": client.V1Deployment, "Job": client.V1Job, "Service": client.V1Service}
EVERY = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)


def pods(path: Path) -> list[dict[str, Any]]:
    return [pod["spec"] for pod in map(pod_template, golden(path)[1]) if pod is not None]


@EVERY
def test_the_manifests_are_the_recorded_ones(path: Path) -> None:
    plan, expected = golden(path)
    assert rendered(plan) == expected


@EVERY
def test_the_published_schemas_and_our_rules(path: Path) -> None:
    for manifest in golden(path)[1]:
        check(manifest)


@EVERY
def test_the_clients_own_models_take_them_as_they_are(path: Path) -> None:
    for manifest in golden(path)[1]:
        model: Any = MODELS[manifest["kind"]]
        assert model.model_validate(manifest).model_dump(by_alias=True, exclude_none=True, mode="json") == manifest


@EVERY
def test_rendering_shares_nothing_with_the_plan(path: Path) -> None:
    """Who changes a manifest changes no other one."""
    plan, expected = golden(path)
    for manifest in rendered(plan):
        manifest["metadata"]["labels"].clear()
        manifest["metadata"]["annotations"].clear()
        for spec in (manifest["spec"].get("template", {}).get("spec"),):
            if spec is not None:
                spec.get("nodeSelector", {}).clear()
                spec.get("tolerations", []).clear()
                for container in containers(spec):
                    container.get("resources", {}).clear()
    assert rendered(plan) == expected


@EVERY
def test_no_secret_is_written_out_and_no_word_of_a_template_is_replaced(path: Path) -> None:
    for spec in pods(path):
        for container in containers(spec):
            for word in (*container["command"], *container["args"]):
                assert "$" not in word.replace("$$", "")
            for variable in container.get("env", []):
                assert "$" not in variable.get("value", "").replace("$$", "")
                if any(name in variable["name"] for name in ("TOKEN", "KEY", "SECRET")):
                    assert "value" not in variable


@EVERY
def test_who_runs_and_what_a_pod_gets(path: Path) -> None:
    for spec in pods(path):
        assert spec["automountServiceAccountToken"] is False
        assert spec["enableServiceLinks"] is False
        engine = next(container for container in containers(spec) if container["name"] == "engine")
        assert engine["args"][-2:] == ["--port", str(PORT)]
        written = {mount["mountPath"] for mount in engine["volumeMounts"]}
        places = ("HOME", "TMPDIR", "HF_HOME", "VLLM_CACHE_ROOT", "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR")
        values = {variable["name"]: variable.get("value", "") for variable in engine["env"]}
        for place in places:
            assert any(values[place] == path or values[place].startswith(path + "/") for path in written), place
        gpus = [name for name in engine.get("resources", {}).get("limits", {}) if name.endswith("/gpu")]
        for container in containers(spec):
            if container["name"] != "engine":
                assert container["securityContext"]["readOnlyRootFilesystem"] is True
                assert not [name for name in container["resources"].get("limits", {}) if name.endswith("/gpu")]
        assert len(gpus) <= 1


@EVERY
def test_an_engine_in_a_job_is_a_sidecar_that_only_its_pod_reaches(path: Path) -> None:
    for manifest in golden(path)[1]:
        if manifest["kind"] != "Job":
            continue
        spec = manifest["spec"]["template"]["spec"]
        engine = spec["initContainers"][-1]
        assert (engine["name"], engine["restartPolicy"]) == ("engine", "Always")
        assert not {"startupProbe", "livenessProbe"} & engine.keys(), "they would start it again for ever"
        assert engine["args"][-4:-2] == ["--host", "127.0.0.1"]
        assert "exec" in engine["readinessProbe"], "the kubelet does not reach a pod's loopback"
        (worker,) = spec["containers"]
        named = [v["name"] for v in worker["env"] if v["name"].startswith("AIBRIX_")]
        assert set(named) <= environment_names().keys()
        first, *rest = manifest["spec"]["podFailurePolicy"]["rules"]
        assert first["action"] == "Ignore"
        assert {rule["action"] for rule in rest} == {"FailJob"}


@EVERY
def test_an_engine_of_a_deployment_has_the_time_that_its_template_gives(path: Path) -> None:
    plan, manifests = golden(path)
    for manifest in manifests:
        if manifest["kind"] != "Deployment":
            continue
        (engine,) = manifest["spec"]["template"]["spec"]["containers"]
        startup, liveness = engine["startupProbe"], engine["livenessProbe"]
        assert startup["periodSeconds"] * startup["failureThreshold"] >= plan.ready_timeout_s
        assert liveness["periodSeconds"] * liveness["failureThreshold"] >= 300
        assert manifest["spec"]["progressDeadlineSeconds"] > plan.ready_timeout_s


WRONG: list[tuple[str, tuple[str | int, ...], Any, str]] = [
    ("vllm-one-gpu", ("spec", "selector", "matchLabels", "x"), "y", "does not match"),
    ("vllm-one-gpu", ("spec", "template", "spec", "restartPolicy"), "Sometimes", "is none of"),
    ("vllm-one-gpu", ("spec", "template", "spec", "restartPolicy"), "Never", "does not go with"),
    ("vllm-one-gpu", ("spec", "strategy", "type"), "Recreated", "is none of"),
    ("vllm-one-gpu", ("spec", "template", "spec", "hostNetwork"), True, "hostNetwork"),
    ("vllm-one-gpu", ("spec", "template", "spec", "securityContext", "runAsNonRoot"), False, "runAsNonRoot"),
    ("vllm-one-gpu", ("spec", "template", "spec", "securityContext", "runAsUser"), 0, "root"),
    ("vllm-one-gpu", ("spec", "template", "spec", "securityContext", "seccompProfile", "type"), "Unconfined", "seccomp"),
    ("vllm-one-gpu", ("spec", "template", "spec", "volumes", 0, "name"), "other", "no volume cache"),
    ("vllm-one-gpu", ("spec", "template", "spec", "volumes", 0), {"name": "cache", "hostPath": {"path": "/"}}, "hostPath"),
    ("vllm-one-gpu", ("spec", "template", "spec", "containers", 0, "ports", 0, "name"), "web", "no port http"),
    ("vllm-one-gpu", ("spec", "template", "spec", "containers", 0, "resources", "limits", "nvidia.com/gpu"), 1, "quantity"),
    ("vllm-one-gpu", ("spec", "template", "spec", "containers", 0, "resources", "limits", "nvidia.com/gpu"), "2", "another"),
    ("vllm-one-gpu", ("spec", "template", "spec", "containers", 0, "securityContext"), {}, "capabilities"),
    ("vllm-one-gpu", ("metadata", "name"), "Aibrix_1", "no DNS name"),
    ("vllm-one-gpu", ("metadata", "labels", "team"), "a b", "label team"),
    ("job-queued", ("spec", "completionMode"), "Nope", "is none of"),
    ("job-queued", ("spec", "template", "spec", "restartPolicy"), "OnFailure", "needs restartPolicy Never"),
    ("job-queued", ("spec", "podReplacementPolicy"), "TerminatingOrFailed", "needs podReplacementPolicy"),
    ("job-queued", ("spec", "podFailurePolicy", "rules", 1, "onExitCodes", "values"), [78, 69], "ordered"),
    ("job-queued", ("spec", "podFailurePolicy", "rules", 1, "onExitCodes", "containerName"), "x", "no container x"),
    ("job-queued", ("spec", "podFailurePolicy", "rules", 1, "onExitCodes", "operator"), "Is", "is none of"),
    ("job-queued", ("spec", "podFailurePolicy", "rules", 0, "action"), "Skip", "is none of"),
    ("job-queued", ("spec", "template", "spec", "initContainers", 0, "restartPolicy"), "Never", "only be Always"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "path", "value", "why"), WRONG)
def test_the_rules_find_what_is_wrong(name: str, path: tuple[str | int, ...], value: Any, why: str) -> None:
    manifest = copy.deepcopy(golden(GOLDEN / f"{name}.yaml")[1][0])
    place: Any = manifest
    for part in path[:-1]:
        place = place[part]
    place[path[-1]] = value
    assert any(why in found for found in problems(manifest)), problems(manifest)


def test_the_clients_models_find_a_field_that_is_none() -> None:
    manifest = copy.deepcopy(golden(GOLDEN / "job-queued.yaml")[1][0])
    manifest["spec"]["template"]["spec"]["containers"][0]["imagee"] = "x"
    with pytest.raises(ValidationError, match="imagee"):
        client.V1Job.model_validate(manifest)
