"""What is wrong with pods, in words, and whether waiting may help. Pure: objects are dicts as the API writes them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

Object = dict[str, Any]

# The kubelet has tried more than once, or will never try again.
HOPELESS_WAITS = {
    "ImagePullBackOff": "the image {image} cannot be pulled",
    "InvalidImageName": "the image name {image} is not valid",
    "ErrImageNeverPull": "the image {image} is not on the node, and may not be pulled",
    "RunContainerError": "the container cannot be run",
    "CrashLoopBackOff": "it ends again and again",
}
# They often pass within seconds: a Secret that comes a moment later, a registry that hiccups.
PASSING_WAITS = {
    "ErrImagePull": "the image {image} cannot be pulled",
    "RegistryUnavailable": "the registry of the image {image} is away",
    "CreateContainerConfigError": "the container cannot be configured",
    "CreateContainerError": "the container cannot be created",
    "PreCreateHookError": "the container cannot be created",
}
# Words of the cluster's autoscalers: a node comes for this pod.
COMING = ("TriggeredScaleUp", "Nominated")
# Pods that were evicted, one after the other, after which the next one will be, too.
MOST_EVICTIONS = 3
LONGEST = 400
SIGKILL = 137


@dataclass(frozen=True)
class Trouble:
    why: str
    fatal: bool
    """Waiting will not help."""


@dataclass(frozen=True)
class Stage:
    """Nothing is wrong: how far a pod is."""

    phase: str
    """One word."""
    detail: str


def look(pods: Sequence[Object], events: Sequence[Object], *, now: float, pending_s: float) -> Trouble | Stage:
    """How the pods of one workload are, before any of them is ready. The newest is the one that counts.

    `events` are those about the pods and what makes them; `now` is Unix seconds; what may pass is fatal after `pending_s`.
    """
    evicted = [pod for pod in pods if _status(pod).get("reason") == "Evicted"]
    alive = [pod for pod in pods if not _is_over(pod)]
    if not alive:
        return _without_pods(pods, evicted, events, now, pending_s)
    pod = max(alive, key=lambda pod: str(_metadata(pod).get("creationTimestamp", "")))
    found = _of_pod(pod, events, now, pending_s)
    if isinstance(found, Trouble) and evicted:
        return Trouble(f"{found.why}; a pod before it was evicted: {_said(_status(evicted[-1]))}", found.fatal)
    return found


def failed_creation(
    events: Iterable[Object], conditions: Iterable[Object], *, now: float, pending_s: float
) -> Trouble | None:
    """Why no pod is made at all: a quota, an admission rule, a missing service account. From a Deployment's conditions, or
    from events of whatever makes the pods."""
    for condition in conditions:
        if condition.get("type") == "ReplicaFailure" and condition.get("status") == "True":
            lasts = now - seconds(condition.get("lastTransitionTime"), now)
            return Trouble(f"no pod can be made: {_said(condition)}", lasts >= pending_s)
    for event in events:
        if event.get("reason") == "FailedCreate":
            lasts = now - seconds(event.get("firstTimestamp") or event.get("eventTime"), now)
            return Trouble(f"no pod can be made: {_said(event)}", lasts >= pending_s)
    return None


def last_words(pods: Iterable[Object], container: str) -> str:
    """How `container` ended last, over all pods; empty if it never did."""
    ends = [end for pod in pods for end in _ends(pod, container)]
    newest = max(ends, key=lambda end: str(end.get("finishedAt", "")), default=None)
    return describe_end(newest) if newest else ""


def describe_end(end: Object) -> str:
    """The words for the state `terminated` of a container."""
    code, reason = end.get("exitCode"), end.get("reason")
    if reason == "OOMKilled":
        return "it was killed since it used more memory than its limit"
    said = _said({"message": end.get("message")}) if end.get("message") else ""
    killed = " (it was killed)" if code == SIGKILL else ""
    return f"it exited with status {code}{killed}" + (f": {said}" if said else "")


def _without_pods(
    pods: Sequence[Object], evicted: Sequence[Object], events: Sequence[Object], now: float, pending_s: float
) -> Trouble | Stage:
    if (trouble := failed_creation(events, (), now=now, pending_s=pending_s)) is not None:
        return trouble
    if evicted:
        why = f"the pod was evicted: {_said(_status(evicted[-1]))}"
        return Trouble(why, len(evicted) >= MOST_EVICTIONS)
    over = [pod for pod in pods if _status(pod).get("phase") == "Failed"]
    if over:
        return Trouble(f"the pod failed: {_said(_status(over[-1]))}", fatal=False)
    return Stage("scheduling", "its pod is not there yet")


def _of_pod(pod: Object, events: Sequence[Object], now: float, pending_s: float) -> Trouble | Stage:
    status = _status(pod)
    scheduled = _condition(pod, "PodScheduled")
    if scheduled.get("status") == "False":
        return _unscheduled(pod, scheduled, events, now, pending_s)
    ready = {}
    for container, state in _containers(pod):
        if (trouble := _waiting(pod, container, state, now, pending_s)) is not None:
            return trouble
        ready[str(state.get("name"))] = bool((state.get("state") or {}).get("running"))
    if status.get("phase") == "Pending" or not any(ready.values()):
        return Stage("pulling", "its images are pulled, and its volumes made")
    return Stage("loading", "the engine loads")


def _unscheduled(
    pod: Object, scheduled: Object, events: Sequence[Object], now: float, pending_s: float
) -> Trouble | Stage:
    if scheduled.get("reason") == "SchedulingGated":
        return Stage("queued", "its pod waits for its turn")
    name = _metadata(pod).get("name")
    mine = [event for event in events if (event.get("involvedObject") or {}).get("name") == name]
    coming = any(event.get("reason") in COMING for event in mine) or bool(_status(pod).get("nominatedNodeName"))
    if coming:
        return Stage("scheduling", "a node is on its way")
    lasts = now - seconds(scheduled.get("lastTransitionTime") or _metadata(pod).get("creationTimestamp"), now)
    return Trouble(f"the pod is unschedulable: {_said(scheduled)}", lasts >= pending_s)


def _waiting(pod: Object, container: Object, state: Object, now: float, pending_s: float) -> Trouble | None:
    """Why a container does not run; None: nothing is wrong with that."""
    waiting = (state.get("state") or {}).get("waiting") or {}
    reason, name, image = str(waiting.get("reason", "")), state.get("name"), container.get("image", "")
    if reason == "CrashLoopBackOff":
        end = (state.get("lastState") or {}).get("terminated") or {}
        how = f": {describe_end(end)}" if end else ""
        return Trouble(
            f"the container {name} ends again and again{how} ({state.get('restartCount', 0)} restarts)", True
        )
    words = HOPELESS_WAITS.get(reason) or PASSING_WAITS.get(reason)
    if words is None:
        return None
    said = _said(waiting)
    # The image's name comes from our own manifest; what the registry says may be long.
    why = f"{words.format(image=image)} (container {name}, {reason}): {said}"
    age = now - seconds(_metadata(pod).get("creationTimestamp"), now)
    return Trouble(why, reason in HOPELESS_WAITS or age >= pending_s)


def _containers(pod: Object) -> Iterable[tuple[Object, Object]]:
    """Each container that has a status, those of the start first, with it."""
    spec, status = pod.get("spec") or {}, _status(pod)
    for kinds, statuses in (("initContainers", "initContainerStatuses"), ("containers", "containerStatuses")):
        found = {state.get("name"): state for state in status.get(statuses) or ()}
        for container in spec.get(kinds) or ():
            if container.get("name") in found:
                yield container, found[container["name"]]


def _ends(pod: Object, container: str) -> Iterable[Object]:
    for described, state in _containers(pod):
        if described.get("name") == container:
            for when in ("state", "lastState"):
                if end := (state.get(when) or {}).get("terminated"):
                    yield end


def container_state(pod: Object, container: str) -> Object:
    """Its status; empty if it has none."""
    return next((state for described, state in _containers(pod) if described.get("name") == container), {})


def _is_over(pod: Object) -> bool:
    return _status(pod).get("phase") in ("Failed", "Succeeded") or "deletionTimestamp" in _metadata(pod)


def _condition(pod: Object, kind: str) -> Object:
    return next((one for one in _status(pod).get("conditions") or () if one.get("type") == kind), {})


def _status(pod: Object) -> Object:
    return pod.get("status") or {}


def _metadata(pod: Object) -> Object:
    return pod.get("metadata") or {}


def _said(thing: Object) -> str:
    """The cluster's own words, on one line."""
    text = " ".join(str(thing.get("message") or thing.get("reason") or "no reason was given").split())
    return text[:LONGEST]


def seconds(text: Any, default: float) -> float:
    """A time of the API in Unix seconds."""
    try:
        found = datetime.fromisoformat(str(text))
    except ValueError:
        return default
    return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()
