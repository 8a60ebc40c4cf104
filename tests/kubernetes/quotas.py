"""ResourceQuotas: what a namespace may hold. Only whole numbers: pods, GPUs, and counts of objects."""

from __future__ import annotations

from typing import Any

from services.kit.kubernetes.resources import RESOURCES
from tests.kubernetes.store import Failed, Store

Object = dict[str, Any]


def check(store: Store, resource: str, namespace: str, body: Object) -> None:
    """Whether there is room for one more. Error: Failed, 403."""
    asked = usage(resource, body)
    for quota in store.matching("resourcequotas", namespace):
        hard = {name: int(value) for name, value in quota.get("spec", {}).get("hard", {}).items() if name in asked}
        used = used_of(store, namespace, hard)
        over = sorted(name for name in hard if used[name] + asked[name] > hard[name])
        if over:
            said = ", ".join(
                f"{title}: " + ",".join(f"{name}={of[name]}" for name in over)
                for title, of in (("requested", asked), ("used", used), ("limited", hard))
            )
            name = body["metadata"].get("name") or body["metadata"]["generateName"]
            message = f'{resource} "{name}" is forbidden: exceeded quota: {quota["metadata"]["name"]}, {said}'
            raise Failed(403, "Forbidden", message)


def used_of(store: Store, namespace: str, names: Any) -> dict[str, int]:
    """What is used of each of `names` now."""
    used = dict.fromkeys(names, 0)
    for (resource, where, _), found in store.objects.items():
        if where != namespace:
            continue
        for name, count in usage(resource, found).items():
            if name in used:
                used[name] += count
    return used


def usage(resource: str, found: Object) -> dict[str, int]:
    """How much of what one object takes. Pods that have ended take nothing but their place among all objects."""
    kind = RESOURCES[resource]
    group = f".{kind.api_version.partition('/')[0]}" if "/" in kind.api_version else ""
    taken = {f"count/{kind.plural}{group}": 1}
    if resource in ("services", "persistentvolumeclaims", "configmaps"):
        taken[resource] = 1
    if resource == "pods" and found.get("status", {}).get("phase") not in ("Succeeded", "Failed"):
        taken |= {"pods": 1, **_gpus(found)}
    return taken


def _gpus(pod: Object) -> dict[str, int]:
    """Sidecars add to the containers; other init containers run before them."""
    spec = pod.get("spec", {})
    together = [
        *spec.get("containers", []),
        *(one for one in spec.get("initContainers", []) if one.get("restartPolicy")),
    ]
    taken: dict[str, int] = {}
    for container in together:
        resources = container.get("resources", {})
        for name, count in {**resources.get("limits", {}), **resources.get("requests", {})}.items():
            if name in ("nvidia.com/gpu", "amd.com/gpu"):
                taken[f"requests.{name}"] = taken.get(f"requests.{name}", 0) + int(count)
    return taken
