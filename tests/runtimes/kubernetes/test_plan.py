"""What a batch may have on Kubernetes, and what it is refused, in words and for ever."""

from __future__ import annotations

from typing import Any

import pytest

from services.kit.engines.table import ADAPTERS
from services.kit.settings import Settings
from services.kit.spec.kubernetes import IMAGES, KUBERNETES, KUBERNETES_JOB
from services.runner.runtimes.base import RuntimeFailed, Spec
from services.runner.runtimes.kubernetes.codes import DOWNLOAD_CODES, WORKER_CODES
from services.runner.runtimes.kubernetes.plan import plan, repository
from services.runner.runtimes.kubernetes.pod import worker
from services.runner.worker import Exit
from tests.runtimes.kubernetes.support import MARK, NOW, planned, settings, spec_of, template


def refusal(target: str, template: dict[str, Any], **given: Any) -> str:
    with pytest.raises(RuntimeFailed) as raised:
        planned(target, template, **given)
    assert not raised.value.retryable
    return raised.value.why


def s3(engine: str = "vllm", uri: str = "s3://models/llama", **changes: Any) -> dict[str, Any]:
    return template(engine, **{"model_source.type": "s3", "model_source.uri": uri, **changes})


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        ("vllm/vllm-openai", "vllm/vllm-openai"),
        ("vllm/vllm-openai:v0.33.0", "vllm/vllm-openai"),
        ("vllm/vllm-openai@sha256:" + "a" * 64, "vllm/vllm-openai"),
        ("docker.io/vllm/vllm-openai:v1@sha256:" + "a" * 64, "vllm/vllm-openai"),
        ("index.docker.io/vllm/vllm-openai", "vllm/vllm-openai"),
        ("registry.example.com:5000/a/b/c:tag", "registry.example.com:5000/a/b/c"),
        ("localhost:5000/a", "localhost:5000/a"),
        ("ubuntu", "library/ubuntu"),
        ("docker.io/ubuntu:24.04", "library/ubuntu"),
        ("ghcr.io/ggml-org/llama.cpp:server-cuda", "ghcr.io/ggml-org/llama.cpp"),
        ("vllm/VLLM", None),
        ("vllm/vllm openai", None),
        ("vllm/vllm-openai:", None),
        ("vllm/../x", None),
        ("vllm//x", None),
        ("x@sha256:zz", None),
        ("", None),
    ],
)
def test_the_repository_of_an_image(image: str, expected: str | None) -> None:
    assert repository(image) == expected


@pytest.mark.parametrize("image", ["vllm/vllm-openai:nightly", "docker.io/vllm/vllm-openai@sha256:" + "0" * 64])
def test_a_batchs_own_template_may_name_what_the_operator_lists(image: str) -> None:
    assert planned(KUBERNETES, template(**{"engine.image": image}), source="inline").image == image


@pytest.mark.parametrize(
    "image", ["evil/vllm-openai", "vllm/vllm-openai-x", "example.com/vllm/vllm-openai", "vllm/vllm-openai/x", "vllm:1"]
)
def test_other_images_are_the_operators_to_name(image: str) -> None:
    spec = template(**{"engine.image": image})
    assert "AIBRIX_KUBERNETES__ALLOWED_IMAGES" in refusal(KUBERNETES, spec, source="inline")
    assert planned(KUBERNETES, spec, source="registry").image == image
    assert planned(KUBERNETES, spec, source="inline", settings=settings(allowed_images="*")).image == image


def test_a_template_that_nobody_vouches_for_is_bound() -> None:
    spec = spec_of(KUBERNETES, template(**{"engine.image": "evil/x"}))
    unknown = Spec(key=spec.key, block=spec.block, template=spec.template, template_source=None)
    with pytest.raises(RuntimeFailed, match="ALLOWED_IMAGES"):
        plan(unknown, KUBERNETES, Settings(), "engines", mark=MARK, now=NOW)


def test_an_image_that_is_not_named_as_images_are() -> None:
    assert "not named as images are" in refusal(KUBERNETES, template(**{"engine.image": "UPPER/Case"}))


def test_secrets() -> None:
    spec = template(**{"model_source.auth_secret_ref": "hf"})
    assert "ALLOWED_SECRETS" in refusal(KUBERNETES, spec, source="inline", settings=settings(allowed_secrets="h,f"))
    assert planned(KUBERNETES, spec, source="inline", settings=settings(allowed_secrets=" hf ,")).secret == "hf"
    assert planned(KUBERNETES, spec, source="registry").secret == "hf"


def test_the_workers_own_secret_is_nobodys_to_name() -> None:
    """It has the credentials of the object store with everybody's inputs, and an engine gets all keys of what it is given."""
    chosen = settings(allowed_secrets="*,platform", worker_secret="platform")
    spec = template(**{"model_source.auth_secret_ref": "platform"})
    assert "WORKER_SECRET" in refusal(KUBERNETES, spec, source="inline", settings=chosen)
    pull = {"image_pull_secrets": ["platform"]}
    assert "WORKER_SECRET" in refusal(KUBERNETES, template(), options=pull, settings=chosen)


@pytest.mark.parametrize(
    ("options", "setting"),
    [
        ({"namespace": "kube-system"}, "allowed_namespaces"),
        ({"service_account": "admin"}, "allowed_service_accounts"),
        ({"image_pull_secrets": ["registry", "other"]}, "allowed_secrets"),
    ],
)
@pytest.mark.parametrize("source", ["inline", "registry"])
def test_where_a_batch_may_go_is_the_operators_to_say(options: dict[str, Any], setting: str, source: str) -> None:
    named = next(iter(options.values()))
    given: dict[str, Any] = {"options": options, "source": source}
    assert f"AIBRIX_KUBERNETES__{setting.upper()}" in refusal(KUBERNETES, template(), **given)
    listed = ",".join(named) if isinstance(named, list) else named
    for allowed in (listed, "*"):
        assert planned(KUBERNETES, template(), **given, settings=settings(**{setting: allowed})).options


def test_the_namespace() -> None:
    assert planned(KUBERNETES, template()).namespace == "engines"
    chosen = settings(namespace="batch")
    assert planned(KUBERNETES, template(), settings=chosen).namespace == "batch"
    assert planned(KUBERNETES, template(), settings=chosen, options={"namespace": "batch"}).namespace == "batch"
    assert "ALLOWED_NAMESPACES" in refusal(KUBERNETES, template(), settings=chosen, options={"namespace": "engines"})


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"deployment_mode": "shared"}, "aibrix.model_template.spec.deployment_mode"),
        ({"deployment_mode": "external"}, "dedicated"),
        ({"engine.type": "trtllm"}, "'trtllm' cannot be started here"),
        ({"engine.type": "sglang", "accelerator.type": "MI300X"}, "spec.engine.image"),
        ({"accelerator.type": "cpu"}, "No image of vllm for cpu"),
        ({"accelerator.type": "Gaudi2"}, "neither NVIDIA's nor AMD's"),
        ({"model_source.type": "tos"}, "no model is downloaded from tos"),
        ({"model_source.type": "hdfs"}, "no model is downloaded from hdfs"),
        ({"model_source.uri": "s3://secrets/x"}, "a repository such as"),
        ({"model_source.uri": "/etc"}, "a repository such as"),
        ({"model_source.type": "s3"}, "s3://BUCKET/FOLDER"),
        ({"model_source.type": "local", "model_source.uri": "/cache/x"}, "AIBRIX_KUBERNETES__CACHE_CLAIM"),
    ],
)
@pytest.mark.parametrize("target", [KUBERNETES, KUBERNETES_JOB])
def test_templates_that_no_pod_is_made_of(target: str, changes: dict[str, Any], why: str) -> None:
    assert why in refusal(target, template(**changes))


def test_without_a_template() -> None:
    spec = spec_of(KUBERNETES, template())
    with pytest.raises(RuntimeFailed, match="give model_template"):
        plan(Spec(key="k", block=spec.block), KUBERNETES, Settings(), "n", mark=MARK, now=NOW)


@pytest.mark.parametrize(
    ("uri", "path"),
    [("x/y", "/cache/x/y"), ("/cache/x", "/cache/x"), ("a/../b", "/cache/b"), ("/cache//x/", "/cache/x")],
)
def test_a_model_in_the_volume(uri: str, path: str) -> None:
    spec = template(**{"model_source.type": "local", "model_source.uri": uri})
    made = planned(KUBERNETES, spec, settings=settings(cache_claim="models"))
    assert made.arguments[0] == path
    assert made.download is None


@pytest.mark.parametrize("uri", ["/etc/passwd", "..", "../x", "/cache/../etc", "/cache", ".", "/cachex/y"])
def test_a_model_elsewhere(uri: str) -> None:
    spec = template(**{"model_source.type": "local", "model_source.uri": uri})
    assert "must lie in /cache" in refusal(KUBERNETES, spec, settings=settings(cache_claim="models"))


def test_models_of_an_object_store() -> None:
    made = planned(KUBERNETES, s3(uri="s3://models/llama/"))
    assert made.download is not None
    assert (made.download.uri, made.arguments[0]) == ("s3://models/llama", made.download.folder)
    assert made.download.folder.startswith("/cache/models/")
    other = planned(KUBERNETES, s3(uri="s3://models/llama-2"))
    assert other.download is not None
    assert other.download.folder != made.download.folder, "one volume may hold both"


def test_a_file_of_an_object_store() -> None:
    whole = planned(KUBERNETES, s3("llamacpp", "s3://models/tiny.gguf"))
    assert whole.download is not None
    assert whole.arguments[:2] == ("--model", f"{whole.download.folder}/tiny.gguf")
    parts = planned(KUBERNETES, s3("llamacpp", "s3://models/q4/x-00001-of-00003.gguf"))
    assert parts.download is not None
    assert parts.download.uri == "s3://models/q4"
    assert parts.arguments[1] == f"{parts.download.folder}/x-00001-of-00003.gguf"
    assert "name the .gguf file" in refusal(KUBERNETES, s3("llamacpp", "s3://models/tiny"))
    assert "a folder of their own" in refusal(KUBERNETES, s3("llamacpp", "s3://models/x-00001-of-00003.gguf"))


def test_the_mock_engine_has_no_model() -> None:
    made = planned(KUBERNETES, s3("mock", **{"accelerator.type": "cpu"}), settings=settings(image="ours:1"))
    assert (made.image, made.download, made.devices) == ("ours:1", None, {})


@pytest.mark.parametrize(
    ("accelerator", "devices"),
    [
        ("A10", {"nvidia.com/gpu": "1"}),
        ("NVIDIA H100 80GB HBM3", {"nvidia.com/gpu": "1"}),
        ("gpu_1x_a10", {"nvidia.com/gpu": "1"}),
        ("MI300X", {"amd.com/gpu": "1"}),
        ("mi250", {"amd.com/gpu": "1"}),
        ("AMD Instinct MI300X OAM", {"amd.com/gpu": "1"}),
        ("Radeon PRO W7900", {"amd.com/gpu": "1"}),
        ("CPU", {}),
    ],
)
def test_devices_by_vendor(accelerator: str, devices: dict[str, str]) -> None:
    assert planned(KUBERNETES, template("mock", **{"accelerator.type": accelerator})).devices == devices


@pytest.mark.parametrize(
    ("allocation", "replicas"),
    [
        (None, 1),
        ({}, 1),
        ({"resource_details": []}, 1),
        ({"resource_details": [{"gpu_type": "L4"}]}, 1),
        ({"resource_details": [{"replica": 3}, {"replica": 9}]}, 3),
        ({"resource_details": {"replica": 2}}, 2),
    ],
)
def test_replicas(allocation: dict[str, Any] | None, replicas: int) -> None:
    given = {} if allocation is None else {"resource_allocation": allocation}
    assert planned(KUBERNETES, template(), **given).replicas == replicas
    assert planned(KUBERNETES_JOB, template(), **given).replicas == 1


@pytest.mark.parametrize("replica", [0, -1, 65, True, "2", 1.5])
def test_replicas_that_are_no_number_of_them(replica: Any) -> None:
    allocation = {"resource_details": [{"replica": replica}]}
    assert "resource_details.0.replica" in refusal(KUBERNETES, template(), resource_allocation=allocation)


@pytest.mark.parametrize(("left", "window"), [(3600.2, 3601), (59.0, 60), (-100.0, 60), (None, None)])
def test_the_time_that_is_left(left: float | None, window: int | None) -> None:
    assert planned(KUBERNETES_JOB, template(), window_s=left).window_s == window


def test_a_runner_that_drains_has_the_time_to() -> None:
    chosen = Settings.model_validate({"runner": {"drain_s": 90.0}})
    assert planned(KUBERNETES_JOB, template(), settings=chosen).grace_s > 90 + 15


@pytest.mark.parametrize("drain_s", [0.5, 30.0, 90.0])
def test_a_worker_drains_as_its_grace_period_expects(drain_s: float) -> None:
    """Its ConfigMap may say something else, or nothing."""
    made = planned(KUBERNETES_JOB, template(), settings=Settings.model_validate({"runner": {"drain_s": drain_s}}))
    given = {one["name"]: one["value"] for one in worker(made)["env"]}
    assert float(given["AIBRIX_RUNNER__DRAIN_S"]) == drain_s
    assert made.grace_s >= drain_s + 15 + 5


def test_host_and_port_stand_behind_everything() -> None:
    spec = template(**{"engine.serve_args": ["--host", "::", "--port", "1"]})
    assert planned(KUBERNETES, spec).arguments[-4:] == ("--host", "0.0.0.0", "--port", "8000")
    assert planned(KUBERNETES_JOB, spec).arguments[-4:] == ("--host", "127.0.0.1", "--port", "8000")


def test_a_batch_that_was_launched_again_has_the_same_names_and_another_mark() -> None:
    first, again = (
        plan(spec_of(KUBERNETES, template()), KUBERNETES, Settings(), "n", mark=mark, now=NOW) for mark in ("a", "b")
    )
    assert (first.name, first.labels, first.selector) == (again.name, again.labels, again.selector)
    assert first.annotations != again.annotations


def test_exit_codes_are_those_of_the_worker() -> None:
    assert WORKER_CODES == (Exit.ENGINE_NEVER_READY, Exit.BAD_CONFIGURATION)
    for codes in (WORKER_CODES, DOWNLOAD_CODES):
        assert codes == tuple(sorted(set(codes)))


def test_images_are_of_engines_that_there_are() -> None:
    assert {engine for engine, _ in IMAGES} == ADAPTERS.keys() - {"mock"}
    assert all(repository(image) for image in IMAGES.values())
