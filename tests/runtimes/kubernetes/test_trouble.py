"""Every way in which a pod fails to become an engine: what the batch's owner reads, and when."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.runner.runtimes.kubernetes.said import LONGEST, end_of, said, seconds
from services.runner.runtimes.kubernetes.trouble import Moment, Stage, Trouble, last_words, look
from tests.kubernetes.cluster import Cluster
from tests.kubernetes.kubelet import UNAUTHORIZED, Kubelet
from tests.runtimes.kubernetes.support import planned, rendered, template

Object = dict[str, Any]
Happens = Callable[[Kubelet, Object], None]

S3 = {"model_source.type": "s3", "model_source.uri": "s3://models/qwen", "model_source.auth_secret_ref": "hf"}
PENDING_S = 45.0


class World:
    """A cluster in which the pods of one workload fare badly."""

    def __init__(self, target: str = "Kubernetes") -> None:
        self.cluster = Cluster("engines")
        self.kubelet = Kubelet(self.cluster)
        self.workload = rendered(planned(target, template("vllm", **S3)))[0]

    def pod(self, number: int = 1) -> Object:
        made = self.workload["spec"]["template"]
        name = f"{self.workload['metadata']['name']}-{number}"
        return self.cluster.put(
            "pods",
            {
                "metadata": {"name": name, "namespace": "engines", **made["metadata"]},
                "spec": made["spec"],
                "status": {"phase": "Pending"},
            },
        )

    def look(
        self, after_s: float = 0.0, *, served: bool = False, conditions: tuple[Object, ...] = ()
    ) -> Trouble | Stage:
        """`after_s` seconds later, if somebody has looked all the time."""
        now = time.time()
        moment = Moment(now=now + after_s, since=now, pending_s=PENDING_S, served=served)
        return look(self.cluster.all("pods"), self.cluster.all("events"), moment, conditions)


def does(verb: str, **more: Any) -> Happens:
    return lambda kubelet, pod: getattr(kubelet, verb)(pod, **more)


def then(*happens: Happens) -> Happens:
    def all_of(kubelet: Kubelet, pod: Object) -> None:
        for one in happens:
            one(kubelet, pod)

    return all_of


# What happens; words that are read; whether it is hopeless at once. What is not is hopeless within a minute.
TROUBLES: dict[str, tuple[Happens, str, bool]] = {
    "no such image, first try": (
        does("pull_fails"),
        r"image vllm/vllm-openai:latest cannot be pulled.*ErrImagePull.*not found",
        False,
    ),
    "no such image": (
        does("pull_backs_off"),
        r"image vllm/vllm-openai:latest cannot be pulled.*ImagePullBackOff.*not found",
        False,
    ),
    "image of others": (does("pull_backs_off", said=UNAUTHORIZED), r"cannot be pulled.*401 Unauthorized", False),
    "no such image, in words of an old kubelet": (
        then(does("pull_fails"), does("pull_backs_off", old=True)),
        r"cannot be pulled.*Failed to pull image.*not found",
        False,
    ),
    "our own image is not there": (
        does("pull_backs_off", container="download"),
        r"image aibrix-batch:latest cannot.*container download",
        False,
    ),
    "image name": (
        does(
            "waits",
            container="engine",
            reason="InvalidImageName",
            message='Failed to apply default image tag "x:y:z": invalid reference',
        ),
        r"image name .* is not valid.*invalid reference",
        True,
    ),
    "image may not be pulled": (
        does(
            "waits",
            container="engine",
            reason="ErrImageNeverPull",
            message="Container image is not present with pull policy of Never",
        ),
        r"is not on the node, and may not be pulled",
        True,
    ),
    "secret is missing": (
        does("misconfigured"),
        r'cannot be configured.*CreateContainerConfigError.*secret "hf" not found',
        False,
    ),
    "container cannot be created": (
        does(
            "waits",
            container="engine",
            reason="CreateContainerError",
            message="failed to generate container: no command specified",
        ),
        r"cannot be created.*no command specified",
        False,
    ),
    "no such program": (
        does(
            "crash_loops",
            code=128,
            reason="StartError",
            message='exec: "vllm": executable file not found in $PATH: unknown',
        ),
        r'container engine ends again and again: it could not be started.*"vllm": executable file not found',
        True,
    ),
    "engine crashes": (
        does("crash_loops", message="ValueError: unsupported quantization"),
        r"container engine ends again and again: it exited with status 1: ValueError: unsupported quantization \(2 restarts\)",
        True,
    ),
    "engine is killed": (does("crash_loops", code=137), r"it exited with status 137 \(it was killed\)", True),
    "engine needs too much memory, again and again": (
        does("crash_loops", code=137, reason="OOMKilled"),
        r"more memory than its limit",
        True,
    ),
    "engine needs too much memory": (
        does("restarted"),
        r"container engine was killed since it used more memory than its limit",
        True,
    ),
    "model cannot be downloaded": (
        does("crash_loops", container="download", code=2, message="s3://models/qwen: Access Denied"),
        r"container download ends again and again: it exited with status 2: s3://models/qwen: Access Denied",
        True,
    ),
    "no node has room": (
        does("unschedulable"),
        r"unschedulable: 0/3 nodes are available.*Insufficient nvidia.com/gpu",
        False,
    ),
    "no such claim": (
        does("unschedulable", message='persistentvolumeclaim "models" not found. not found'),
        r'unschedulable: persistentvolumeclaim "models" not found',
        False,
    ),
}


@pytest.mark.parametrize("name", TROUBLES)
def test_trouble_is_told_in_words_within_a_minute(name: str) -> None:
    happens, words, is_hopeless = TROUBLES[name]
    world = World()
    happens(world.kubelet, world.pod())
    first, later = world.look(), world.look(PENDING_S + 1)
    assert isinstance(first, Trouble)
    assert isinstance(later, Trouble)
    assert re.search(words, first.why), first.why
    assert first.why == later.why
    assert (first.fatal, later.fatal) == (is_hopeless, True)
    assert len(first.why) < 2 * LONGEST
    assert "\n" not in first.why


MOUNT = 'MountVolume.SetUp failed for volume "cache" : mount failed: exit status 32'
STAGES: dict[str, tuple[Happens, str, str]] = {
    "made": (lambda kubelet, pod: None, "scheduling", "waits for a node"),
    "gated": (does("gate"), "queued", "waits for its turn"),
    "a node comes": (
        then(does("unschedulable"), does("scale_up")),
        "scheduling",
        "on its way",
    ),
    "karpenter brings a node": (
        then(does("unschedulable"), does("nominate")),
        "scheduling",
        "on its way",
    ),
    "images": (does("schedule"), "pulling", "images"),
    "model": (does("downloading"), "downloading", "model"),
    "engine": (does("start"), "loading", "the engine loads"),
    "engine ended once": (
        then(does("start"), does("restarted", code=1, reason="Error", message="no CUDA device")),
        "loading",
        "before that, it exited with status 1: no CUDA device",
    ),
    "volume": (
        then(does("schedule"), does("event", reason="FailedMount", message=MOUNT, source="kubelet")),
        "pulling",
        "MountVolume.SetUp failed",
    ),
}


@pytest.mark.parametrize("name", STAGES)
def test_what_only_takes_long_is_no_trouble(name: str) -> None:
    happens, phase, words = STAGES[name]
    world = World()
    happens(world.kubelet, world.pod())
    for after_s in (0.0, 3000.0):
        found = world.look(after_s)
        assert isinstance(found, Stage), found
        assert found.phase == phase
        assert words in found.detail


def test_an_engine_that_served_may_come_back_after_it_ran_out_of_memory() -> None:
    world = World()
    pod = world.pod()
    world.kubelet.start(pod)
    world.kubelet.restarted(pod)
    assert isinstance(world.look(), Trouble)
    found = world.look(served=True)
    assert isinstance(found, Stage)
    assert "more memory than its limit" in found.detail
    world.kubelet.crash_loops(pod, code=137, reason="OOMKilled")
    assert isinstance(world.look(served=True), Trouble)


def test_what_passes_has_not_begun_with_what_was_before() -> None:
    """A hiccup of the registry after an hour of downloading is a hiccup."""
    world = World()
    world.kubelet.pull_fails(world.pod())
    now = time.time() + 3600
    found = look(world.cluster.all("pods"), (), Moment(now=now, since=now, pending_s=PENDING_S))
    assert found == Trouble(found.why, False)  # type: ignore[union-attr]


def test_an_evicted_pod_has_a_successor_which_counts() -> None:
    world = World()
    world.kubelet.evict(world.pod(1))
    found = world.look()
    assert isinstance(found, Stage)
    assert "low on resource: ephemeral-storage" in found.detail
    world.kubelet.start(world.pod(2))
    found = world.look()
    assert isinstance(found, Stage)
    assert found.phase == "loading"
    assert "the pod before it was lost to its node: The node was low on resource" in found.detail


def test_pods_that_are_evicted_one_after_the_other_are_trouble() -> None:
    world = World()
    for number in (1, 2, 3):
        world.kubelet.evict(world.pod(number))
    world.kubelet.schedule(world.pod(4))
    found = world.look()
    assert isinstance(found, Trouble)
    assert found.fatal
    assert "3 pods were lost" in found.why
    assert "low on resource: ephemeral-storage" in found.why
    assert isinstance(world.look(3600), Stage), "those of an hour ago count no more"


def test_a_node_that_does_not_take_the_pod_is_trouble_the_third_time() -> None:
    world = World()
    for number in (1, 2, 3):
        pod = world.pod(number)
        status = {
            "phase": "Failed",
            "reason": "UnexpectedAdmissionError",
            "message": "Pod was rejected: Allocate failed due to no healthy devices present; cannot allocate unhealthy devices nvidia.com/gpu, "
            "which is unexpected",
        }
        world.cluster.patch("pods", "engines", pod["metadata"]["name"], {"status": status})
    found = world.look()
    assert isinstance(found, Trouble)
    assert found.fatal
    assert "no healthy devices" in found.why


def test_an_eviction_is_named_beside_what_the_successor_suffers_from() -> None:
    world = World()
    world.kubelet.evict(world.pod(1))
    world.kubelet.unschedulable(world.pod(2))
    found = world.look(PENDING_S + 1)
    assert isinstance(found, Trouble)
    assert found.fatal
    assert re.search("unschedulable.*the pod before it was lost.*low on resource", found.why)


def test_one_pod_of_many_that_makes_its_way_is_enough() -> None:
    world = World()
    world.kubelet.crash_loops(world.pod(1))
    world.kubelet.start(world.pod(2))
    world.kubelet.unschedulable(world.pod(3))
    found = world.look(PENDING_S + 1)
    assert isinstance(found, Stage)
    assert found.phase == "loading"


QUOTA = (
    'pods "aibrix-batch-1-5d4f9b8c67-x7k2p" is forbidden: exceeded quota: gpus, requested: requests.nvidia.com/gpu=1, '
    "used: requests.nvidia.com/gpu=8, limited: requests.nvidia.com/gpu=8"
)


def test_a_quota_is_told_by_a_deployment() -> None:
    world = World()
    condition = {
        "type": "ReplicaFailure",
        "status": "True",
        "reason": "FailedCreate",
        "message": QUOTA,
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    }
    found = world.look(conditions=(condition,))
    assert found == Trouble(f"no pod can be made: {QUOTA}", True)
    world.kubelet.start(world.pod())
    assert isinstance(world.look(conditions=(condition,)), Stage), "one of two replicas is there, and loads"


def test_a_quota_is_told_by_a_job() -> None:
    world = World("KubernetesJob")
    job = world.cluster.put("jobs.batch", world.workload)
    world.kubelet.event(job, "FailedCreate", f"Error creating: {QUOTA}", source="job-controller")
    found, later = world.look(), world.look(PENDING_S + 1)
    assert found == Trouble(f"no pod can be made: Error creating: {QUOTA}", False)
    assert found == replace(later, fatal=False)  # type: ignore[type-var]


def test_an_event_from_before_the_last_pod_says_nothing_about_the_next() -> None:
    world = World("KubernetesJob")
    job = world.cluster.put("jobs.batch", world.workload)
    world.kubelet.event(job, "FailedCreate", f"Error creating: {QUOTA}", source="job-controller")
    (event,) = world.cluster.all("events")
    earlier = {"firstTimestamp": "2026-01-01T00:00:00Z", "lastTimestamp": "2026-01-01T00:00:00Z"}
    world.cluster.patch("events", "engines", event["metadata"]["name"], earlier)
    pod = world.pod()
    world.cluster.patch(
        "pods", "engines", pod["metadata"]["name"], {"status": {"phase": "Failed", "message": "it ended"}}
    )
    found = world.look(PENDING_S + 1)
    assert found == Stage("scheduling", "the pod before it failed: it ended")


def test_no_pod_yet() -> None:
    assert World().look(PENDING_S + 1) == Stage("scheduling", "its pod is not there yet")


def test_how_a_container_ended() -> None:
    world = World("KubernetesJob")
    pod = world.pod()
    world.kubelet.start(pod)
    engine = {"exitCode": 143, "reason": "Error", "finishedAt": "2026-01-01T00:00:09Z"}
    world.kubelet.exit(pod, 69, "the engine was not ready within 600 s", engine=engine)
    pods = world.cluster.all("pods")
    assert last_words(pods, "worker") == "it exited with status 69: the engine was not ready within 600 s"
    assert last_words(pods, "engine") == "it exited with status 143"
    assert last_words(pods, "engine", before="2026-01-01T00:00:09Z") == "", "it was told to end"
    assert last_words(pods, "nobody") == ""
    oom = {**engine, "exitCode": 137, "reason": "OOMKilled"}
    world.kubelet.container(pod, "engine", {"terminated": oom})
    said_of = last_words(world.cluster.all("pods"), "engine", before="2026-01-01T00:00:09Z")
    assert said_of == "it was killed since it used more memory than its limit"


def test_secrets_in_what_a_container_left_behind_are_not_told() -> None:
    end = {"exitCode": 1, "message": "cannot log in\nHF_TOKEN=hf_abcdefghijklmnopqrstuvwxyz0123456789\nbye"}
    words = end_of(end)
    assert "hf_abc" not in words
    assert words.endswith("bye")


def test_the_end_of_a_long_log_is_told() -> None:
    words = end_of({"exitCode": 1, "message": "x" * 5000 + " the cause"})
    assert words.endswith("the cause")
    assert len(words) < LONGEST + 100


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=5,
)


@given(message=JSON, time_=JSON)
def test_whatever_the_api_says_is_one_line(message: Any, time_: Any) -> None:
    words = said({"message": message})
    assert words
    assert len(words) <= LONGEST + 3
    assert len(words.splitlines()) <= 1
    assert seconds(time_, 1.0) == 1.0 or isinstance(seconds(time_, 1.0), float)


PARTS = st.sampled_from(["phase", "reason", "conditions", "containerStatuses", "initContainerStatuses", "startTime"])


@settings(max_examples=25)
@given(
    missing=st.sets(PARTS),
    verb=st.sampled_from(["schedule", "start", "crash_loops", "pull_fails", "unschedulable", "evict", "restarted"]),
)
def test_parts_of_a_status_may_be_missing(missing: set[str], verb: str) -> None:
    world = World()
    pod = world.pod()
    if verb == "restarted":
        world.kubelet.start(pod)
    getattr(world.kubelet, verb)(pod)
    (found,) = world.cluster.all("pods")
    found["status"] = {name: part for name, part in found["status"].items() if name not in missing}
    moment = Moment(now=time.time(), since=time.time(), pending_s=PENDING_S)
    assert isinstance(look([found], (), moment), Trouble | Stage)
