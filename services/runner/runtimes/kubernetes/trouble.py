"""What is wrong with pods, in words, and whether waiting may help. Pure: objects are dicts as the API writes them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from services.runner.runtimes.kubernetes.said import end_of, said, seconds

Object = dict[str, Any]

# The kubelet will not try again, or has tried for long enough.
HOPELESS_WAITS = {
    "InvalidImageName": "the image name {image} is not valid",
    "ErrImageNeverPull": "the image {image} is not on the node, and may not be pulled",
    "CrashLoopBackOff": "it ends again and again",
}
# They may pass: a Secret that comes a moment later, a registry that hiccups. The kubelet tries again every few seconds, and says
# ImagePullBackOff from the first failure on.
PASSING_WAITS = {
    "ImagePullBackOff": "the image {image} cannot be pulled",
    "ErrImagePull": "the image {image} cannot be pulled",
    "ImageInspectError": "the image {image} cannot be read",
    "RegistryUnavailable": "the registry of the image {image} is away",
    "SignatureValidationFailed": "the image {image} has no signature that the node accepts",
    "CreateContainerConfigError": "the container cannot be configured",
    "CreateContainerError": "the container cannot be created",
    "PreCreateHookError": "the container cannot be created",
    "PreStartHookError": "the container cannot be started",
    "PostStartHookError": "the container cannot be started",
    "RunContainerError": "the container cannot be run",
}
# Words of the cluster's autoscalers: a node comes for this pod.
COMING = ("TriggeredScaleUp", "Nominated")
# What keeps a pod that has a node from starting, where no container's state says it.
HELD_UP = ("FailedMount", "FailedAttachVolume", "FailedMapVolume", "FailedCreatePodSandBox")
# So many pods that their nodes threw out or did not take, in so many seconds: the next one will fare no better.
MOST_LOST = 3
LOST_WITHIN_S = 1800.0
OOM = "OOMKilled"


@dataclass(frozen=True)
class Trouble:
    why: str
    fatal: bool
    """Waiting will not help."""


@dataclass(frozen=True)
class Stage:
    """Nothing is wrong: how far a pod is."""

    phase: str
    """One word, of PHASES."""
    detail: str


PHASES = ("queued", "scheduling", "pulling", "downloading", "loading")


@dataclass(frozen=True, kw_only=True)
class Moment:
    """When somebody looks, in Unix seconds."""

    now: float
    since: float
    """Since when something is wrong without a break, as far as the one who looks knows."""
    pending_s: float
    """What may pass is fatal after so long."""
    served: bool = False
    """Whether an engine of this workload was ready before. One that is then killed for its memory may well come up again."""

    def is_over(self, since: float) -> bool:
        return self.now - since >= self.pending_s


def look(
    pods: Sequence[Object], events: Sequence[Object], moment: Moment, conditions: Sequence[Object] = ()
) -> Trouble | Stage:
    """How the pods of one workload are, while none of them is ready. The one that is nearest to it counts.

    `events` are those about the newest pod and what makes them; `conditions` are those of a Deployment.
    """
    lost = [pod for pod in pods if _was_lost(pod, moment)]
    alive = sorted((pod for pod in pods if not is_over(pod)), key=created)
    if not alive:
        found = _without_pods(pods, events, conditions, moment)
    else:
        each = [_of_pod(pod, events, moment) for pod in alive]
        stages = [one for one in each if isinstance(one, Stage)]
        found = max(stages, key=lambda one: PHASES.index(one.phase)) if stages else each[-1]
    if not lost:
        return found
    words = f"{len(lost)} pods before it were lost, the last one to its node: {said(_status(lost[-1]))}"
    if len(lost) == 1:
        words = f"the pod before it was lost to its node: {said(_status(lost[-1]))}"
    if len(lost) >= MOST_LOST:
        return Trouble(words.replace(" before it", "", 1), True)
    if isinstance(found, Trouble):
        return replace(found, why=f"{found.why}; {words}")
    return replace(found, detail=f"{found.detail}; {words}")


def last_words(pods: Iterable[Object], container: str, *, before: str = "") -> str:
    """How `container` ended last, over all pods; empty if it never did. Of what ended at `before` or later only a lack of memory
    counts: a sidecar is told to end once the work has."""
    ends = [end for pod in pods for end in _ends(pod, container)]
    if before:
        ends = [end for end in ends if end.get("reason") == OOM or str(end.get("finishedAt", "")) < before]
    newest = max(ends, key=lambda end: str(end.get("finishedAt", "")), default=None)
    return end_of(newest) if newest else ""


def ended_at(pods: Iterable[Object], container: str) -> str:
    """When it ended last, in the API's words; empty if it never did."""
    return max((str(end.get("finishedAt", "")) for pod in pods for end in _ends(pod, container)), default="")


def container_state(pod: Object, container: str) -> Object:
    """Its status; empty if it has none."""
    return next((state for described, state in _containers(pod) if described.get("name") == container), {})


def is_over(pod: Object) -> bool:
    return _status(pod).get("phase") in ("Failed", "Succeeded") or "deletionTimestamp" in _metadata(pod)


def created(pod: Object) -> str:
    return str(_metadata(pod).get("creationTimestamp", ""))


def _was_lost(pod: Object, moment: Moment) -> bool:
    """Whether its node evicted it for a lack of something, or did not take it at all. Drains and preemptions are none of this."""
    status = _status(pod)
    reason = str(status.get("reason", ""))
    is_lost = reason in ("Evicted", "UnexpectedAdmissionError") or reason.startswith("OutOf")
    return status.get("phase") == "Failed" and is_lost and moment.now - seconds(created(pod), 0.0) < LOST_WITHIN_S


def _without_pods(
    pods: Sequence[Object], events: Sequence[Object], conditions: Sequence[Object], moment: Moment
) -> Trouble | Stage:
    if (trouble := _not_made(pods, events, conditions, moment)) is not None:
        return trouble
    over = [pod for pod in pods if _status(pod).get("phase") == "Failed" and not _was_lost(pod, moment)]
    if over:
        return Stage("scheduling", f"the pod before it failed: {said(_status(max(over, key=created)))}")
    return Stage("scheduling", "its pod is not there yet")


def _not_made(
    pods: Sequence[Object], events: Sequence[Object], conditions: Sequence[Object], moment: Moment
) -> Trouble | None:
    """Why no pod is made at all: a quota, an admission rule, a missing service account."""
    for condition in conditions:
        if condition.get("type") == "ReplicaFailure" and condition.get("status") == "True":
            since = seconds(condition.get("lastTransitionTime"), moment.since)
            return Trouble(f"no pod can be made: {said(condition)}", moment.is_over(since))
    # One from before the last pod says nothing about the next.
    made_at = max((seconds(created(pod), 0.0) for pod in pods), default=0.0)
    for event in reversed(events):
        if event.get("reason") == "FailedCreate" and _seen_at(event) >= made_at:
            return Trouble(f"no pod can be made: {said(event)}", moment.is_over(moment.since))
    return None


def _seen_at(event: Object) -> float:
    series = event.get("series") or {}
    times = (event.get("lastTimestamp"), series.get("lastObservedTime"), event.get("eventTime"))
    return max(seconds(text, 0.0) for text in times)


def _of_pod(pod: Object, events: Sequence[Object], moment: Moment) -> Trouble | Stage:
    mine = [event for event in events if (event.get("involvedObject") or {}).get("name") == _metadata(pod).get("name")]
    scheduled = _condition(pod, "PodScheduled")
    if scheduled.get("status") == "False":
        return _unscheduled(pod, scheduled, mine, moment)
    if not scheduled and not (pod.get("spec") or {}).get("nodeName"):
        return Stage("scheduling", "its pod waits for a node")
    running = set()
    ends = ""
    for container, state in _containers(pod):
        if (trouble := _waiting(container, state, mine, moment)) is not None:
            return trouble
        if "running" in (state.get("state") or {}):
            running.add(state.get("name"))
            ends = _end_before(state) or ends
    if "engine" in running:
        return Stage("loading", "the engine loads" + (f"; before that, {ends}" if ends else ""))
    if "download" in running:
        return Stage("downloading", "its model is downloaded" + (f"; before that, {ends}" if ends else ""))
    held_up = [event for event in mine if event.get("reason") in HELD_UP]
    return Stage("pulling", said(held_up[-1]) if held_up else "its images are being pulled, and its volumes made")


def _unscheduled(pod: Object, scheduled: Object, events: Sequence[Object], moment: Moment) -> Trouble | Stage:
    if scheduled.get("reason") == "SchedulingGated":
        return Stage("queued", "its pod waits for its turn")
    coming = any(event.get("reason") in COMING for event in events) or bool(_status(pod).get("nominatedNodeName"))
    if coming:
        return Stage("scheduling", "a node is on its way")
    since = seconds(scheduled.get("lastTransitionTime") or created(pod), moment.since)
    return Trouble(f"the pod is unschedulable: {said(scheduled)}", moment.is_over(since))


def _waiting(container: Object, state: Object, events: Sequence[Object], moment: Moment) -> Trouble | None:
    """Why a container does not run; None: nothing is wrong with that."""
    waiting = (state.get("state") or {}).get("waiting") or {}
    reason, name, image = str(waiting.get("reason", "")), state.get("name"), container.get("image", "")
    if reason == "CrashLoopBackOff":
        how = _end_before(state)
        restarts = f"{state.get('restartCount', 0)} restarts"
        return Trouble(f"the container {name} ends again and again{': ' if how else ''}{how} ({restarts})", True)
    if _is_short_of_memory(state) and not moment.served:
        return Trouble(f"the container {name} was killed since it used more memory than its limit", True)
    words = HOPELESS_WAITS.get(reason) or PASSING_WAITS.get(reason)
    if words is None:
        return None
    why = f"{words.format(image=image)} (container {name}, {reason}): {_of_the_image(waiting, events)}"
    return Trouble(why, reason in HOPELESS_WAITS or moment.is_over(moment.since))


def _of_the_image(waiting: Object, events: Sequence[Object]) -> str:
    """The registry's answer. Older kubelets say, after the first try, only that they wait: the events have the rest."""
    text = said(waiting)
    if text.startswith("Back-off pulling image") and ": " not in text:
        failed = [said(event) for event in events if str(event.get("message", "")).startswith("Failed to pull image")]
        return failed[-1] if failed else text
    return text


def _is_short_of_memory(state: Object) -> bool:
    """Killed for it, and not ready since."""
    ends = [(state.get(when) or {}).get("terminated") or {} for when in ("state", "lastState")]
    return not state.get("ready") and any(end.get("reason") == OOM for end in ends)


def _end_before(state: Object) -> str:
    """How a container that was started again ended before; empty: it is its first time."""
    end = (state.get("lastState") or {}).get("terminated")
    return end_of(end) if end else ""


def _containers(pod: Object) -> Iterable[tuple[Object, Object]]:
    """Each container that has a status, those of the start first, with it."""
    spec, status = pod.get("spec") or {}, _status(pod)
    for kinds, statuses in (("initContainers", "initContainerStatuses"), ("containers", "containerStatuses")):
        found = {state.get("name"): state for state in status.get(statuses) or ()}
        for container in spec.get(kinds) or ():
            if container.get("name") in found:
                yield container, found[container["name"]]


def _ends(pod: Object, container: str) -> Iterable[Object]:
    state = container_state(pod, container)
    for when in ("state", "lastState"):
        if end := (state.get(when) or {}).get("terminated"):
            yield end


def _condition(pod: Object, kind: str) -> Object:
    return next((one for one in _status(pod).get("conditions") or () if one.get("type") == kind), {})


def _status(pod: Object) -> Object:
    return pod.get("status") or {}


def _metadata(pod: Object) -> Object:
    return pod.get("metadata") or {}
